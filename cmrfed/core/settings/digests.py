"""Which settings are in a digest of settings, and under which names.

A digest names runs, caches and answers of sites, so it must stay what it was when the project gains a setting, and must
change with every value that matters. The rule:

* A setting in `ALWAYS` is in every digest, defaults included.
* Any later one is left out while it has the value that means what was done before there was the setting, which
  `SINCE` records, and is in the digest otherwise. A default that is changed later therefore changes digests, as it
  must: the recorded value stays.
* A renamed setting is recorded by its current name, and stays in digests under its old one (`RENAMED`).
* Sections that are not in this record are in digests in full; so are those of plugins, even where a class of theirs
  has the name of one of the project's.

Nobody has to remember it: a test compares this record with the models and prints the line that is missing.
"""

from collections.abc import Container
from typing import Any

from cmrfed.core.artifacts import canonical_json
from cmrfed.core.settings.config import Section

ALWAYS: dict[str, frozenset[str]] = {
    section: frozenset(names.split())
    for section, names in {
        "AnatomyConfig": "minimum_area_px bootstrap_draws permutations",
        "AttackConfig": "black_box white_box slices noise_samples",
        "AugmentConfig": "rotate_deg scale shift_px context_scale context_shift_px",
        "AutoencoderConfig": "channels layers_per_block latent_channels norm_groups",
        "AutoencoderStage": "training",
        "AutoencoderTraining": "steps batch_size learning_rate warmup_steps kl_weight max_grad_norm precision augment",
        "BackboneConfig": "channels layers_per_block attention_levels patch_px norm_groups",
        "ComputeConfig": "threads device",
        "CompletionConfig": "rounds segmenter",
        "DDPMConfig": "kind prediction schedule weighting timestep_sampling",
        "DataConfig": "phantom cohorts size_px holdout partition external",
        "EvaluationConfig": (
            "seed utility segmenter nnunet site_seeds mixed_arm control_seeds mixed_shares features fidelity "
            "anatomy memorisation attacks lpips_weights show_real"
        ),
        "Experiment": "name seed data mask image pretrain federation privacy synthesis evaluation compute",
        "FeatureConfig": "extractor inception_path cache",
        "FedAdamConfig": "server_learning_rate beta_1 beta_2 tau name",
        "FedAvgConfig": "name",
        "FedAvgMConfig": "name server_learning_rate server_momentum",
        "FedProxConfig": "name proximal_mu",
        "FedYogiConfig": "server_learning_rate beta_1 beta_2 tau name",
        "FederationConfig": "sites strategy fraction min_sites round_timeout_s connect_timeout_s retries weighting",
        "FidelityConfig": "subsets fid_halves frd_slices",
        "FlowConfig": "kind timestep_sampling",
        "GeneratorConfig": (
            "process backbone sampler condition_dropout mask_dropout codec size_px condition_masks styles"
        ),
        "GeneratorSettings": "process backbone sampler condition_dropout mask_dropout",
        "KrumConfig": "name malicious_sites",
        "MemorisationConfig": "draws",
        "NnunetConfig": "epochs iterations",
        "PartitionConfig": "scheme sites alpha",
        "PhantomConfig": "patients sites seed",
        "PretrainConfig": "patients scanners seed mask image",
        "PrivacyConfig": "unit epsilon delta declared_patients mask image",
        "PrivateTraining": (
            "sampling_rate clip_norm noise_multiplicity trained subspace unit noise_multiplier declared_patients"
        ),
        "PublicCohort": "path name licence source holdout",
        "PublicTraining": (
            "rounds local_steps batch_size learning_rate warmup_steps optimizer weight_decay max_grad_norm "
            "ema_decay precision augment"
        ),
        "Recipe": "name phantom size_px crop_px steps batch_size learning_rate seed",
        "SamplerConfig": "name steps guidance_scale",
        "SecureAggregation": "threshold",
        "SegmenterNetwork": "channels",
        "SegmenterPlan": "sampling_rate clip_norm noise_multiplicity trained subspace noise_ratio",
        "SegmenterStage": "public training",
        "SegmenterTraining": (
            "rounds local_steps batch_size learning_rate warmup_steps optimizer weight_decay max_grad_norm "
            "ema_decay extra_ema_decays precision augment"
        ),
        "SegmenterConfig": "channels steps batch_size learning_rate weight_decay seeds precision augment mixed_share",
        "StageConfig": "generator training",
        "StageJob": "run experiment seed stage round generator training proximal_mu privacy model_digest threads",
        "StagePlan": "sampling_rate clip_norm noise_multiplicity trained subspace noise_ratio",
        "Subspace": "rank patients scanners draws seed",
        "SynthesisConfig": (
            "patients seed slices slice_spacing_mm pixel_mm shared_noise mask_post_processing batch_size precision"
        ),
        "TrainingConfig": (
            "rounds local_steps batch_size learning_rate warmup_steps optimizer weight_decay max_grad_norm "
            "ema_decay precision augment"
        ),
        "TrimmedMeanConfig": "name trim_fraction",
    }.items()
}
"""Settings by section that are in every digest. Nothing is added here but the settings of a new section."""

SINCE: dict[str, Any] = {
    "AttackConfig.installed": [],
    "BackboneConfig.kind": "unet",
    "EvaluationConfig.installed_metrics": [],
    "Experiment.autoencoder": None,
    "Experiment.segmenter": None,
    "FederationConfig.compression": "none",
    "FederationConfig.secure_aggregation": False,
    "GeneratorConfig.autoencoder": None,
    "GeneratorConfig.finetuned_autoencoder": False,
    "GeneratorConfig.mask_downsampling": 1,
    "GeneratorConfig.segmenter": None,
    "GeneratorSettings.autoencoder": None,
    "GeneratorSettings.mask_downsampling": 1,
    "PartitionConfig.only": None,
    "PretrainConfig.autoencoder": None,
    "PretrainConfig.cohorts": [],
    "PretrainConfig.completion": {
        "rounds": 1,
        "segmenter": {
            "channels": [16, 32, 64, 144],
            "steps": 400,
            "batch_size": 32,
            "learning_rate": 0.003,
            "weight_decay": 0.0001,
            "seeds": 3,
            "precision": "fp32",
            "augment": True,
            "mixed_share": 0.5,
        },
    },
    "PretrainConfig.mixed_share": 0.5,
    "PrivacyConfig.autoencoder": {
        "sampling_rate": 0.25,
        "clip_norm": 1.0,
        "draws": 8,
        "trained": ["*"],
        "subspace": None,
        "noise_ratio": 1.0,
    },
    "PrivacyConfig.segmenter": {
        "sampling_rate": 0.5,
        "clip_norm": 0.5,
        "noise_multiplicity": 8,
        "trained": ["model.0.*", "model.2.*"],
        "subspace": None,
        "noise_ratio": 1.0,
    },
    "StageJob.codec_digest": None,
    "StageJob.compression": "none",
    "StageJob.secure_threshold": None,
    "SynthesisConfig.source": "generators",
    "TrainingConfig.extra_ema_decays": [],
}
"""Later settings, each with the value (as JSON) at which it is left out: what was done before there was the setting.

An entry is never changed, whatever becomes of the default.
"""

RENAMED: dict[str, str] = {
    "AttackConfig.noise_samples": "noises",
    "DDPMConfig.timestep_sampling": "time_law",
    "FlowConfig.timestep_sampling": "time_law",
    "PrivateTraining.noise_multiplicity": "draws",
    "PublicTraining.extra_ema_decays": "ema_others",
    "StagePlan.noise_multiplicity": "draws",
    "TrainingConfig.extra_ema_decays": "ema_others",
}
"""Settings (``Section.name``) that digests know by another, older name."""


_PROJECT = __name__.partition(".")[0]


def digested(section: Section, leave_out: Container[str] = ()) -> dict[str, Any]:
    """The settings of a section that decide its digest, as JSON.

    Args:
        section: Any settings.
        leave_out: Names of settings of the section itself that the digest is not to depend on.
    """
    plain, record = section.model_dump(mode="json"), _record_of(type(section))
    tree = {}
    for name, value in plain.items():
        if name in leave_out:
            continue
        value = _digested(getattr(section, name), value)
        if not _as_before(section, record, name, value):
            tree[RENAMED.get(f"{record}.{name}", name)] = value
    return tree


def _record_of(section: type[Section]) -> str | None:
    """The name by which the record may know a section; None for one that is not the project's."""
    return section.__name__ if section.__module__.partition(".")[0] == _PROJECT else None


def _digested(value: Any, plain: Any) -> Any:
    """A value as JSON (``plain``), with the sections in it by the rule."""
    if isinstance(value, Section):
        return digested(value)
    if isinstance(value, list | tuple):
        return [_digested(one, its) for one, its in zip(value, plain, strict=True)]
    if isinstance(value, dict):
        return {key: _digested(one, its) for (key, its), one in zip(plain.items(), value.values(), strict=True)}
    return plain


def _as_before(section: Section, record: str | None, name: str, value: Any) -> bool:
    """Whether a setting has the value that stands for what was done before there was the setting."""
    if record is None or record not in ALWAYS or name in ALWAYS[record]:
        return False
    before = f"{record}.{name}"
    if before not in SINCE:  # one that has just been written: the test of the record asks for its line
        field = type(section).model_fields[name]
        if field.is_required():
            return False
        default = field.get_default(call_default_factory=True)
        alone = type(section).model_construct(**{name: default}).model_dump(mode="json", include={name})
        return canonical_json(value) == canonical_json(_digested(default, alone[name]))
    return canonical_json(value) == canonical_json(SINCE[before])
