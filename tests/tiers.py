"""The tiers of the tests: each test that is not fast, what it costs, and why it is worth it.

| tier | run by | when |
| --- | --- | --- |
| fast | ``make test-fast`` | while working: all tests that are not listed here |
| slow | ``make test``, which continuous integration runs | on every commit, with the fast ones |
| nightly | ``make test-all`` | every night, with all others |

Fast and slow tests protect the main branch. A test is nightly only where what it guarantees also has a test on every
commit, by a cheaper way or for some of its cases; its entry says which.

An entry names a module, a test, or one case of either, below ``tests/``; the most specific entry counts. From it
``tests/conftest.py`` sets the markers ``slow`` and ``nightly``, and decides what starts first. Its CPU seconds are of
one core, child processes included, over all that the entry covers and no other does; ``pytest --junitxml=FILE``
measures them, as the property ``cpu_s`` of each test.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Tier = Literal["fast", "slow", "nightly"]
MARKERS: dict[Tier, tuple[str, ...]] = {"fast": (), "slow": ("slow",), "nightly": ("slow", "nightly")}
"""A nightly test is slow too, so that ``-m "not slow"`` leaves the fast ones."""
LONGEST_S = 30.0
"""CPU seconds that a fast test may take: three times what it should, since machines differ."""


@dataclass(frozen=True)
class Entry:
    """What one or more tests cost, and why: ``fast`` is said only of a case of a test that is listed."""

    tier: Tier
    cpu_s: float
    why: str


Modules = dict[str, dict[str, tuple[float, str]]]
"""Module => test, or "" for all of them => CPU seconds, and why."""

SLOW: Modules = {
    # --- whole commands ------------------------------------------------------------------------------
    "e2e/test_main_job.py": {
        "": (36, "the main job as a user runs it, and each command on what it left"),
    },
    "e2e/test_run_on_a_device.py": {
        "": (23, "a whole run leaves no tensor on another device than its own, evaluation and report included"),
    },
    "e2e/test_docs_site.py": {
        "": (8, "the documentation is built without a network, links lead somewhere, nothing is loaded from elsewhere"),
    },
    "e2e/test_private_job.py": {
        "": (50, "manifest, ledgers and report of a private run claim the same ε"),
    },
    "e2e/test_sweep_job.py": {
        "": (130, "a sweep that is killed; ε = ∞ has the weights of the recipe without privacy"),
    },
    "e2e/test_flwr_run.py": {
        "": (60, "Flower's own command and the grid in one process give the same weights"),
    },
    "e2e/test_deployment.py": {
        "test_from_kits_to_synthetic_patients_with_the_weights_of_one_process": (
            130,
            "kits, certificates, proxies and real processes; the weights are those of one process",
        ),
    },
    "e2e/test_example_package.py": {
        "test_the_part_works": (60, "a package of others adds one part of each kind, and each works"),
        "test_the_record_and_the_report_of_the_run_name_the_package_and_its_parts": (1, "shares that run"),
        "test_all_its_parts_are_listed_and_can_be_used": (5, "a command that loads all of them"),
    },
    "e2e/test_notebooks.py": {
        "test_the_notebook_runs": (39, "the notebooks that show the Python API run from top to bottom"),
    },
    "e2e/test_wheel.py": {
        "": (50, "an installed wheel runs a recipe by its name in an empty folder"),
    },
    "e2e/test_tutorials.py": {
        "test_a_tutorial_runs_as_it_is_written[simulate.md]": (147, "what most users read first"),
    },
    "e2e/test_benchmarks.py": {
        "test_a_benchmark_prints_its_result[neighbours]": (
            10,
            "a benchmark starts, and prints its line",
        ),
    },
    "e2e/test_kill_and_resume.py": {
        "test_killed_at_save_points_it_resumes_to_the_same_weights[some]": (
            35,
            "killed before every seventh operation on the disk, a run resumes to the same bits",
        ),
    },
    "e2e/test_killed_private_runs.py": {
        "": (25, "a private run that is killed has paid for all that left it"),
    },
    "unit/cli/test_main.py": {
        "test_ctrl_c_stops_a_run_that_the_same_command_carries_on_to_the_same_weights": (
            18,
            "an interrupted command is carried on to the same weights",
        ),
        "test_plan_says_what_a_target_means_for_each_site": (4, "a search for the noise of each site"),
    },
    "unit/cli/test_light.py": {
        "test_heavy_libraries_are_not_loaded[a server and a site train without privacy]": (5, "loads all of training"),
    },
    "unit/test_encodings.py": {
        "test_the_same_files_are_written_in_every_locale": (19, "three commands in two locales"),
        "test_a_command_speaks_in_a_locale_without_utf_8": (22, "a command in a C locale"),
        "test_a_name_that_is_no_text_is_one_paragraph": (4, "a command on a path that is no text"),
    },
    "unit/config/test_recipes.py": {
        "test_a_wheel_holds_one_package_with_recipes_and_templates": (2, "builds a wheel"),
    },
    # --- private training ----------------------------------------------------------------------------
    "oracle/test_one_local_step_is_central.py": {
        "test_one_patient_moves_the_mean_update_by_at_most_the_bound_over_the_sites": (
            3,
            "runs with and without each patient",
        ),
    },
    "unit/pipeline/test_pretrain.py": {
        "": (7, "public trainings on the phantom"),
        "test_one_that_is_damaged_is_made_anew": (4, "trains again"),
        "test_a_run_starts_from_it_and_goes_on_without_the_cache": (3, "a run from pre-trained weights"),
        "test_a_latent_run_trains_draws_and_is_judged_and_needs_no_cache": (
            3,
            "a run of a latent generator, to its evaluation",
        ),
        "test_a_damaged_autoencoder_is_made_anew": (2, "trains again"),
        "test_recipes_that_differ_in_the_family_share_it": (2, "two trainings"),
        "test_one_that_was_killed_half_way_leaves_nothing_that_is_reused": (2, "two trainings"),
        "test_an_autoencoder_alone_is_trained_without_any_generator": (2, "a training"),
    },
    "unit/privacy/test_audit.py": {
        "test_a_planted_fault_is_caught[97 % of the noise]": (3, "a fault in: size of the noise"),
        "test_a_planted_fault_is_caught[90 % of the noise in one tensor]": (3, "a fault in: size of the noise"),
        "test_a_planted_fault_is_caught[no noise where nobody was drawn]": (3, "a fault in: size of the noise"),
        "test_a_planted_fault_is_caught[logistic noise]": (3, "a fault in: law of the noise"),
        "test_a_planted_fault_is_caught[noise in float16]": (3, "a fault in: law of the noise"),
        "test_a_planted_fault_is_caught[two steps share their noise]": (
            3,
            "a fault in: noise that repeats or can be known",
        ),
        "test_a_planted_fault_is_caught[tensors share their noise]": (
            3,
            "a fault in: noise that repeats or can be known",
        ),
        "test_a_planted_fault_is_caught[noise of opposite pairs within a tensor]": (
            3,
            "a fault in: noise that repeats or can be known",
        ),
        "test_a_planted_fault_is_caught[noise from torch's own generator]": (
            3,
            "a fault in: noise that repeats or can be known",
        ),
        "test_a_planted_fault_is_caught[noise from a seed in the event]": (
            3,
            "a fault in: noise that repeats or can be known",
        ),
        "test_a_planted_fault_is_caught[clipping to 1.05 of the bound]": (3, "a fault in: clipping"),
        "test_a_planted_fault_is_caught[no clipping of the very loud]": (3, "a fault in: clipping"),
        "test_a_planted_fault_is_caught[clipping of each tensor by itself]": (3, "a fault in: clipping"),
        "test_a_planted_fault_is_caught[clipping of each draw]": (3, "a fault in: clipping"),
        "test_a_planted_fault_is_caught[quiet gradients tripled]": (3, "a fault in: clipping"),
        "test_a_planted_fault_is_caught[a broken record empties the batch]": (3, "a fault in: broken records"),
        "test_a_planted_fault_is_caught[a broken record poisons the weights]": (3, "a fault in: broken records"),
        "test_a_planted_fault_is_caught[batches of a fixed size]": (3, "a fault in: sampling"),
        "test_a_planted_fault_is_caught[one coin for pairs of records]": (3, "a fault in: sampling"),
        "test_a_planted_fault_is_caught[coins tossed once for two steps]": (3, "a fault in: sampling"),
        "test_a_planted_fault_is_caught[records drawn with a seed]": (3, "a fault in: sampling"),
        "test_a_planted_fault_is_caught[the real batch size as denominator]": (3, "a fault in: denominator"),
        "test_a_planted_fault_is_caught[no step where nobody was drawn]": (3, "a fault in: steps and optimizer"),
        "test_a_planted_fault_is_caught[the wrong learning rate]": (3, "a fault in: steps and optimizer"),
        "test_a_planted_fault_is_caught[moments of gradients without noise]": (3, "a fault in: steps and optimizer"),
        "test_a_planted_fault_is_caught[more steps than were paid for]": (3, "a fault in: steps and optimizer"),
        "test_a_planted_fault_is_caught[goes on after an error]": (3, "a fault in: steps and optimizer"),
        "test_a_planted_fault_is_caught[a guard that counts versions of buffers alone]": (3, "a fault in: state"),
        "test_a_planted_fault_is_caught[an average of weights without noise]": (3, "a fault in: state"),
        "test_the_real_step_passes": (8, "the audit of the project's step, at the extremes"),
        "test_a_step_written_by_hand_passes_with_plain_sgd": (2, "one audit"),
        "test_the_audit_leaves_the_randomness_of_the_process_alone": (4, "one audit"),
        "test_a_fault_in_our_own_step_is_caught": (10, "three audits"),
        "test_the_step_that_is_audited_is_the_one_in_use": (3, "one audit"),
    },
    "unit/privacy/test_budget.py": {
        "test_known_noise_for_epsilon_four": (2, "the noise of two known budgets"),
    },
    "unit/privacy/test_settings.py": {
        "test_both_stages_share_one_budget": (5, "several searches for the noise"),
    },
    "unit/training/test_audit.py": {
        "test_the_real_trainer_passes": (18, "both stages, both units, and public directions"),
        "test_a_fault_in_the_trainer_is_caught": (28, "fifteen faults of the trainer"),
        "test_neighbours_of_a_slice_are_noticed": (8, "the audit at slice level"),
        "test_an_augmentation_that_mixes_patients_is_noticed": (2, "one audit"),
        "test_a_stage_is_audited_by_its_step_and_its_trainer": (5, "the whole audit of a stage"),
    },
    "unit/training/test_subspace.py": {
        "test_public_patients_are_drawn_once_and_again_when_damaged": (4, "draws phantoms"),
    },
    "unit/federation/test_finetuning.py": {
        "": (10, "runs of three stages, whole and killed"),
        "test_its_share_of_the_budget_is_planned_paid_audited_and_claimed": (
            34,
            "a private run of three stages with the audit of each",
        ),
        "test_more_noise_in_the_autoencoder_leaves_more_for_the_others": (
            5,
            "two searches for the noise of three stages",
        ),
    },
    "unit/federation/test_labeller.py": {
        "": (30, "whole runs of a recipe with a segmenter: open, private with its audit, and killed"),
    },
    "unit/pipeline/test_relabel.py": {
        "": (6, "trains and reads segmenters, and completes public cohorts"),
    },
    "unit/federation/site/test_private_site.py": {
        "test_an_old_round_with_other_settings_loses_no_answer_and_is_paid_anew": (5, "four private rounds"),
        "test_it_stops_at_the_cap_and_never_beyond": (4, "private rounds up to the cap"),
    },
    "unit/pipeline/privacy/test_guarantee.py": {
        "": (9, "claims of whole private runs"),
        "test_the_claim_is_the_largest_loss_in_any_ledger_and_within_the_target": (6, "a private run of both stages"),
    },
    "contract/test_requests_tell_nothing.py": {
        "test_one_patient_more_changes_nothing_but_the_weights": (10, "each fault of a patient, in both stages"),
        "test_a_patient_who_cannot_be_computed_changes_nothing_but_the_weights": (7, "each error at each place"),
        "test_an_empty_sample_and_a_full_one_look_the_same": (
            14,
            "requests over the whole range of what a coordinator may ask",
        ),
    },
    "contract/test_nothing_leaks_beside.py": {
        "test_the_files_of_the_server_hold_no_losses_times_or_counts": (4, "private runs of both stages"),
        "test_two_cohorts_that_differ_by_one_patient_look_the_same_but_for_the_arrays": (
            4,
            "two private runs of both stages",
        ),
        "test_a_network_with_batchnorm_is_refused_with_the_reason": (5, "one audit"),
    },
    "unit/training/test_on_a_device.py": {
        "": (15, "trains and draws each family on the fake accelerator and on the CPU"),
    },
    "unit/federation/site/test_site_devices.py": {
        "": (4, "simulated sites train on a fake accelerator each"),
    },
    # --- federation ----------------------------------------------------------------------------------
    "unit/federation/test_latent.py": {
        "test_a_run_that_is_killed_goes_on_to_the_same_bits_with_the_same_autoencoder": (3, "three runs"),
    },
    "unit/pipeline/test_tracking.py": {
        "": (7, "runs, with TensorBoard and MLflow"),
        "test_a_run_is_tracked_after_every_round_and_at_the_end": (2, "a run, with TensorBoard"),
        "test_two_runs_of_one_folder_name_have_places_of_their_own": (2, "TensorBoard reads what was written"),
        "test_an_unmarked_place_is_kept_if_its_numbers_are_this_runs": (2, "TensorBoard reads what was written"),
    },
    "unit/federation/secagg/test_server.py": {
        "": (14, "runs with secure sums, each of some rounds at several sites"),
        "test_whoever_leaves_at_any_step_the_sum_is_that_of_those_who_sent_theirs": (
            6,
            "five sites, of whom some leave at each step",
        ),
        "test_after_too_few_the_same_command_goes_on_and_nobody_trains_twice": (3, "two runs for each step"),
        "test_the_other_means_get_the_same_mean": (3, "two runs of each strategy"),
        "test_of_three_sites_one_may_leave_at_any_step": (2, "a run for each step"),
        "test_below_the_threshold_the_round_fails_and_says_why": (2, "a run for each step"),
    },
    "unit/federation/server/test_run.py": {
        "": (16, "runs of several rounds and sites, stopped, resumed or with bad replies"),
        "test_a_bad_reply_is_left_out_with_a_reason_and_the_run_goes_on": (6, "a run for each way to spoil a reply"),
        "test_after_a_missed_quorum_the_same_command_goes_on_to_the_same_weights": (3, "three runs"),
        "test_stopped_after_any_round_it_resumes_to_the_same_bits": (25, "each strategy, with all sites and with some"),
        "test_the_server_holds_the_arrays_of_one_reply_at_a_time": (3, "large weights"),
    },
    "unit/federation/test_compression.py": {
        "test_the_mean_is_that_of_whole_replies_up_to_rounding_and_repeats": (6, "two runs of each compression"),
    },
    # --- data ----------------------------------------------------------------------------------------
    "unit/data/dicom/test_identity.py": {
        "": (9, "three marked studies: nothing that identifies is written, printed or logged"),
    },
    "unit/data/dicom/test_scan.py": {
        "": (6, "exports that are damaged, copied and packed, each of them prepared"),
    },
    "unit/data/dicom/test_real.py": {
        "": (4, "real scans of two scanners"),
    },
    "unit/data/sources/test_fuzz.py": {
        "": (7, "hundreds of folders of scans that are odd in every way"),
        "test_a_small_file_that_claims_much_takes_no_memory": (4, "headers that claim what no memory holds"),
    },
    "unit/data/preparation/test_checks.py": {
        "test_each_damage_is_found_and_costs_one_patient": (8, "thirty-five damages"),
    },
    "unit/data/preparation/test_prepare.py": {
        "test_real_data_is_prepared": (26, "real scans of two data sets"),
        "test_motion_on_real_patients": (3, "real scans"),
    },
    "unit/data/preparation/test_verify.py": {
        "test_real_scans_pass_but_for_the_twins": (18, "real scans"),
        "test_real_scans_with_the_cavity_alone_pass": (12, "real scans"),
    },
    "unit/data/geometry/test_orientation.py": {
        "test_the_right_ventricle_comes_to_the_left": (7, "a phantom in each arrangement of axes"),
        "test_signs_on_real_patients": (7, "real scans"),
    },
    "unit/data/test_nnunet_export.py": {
        "test_nnunet_accepts_the_export": (12, "nnU-Net's own check"),
        "test_nnunet_refuses_what_is_wrong": (7, "nnU-Net's own check"),
    },
    "unit/data/phantom/test_write.py": {
        "test_written_phantom_is_read_back_by_the_importer": (4, "writes and prepares"),
    },
    # --- evaluation ----------------------------------------------------------------------------------
    "unit/evaluation/anatomy/test_shapes.py": {
        "test_masks_are_judged_as_drawn_too_where_they_were_post_processed": (3, "two comparisons of shapes"),
        "test_real_hearts_lie_nearer_than_distorted_ones": (2, "two comparisons of shapes"),
    },
    "unit/evaluation/test_evaluate.py": {
        "test_one_synthetic_patient_is_judged_with_a_warning": (2, "a whole evaluation"),
        "test_constant_images_are_judged_with_a_warning": (2, "a whole evaluation"),
        "test_what_an_autoencoder_loses_is_measured_by_itself": (8, "a whole evaluation"),
        "test_the_same_inputs_give_the_same_report": (5, "two whole evaluations"),
        "test_real_patients_stay_out_of_the_pictures_on_request": (4, "a whole evaluation"),
    },
    "unit/evaluation/features/test_radiomics.py": {
        "test_it_is_the_number_of_the_package_itself": (1, "the package of FRD"),
    },
    "unit/evaluation/features/test_phantom_cnn.py": {
        "test_the_real_recipe_sees_blur_noise_and_another_contrast": (
            51,
            "trains the extractor of all fidelity numbers, as users get it",
        ),
    },
    "unit/evaluation/utility/test_arms.py": {
        "test_segmenters_are_kept_and_shared": (5, "trains segmenters"),
    },
    "unit/evaluation/utility/test_nnunet.py": {
        "test_a_training_that_ends_without_a_result_is_said_with_its_log": (7, "nnU-Net in a process of its own"),
        "test_nnunet_itself_learns_something": (4, "trains nnU-Net"),
        "test_a_killed_training_ends_at_once_and_goes_on_where_it_was": (5, "nnU-Net in a process of its own"),
    },
    "unit/evaluation/privacy/test_white_box.py": {
        "test_who_was_learned_by_heart_is_found": (
            22,
            "white-box attacks find the members of a generator that memorised them, and nobody in an untrained one",
        ),
        "test_references_take_away_what_is_easy_for_all": (
            24,
            "the calibrated attack has power where the plain one has little",
        ),
    },
    # --- sweeps, figures, study ----------------------------------------------------------------------
    "unit/sweep/test_timing.py": {
        "test_a_private_step_is_its_noise_and_a_gradient_for_each_patient_who_is_expected_in_it": (
            3,
            "times private steps",
        ),
    },
    "unit/sweep/test_estimate.py": {
        "test_points_steps_and_the_epsilon_of_all": (4, "searches for the noise of all points"),
    },
    "unit/sweep/test_paid.py": {
        "": (16, "sweeps with the ledgers of all points"),
    },
    "unit/sweep/test_work.py": {
        "": (9, "points of sweeps in processes of their own"),
        "test_the_command_line_leaves_its_error_for_the_sweep": (10, "a point as a real command"),
        "test_killed_in_the_middle_and_resumed_the_table_is_the_same": (17, "processes killed"),
        "test_a_killed_parent_whose_points_go_on_keeps_the_folder": (8, "processes killed"),
        "test_the_phantom_is_drawn_once_and_points_find_it": (5, "draws a phantom"),
        "test_a_cohort_that_is_not_there_fails_its_points": (5, "draws a phantom"),
    },
    "unit/sweep/test_on_ray.py": {
        "": (16, "points on a cluster of Ray"),
    },
    "unit/sweep/test_forecast.py": {
        "": (15, "searches for the noise of many sites"),
    },
    "unit/sweep/test_headline.py": {
        "": (5, "sweeps with the ledgers of all points"),
    },
    "unit/sweep/test_summary.py": {
        "test_the_table_reads_back_the_same_from_csv_and_parquet": (2, "a sweep with the ledgers of all points"),
        "test_curves_by_family_with_intervals_over_seeds": (1, "shares that sweep"),
        "test_the_page_is_one_file_and_names_figures_and_knees": (1, "shares that sweep"),
    },
    "unit/sweep/test_study_page.py": {
        "test_what_the_patients_paid_is_all_private_points_composed": (
            12,
            "composes all private runs of docs/study.md",
        ),
    },
    "unit/figures/test_study.py": {
        "test_the_command_makes_every_figure_and_names_the_runs": (7, "draws every figure"),
    },
}

NIGHTLY: Modules = {
    "e2e/test_deployment.py": {
        "": (
            280,
            "power cuts, cut networks, wrong keys; on every commit: a whole deployment; lost replies and killed sites "
            "in one process (unit/federation, e2e/test_killed_private_runs.py); the parts (unit/deploy)",
        ),
    },
    "e2e/test_tutorials.py": {
        "test_a_tutorial_runs_as_it_is_written": (
            207,
            "on every commit: the first tutorial, and all commands and options of every page parse (unit/test_docs.py)",
        ),
        "test_the_tutorial_of_a_deployment_runs_as_it_is_written": (
            371,
            "on every commit: a deployment from kits (e2e/test_deployment.py), and the page's commands parse",
        ),
    },
    "e2e/test_benchmarks.py": {
        "test_a_benchmark_prints_its_result": (240, "on every commit: one of them"),
    },
    "e2e/test_kill_and_resume.py": {
        "test_killed_at_save_points_it_resumes_to_the_same_weights[all]": (
            192,
            "killed before every operation on the disk; on every commit: before every seventh",
        ),
    },
    "e2e/test_killed_private_runs.py": {
        "[100 kills]": (80, "on every commit: thirty kills"),
    },
    "oracle/test_attack_power.py": {
        "test_what_was_learned_by_heart_is_found_and_nothing_else": (
            427,
            "three families with three seeds; on every commit: fewer (unit/evaluation/privacy/test_white_box.py)",
        ),
    },
    "unit/evaluation/privacy/test_white_box.py": {
        "test_who_was_learned_by_heart_is_found[clean]": (21, "on every commit: another family"),
    },
    "unit/data/sources/test_fuzz.py": {
        "test_volumes_for_long": (31, "on every commit: fewer examples of the same"),
    },
    "unit/privacy/test_audit.py": {
        "test_a_planted_fault_is_caught": (
            250,
            "on every commit: 29 faults, some of each kind",
        ),
    },
}

FAST: Modules = {
    "unit/privacy/test_audit.py": {
        "test_the_real_step_passes[usual]": (3, "one audit or run in every tier"),
        "test_a_planted_fault_is_caught[no noise on matrices]": (2, "one audit in every tier"),
    },
    "unit/training/test_audit.py": {
        "test_the_real_trainer_passes[image-asked0]": (2, "one audit in every tier"),
        "test_a_fault_in_the_trainer_is_caught[HalfTheNoise]": (2, "one audit in every tier"),
    },
    "unit/federation/server/test_run.py": {
        "test_a_bad_reply_is_left_out_with_a_reason_and_the_run_goes_on[_nan-set aside-holds NaN or infinity]": (
            1,
            "one bad reply in every tier",
        ),
        "test_stopped_after_any_round_it_resumes_to_the_same_bits[0.5-fedadam]": (3, "one audit or run in every tier"),
    },
    "unit/federation/secagg/test_server.py": {
        "test_whoever_leaves_at_any_step_the_sum_is_that_of_those_who_sent_theirs[train.masked-lost1]": (
            1,
            "one run in every tier",
        ),
    },
    "contract/test_requests_tell_nothing.py": {
        "test_one_patient_more_changes_nothing_but_the_weights[nan-image]": (1, "one fault in every tier"),
        "test_a_patient_who_cannot_be_computed_changes_nothing_but_the_weights[free-gather-MemoryError]": (
            1,
            "one error in every tier",
        ),
    },
    "unit/data/geometry/test_orientation.py": {
        "test_the_right_ventricle_comes_to_the_left[arrangement1]": (1, "one arrangement in every tier"),
    },
    "unit/data/preparation/test_checks.py": {
        "test_each_damage_is_found_and_costs_one_patient[mask mirrored]": (1, "one damage in every tier"),
    },
}
"""Cases that stay fast of tests that are listed above."""

_LISTED: dict[Tier, Modules] = {"slow": SLOW, "nightly": NIGHTLY, "fast": FAST}
ENTRIES = {
    (module, test): Entry(tier, *rest)
    for tier, modules in _LISTED.items()
    for module, tests in modules.items()
    for test, rest in tests.items()
}
"""By module and test, as listed."""


def entry_of(node: str) -> tuple[str, str] | None:
    """The most specific of ``ENTRIES`` that covers a test; None for a fast test.

    Args:
        node: As pytest names it: ``tests/module.py::test[case]``.
    """
    module, _, test = node.removeprefix("tests/").partition("::")
    name, bracket, case = test.partition("[")
    return next((key for each in (test, name, bracket + case, "") if (key := (module, each)) in ENTRIES), None)


def cost_of(nodes: Iterable[str]) -> float:
    """CPU seconds of tests, as pytest names them: of all entries that cover them."""
    return sum(ENTRIES[key].cpu_s for key in {entry_of(node) for node in nodes} if key)
