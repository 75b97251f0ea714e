"""The command line: examples that parse, exit status, and one readable paragraph for each kind of bad input."""

import contextlib
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import typer
import yaml
from flwr.common.config import parse_config_args
from hypothesis import given
from hypothesis import strategies as st

from cmrfed.cli.main import app, main
from cmrfed.config.experiment import resolve
from cmrfed.core.artifacts import digest_folder, read_json
from cmrfed.core.settings.strict_yaml import load, quoted
from cmrfed.deploy.node import toml_text
from cmrfed.generators.generator import Generator
from cmrfed.pipeline import run as pipeline
from cmrfed.pipeline.context import begin
from cmrfed.pipeline.training import train
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.privacy.policy import SitePolicy
from tests.federation_world import tiny_cohort
from tests.generator_world import blob_cohort, tiny_generator
from tests.support import content, other_owner
from tests.unit.privacy.ledger.test_ledger import damage_edit, event

RECIPE = """
name: tiny
data:
  size_px: 16
  holdout: 0.25
  partition: {sites: 2}
mask: &stage
  generator: {backbone: &net {channels: [8], norm_groups: 4, patch_px: 4}}
  training: {rounds: 8, local_steps: 2, batch_size: 2, precision: fp32}
image: *stage
compute: {threads: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def is_one_paragraph(status: int, err: str) -> bool:
    lines = err.strip().splitlines()
    return status == 1 and len(lines) == 1 and lines[0].startswith("error: ") and "Do: " in lines[0]


# --- help -----------------------------------------------------------------------------------------
def commands() -> dict[str, click.Command]:
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group)
    flat = {}
    for name, command in root.commands.items():
        inner = command.commands if isinstance(command, click.Group) else {"": command}
        flat.update({f"{name} {sub}".strip(): leaf for sub, leaf in inner.items()})
    return flat


def test_the_commands_are_those_of_the_contract():
    names = "phantom, prepare, verify, run, pretrain, synthesize, export nnunet, evaluate, audit, report, ledger"
    assert set(commands()) >= set(names.split(", "))


@pytest.mark.parametrize("name", commands())
def test_help_shows_an_example_whose_words_the_command_takes(name, call):
    status, out, _ = call(*name.split(), "--help")
    assert status == 0
    example = re.search(r"Example: cmrfed (.*)", " ".join(out.split()))
    assert example, "no example"
    words = shlex.split(example[1])
    assert " ".join(words).startswith(name)
    commands()[name].make_context(name, words[len(name.split()) :])


def test_the_recipes_of_the_examples_exist():
    for command in commands().values():
        for word in re.findall(r"configs/\S+", command.epilog or ""):
            assert (Path(__file__).parents[3] / word).is_file()


@pytest.mark.parametrize("words", [["nonsense"], ["run"], ["phantom", "x", "--patients", "none"], ["run", "--what"]])
def test_wrong_words_are_a_usage_error(words, call):
    status, _, err = call(*words)
    assert status == 2
    assert "Usage: " in err
    assert "Traceback" not in err


# --- bad input --------------------------------------------------------------------------------------
def test_a_misspelt_key_is_named_with_a_suggestion(recipe, call, tmp_path):
    recipe.write_text(RECIPE.replace("holdout", "hold_out"))
    status, _, err = call("run", recipe, "--run-dir", tmp_path / "run")
    assert is_one_paragraph(status, err)
    assert "data.hold_out: no such setting (did you mean data.holdout?)" in err
    assert not (tmp_path / "run").exists()


def test_no_patients(recipe, call, tmp_path):
    status, _, err = call("run", recipe, "--run-dir", tmp_path / "run")
    assert is_one_paragraph(status, err)
    assert "there are no patients" in err
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_is_no_cohort(recipe, call, tmp_path):
    (tmp_path / "empty").mkdir()
    status, _, err = call("run", recipe, "--run-dir", tmp_path / "run", "--data", tmp_path / "empty")
    assert is_one_paragraph(status, err)
    assert "empty is not a cohort" in err
    assert not (tmp_path / "run").exists()


def test_an_empty_source_makes_no_cohort(call, tmp_path):
    (tmp_path / "scans").mkdir()
    status, _, err = call("prepare", tmp_path / "scans", tmp_path / "cohort", "--source", "acdc")
    assert is_one_paragraph(status, err.strip().splitlines()[-1])
    assert not (tmp_path / "cohort").exists()


@pytest.mark.parametrize(
    ("patients", "sites", "message"),
    [
        (1, 3, "too small to split. Got: 1 patient(s)"),
        (2, 3, "would be empty: holdout. Got: 2 patient(s)"),
        (6, 9, "has fewer patients than sites. Got: 5 patient(s), 9 sites"),
    ],
)
def test_a_cohort_of_too_few_patients(recipe, call, tmp_path, patients, sites, message):
    blob_cohort(tmp_path / "cohort", patients)
    words = ("run", recipe, "--run-dir", tmp_path / "run", "--data", tmp_path / "cohort")
    status, _, err = call(*words, "--set", f"data.partition.sites={sites}")
    assert is_one_paragraph(status, err)
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_site_without_masks(recipe, call, tmp_path):
    blob_cohort(tmp_path / "a", 4, name="a")
    blob_cohort(tmp_path / "b", 4, name="b", first=4, has_mask=False)
    words = ("run", recipe, "--run-dir", tmp_path / "run", "--data", tmp_path / "a", "--data", tmp_path / "b")
    status, _, err = call(*words)
    assert is_one_paragraph(status, err)
    assert re.search(r"site-1 has patients without masks\. Got: \d of \d, such as p\d\d", err)
    assert not (tmp_path / "run" / "run.json").exists(), "the folder must stay free for the next try"


def test_a_cohort_of_another_size_and_the_advice_works(recipe, call, tmp_path, monkeypatch):
    blob_cohort(tmp_path / "cohort", 6, size=32)
    words = ("run", recipe, "--run-dir", tmp_path / "run", "--data", tmp_path / "cohort")
    status, _, err = call(*words)
    assert is_one_paragraph(status, err)
    advice = re.search(r"--set \S+=\d+", err)
    monkeypatch.setattr(pipeline, "train", lambda *_: sys.exit(7))
    assert call(*words, *shlex.split(advice[0]))[0] == 7


def test_a_wrong_external_cohort_shows_before_training(recipe, call, tmp_path):
    blob_cohort(tmp_path / "cohort", 6)
    words = ("run", recipe, "--run-dir", tmp_path / "run", "--data", tmp_path / "cohort")
    status, _, err = call(*words, "--set", f"data.external={{other: {tmp_path / 'nowhere'}}}")
    assert is_one_paragraph(status, err)
    assert "nowhere is not a cohort" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("synthesize", "nowhere", "--out", "out"),
        ("export", "nnunet", "nowhere", "out"),
        ("evaluate", "--synthetic", "nowhere", "--train", "a", "--holdout", "b", "--out", "out"),
        ("report", "nowhere"),
        ("ledger", "nowhere"),
        ("ledger", "nowhere", "--repair", "because"),
        ("verify", "nowhere"),
        ("prepare", "nowhere", "out", "--source", "acdc"),
        ("prepare", ".", "out", "--source", "nrrd"),
        ("run", "nowhere.yaml", "--run-dir", "out"),
        ("phantom", "out", "--patients", "1", "--sites", "2"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_folders_that_are_not_there_and_words_that_mean_nothing(words, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(*words)
    assert is_one_paragraph(status, err)
    assert not (tmp_path / "out").exists()


def test_references_without_a_generator_are_refused(call, tmp_path):
    sets = ["--synthetic", tmp_path, "--train", tmp_path, "--holdout", tmp_path, "--out", tmp_path / "out"]
    status, _, err = call("evaluate", *sets, "--reference", tmp_path)
    assert is_one_paragraph(status, err)
    assert "give --generator" in err


def test_a_folder_that_exists_is_kept_without_force(call, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    for words in (["phantom", tmp_path / "out"], ["prepare", tmp_path, tmp_path / "out", "--source", "acdc"]):
        status, _, err = call(*words)
        assert is_one_paragraph(status, err)
        assert "--force" in err
    assert (tmp_path / "out" / "mine").exists()


# --- the privacy ledger -------------------------------------------------------------------------------
@pytest.fixture
def site(tmp_path: Path) -> Path:
    SitePolicy(epsilon_cap=8, delta=0.05).save(tmp_path / "site" / "policy.yaml")
    PrivacyLedger.create(tmp_path / "site")
    return tmp_path / "site"


def test_the_ledger_of_a_fresh_site(site, call):
    status, out, _ = call("ledger", site)
    assert status == 0
    assert "Nothing has been spent" in out
    assert "left: 8.000." in out


@pytest.mark.parametrize(
    ("unit", "sigma", "words"),
    [
        ("patient", 5.0, "Total for a patient: ε ≤ "),
        ("slice", 5.0, "Total for a slice (weaker): ε ≤ "),
        ("none", 0.0, "No guarantee: 1 of 1 stage(s) trained without privacy"),
    ],
)
def test_the_ledger_says_what_was_spent_and_on_what_promise(site, call, unit, sigma, words):
    PrivacyLedger(site).reserve(event(unit=unit, sigma=sigma))
    status, out, _ = call("ledger", site)
    assert status == 0
    assert words in out


def test_the_ledger_as_json(site, call):
    PrivacyLedger(site).reserve(event(unit="none", sigma=0))
    status, out, _ = call("ledger", site, "--json")
    tree = json.loads(out)
    assert status == 0
    assert (tree["guarantee"], tree["total"][0]) == (False, {"delta": 0.05, "prv": None, "rdp": None})
    assert tree["last_hash"] == PrivacyLedger(site).spent(0.05).last_hash


def test_a_damaged_ledger_is_told_in_words_and_the_advice_works(site, call):
    PrivacyLedger(site).reserve(event())
    damage_edit(site)
    status, _, err = call("ledger", site)
    assert is_one_paragraph(status, err)
    assert "line 2 is torn, edited or out of place. Expected: an unbroken chain" in err
    advice = re.search(r"run cmrfed (ledger .*): what can be read", err)
    status, out, _ = call(*shlex.split(advice[1]))
    assert status == 0
    assert "Repaired: what happened" in out
    assert "No guarantee: " in out
    assert call("ledger", site)[1] == out
    status, _, err = call("ledger", site, "--repair", "once more")
    assert is_one_paragraph(status, err)
    assert "nothing to repair" in err


def test_a_ledger_without_policy_takes_delta(site, call):
    status, _, err = call("ledger", site, "--delta", 0.01)
    assert is_one_paragraph(status, err)
    assert "the site has a δ of its own" in err
    (site / "policy.yaml").unlink()
    status, out, _ = call("ledger", site, "--delta", 0.01)
    assert status == 0
    assert "There is no policy.yaml" in out
    assert "at δ = 0.01" in out


# --- pre-training -------------------------------------------------------------------------------------
def test_pretrain_makes_it_once_and_prints_where_it_lies(recipe, call, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    short = "{rounds: 1, local_steps: 1, batch_size: 1}"
    words = ("pretrain", recipe, "--set", f"pretrain={{patients: 1, scanners: 1, mask: {short}, image: {short}}}")
    status, out, _ = call(*words)
    assert status == 0
    assert Path(out.strip()).parent == tmp_path / "cache" / "cmrfed"
    assert Generator.load(Path(out.strip()) / "mask").config.codec == "mask"
    monkeypatch.setattr("cmrfed.pipeline.pretrain.train_publicly", lambda *_: sys.exit(7))
    assert call(*words)[:2] == (0, out)


def test_pretrain_needs_its_section(recipe, call):
    status, _, err = call("pretrain", recipe)
    assert is_one_paragraph(status, err)
    assert "the recipe has no pre-training" in err


def test_the_plan_of_the_private_recipe(call, tmp_path):
    recipe = Path(__file__).parents[3] / "configs" / "recipes" / "acdc-private.yaml"
    status, out, _ = call("run", recipe, "--dry-run", "--run-dir", tmp_path / "run", "--data", "cohorts/acdc")
    plan = yaml.safe_load(out)["plan"]
    promise, image, mask, start = plan["privacy"]
    assert status == 0
    assert "unit patient" in promise
    assert "target 8" in promise
    assert mask == "  mask: keeps its pre-trained weights; no site trains it."
    assert image.startswith("  image: σ = ")
    assert "parameters in 32 public directions" in image
    assert "phantom alone" in start
    assert plan["stages"]["image"]["slices_seen_per_site"] == 20 * 15 * 8 // 2
    assert not (tmp_path / "run").exists()


# --- the disk -----------------------------------------------------------------------------------------
def test_a_full_disk_is_told_in_words_and_leaves_nothing(small_disk, call, tmp_path):
    status, _, err = call("phantom", small_disk / "scans", "--patients", 1, "--sites", 1)
    assert is_one_paragraph(status, err.strip().splitlines()[-1])
    assert "No space left" in err
    assert not list(small_disk.iterdir())


def test_a_generator_that_does_not_fit_on_the_disk_is_an_error_of_the_disk(small_disk):
    with pytest.raises(OSError, match="No space left"):
        tiny_generator().save(small_disk / "generator")
    assert not list(small_disk.iterdir())


def test_a_cohort_that_does_not_fit_on_the_disk_leaves_nothing(small_disk):
    with pytest.raises(OSError, match=r"No space left|requested and \d+ written"):
        blob_cohort(small_disk / "cohort", 12, size=64)
    assert not list(small_disk.iterdir())


def test_an_error_of_the_disk_is_one_paragraph_with_the_file(call, monkeypatch, tmp_path):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/run.json")

    monkeypatch.setattr("cmrfed.report.html.write_report", full)
    status, _, err = call("report", tmp_path)
    assert is_one_paragraph(status, err)
    assert "(runs/x/run.json). Got: No space left on device." in err


def test_debug_shows_where(call, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["cmrfed", "report", str(tmp_path / "nowhere"), "--debug"])
    with pytest.raises(Exception, match="nowhere"):
        main()


# --- Ctrl-C -------------------------------------------------------------------------------------------
def test_an_interruption_ends_with_status_130(call, monkeypatch, tmp_path):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cmrfed.report.html.write_report", stop)
    status, _, err = call("report", tmp_path)
    assert status == 130
    assert err == "Stopped. Nothing half-written is left; the same command carries on.\n"


def test_an_interruption_that_a_library_wraps_in_its_own_error_is_still_one(call, monkeypatch, tmp_path):
    def stop(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ValueError("Error serializing to JSON: KeyboardInterrupt") from error

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr("cmrfed.report.html.write_report", stop)
        status, _, err = call("report", tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 130
    assert err == "Stopped. Nothing half-written is left; the same command carries on.\n"


def _trained(recipe: Path, cohort: Path, run_dir: Path) -> str:
    """Train to the end in this process; digests of both generators."""
    experiment = resolve(recipe, [f"data.cohorts=['{cohort}']"])
    train(begin(experiment, run_dir))
    return str([digest_folder(run_dir / "generators" / stage) for stage in ("mask", "image")])


LISTENING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell starts deaf to it
from cmrfed.cli.main import main
main()
"""


def test_ctrl_c_stops_a_run_that_the_same_command_carries_on_to_the_same_weights(recipe, tmp_path):
    blob_cohort(tmp_path / "cohort", 6)
    run_dir, latest = tmp_path / "run", tmp_path / "run" / "mask" / "LATEST"
    words = ["run", recipe, "--run-dir", run_dir, "--data", tmp_path / "cohort"]
    running = subprocess.Popen([sys.executable, "-c", LISTENING, *words], stderr=subprocess.PIPE, text=True)
    while not latest.exists() and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 130, err
    assert err.endswith("Stopped. Nothing half-written is left; the same command carries on.\n")
    assert "Traceback" not in err
    assert not [path for path in run_dir.rglob("*") if path.name.endswith((".part", ".partial", ".old"))]
    assert read_json(latest)["round"] >= 1
    assert not (run_dir / "generators" / "image").exists()
    resumed = _trained(recipe, tmp_path / "cohort", run_dir)
    assert resumed == _trained(recipe, tmp_path / "cohort", tmp_path / "whole")


# --- sweep and plan -------------------------------------------------------------------------------
SWEEP = "name: s\nrecipe: tiny.yaml\ngrid: {seed: [0, 1]}\n"
PRIVATE_RECIPE = (
    RECIPE + "federation: {weighting: equal}\nprivacy: {unit: patient, epsilon: 8, declared_patients: 30}\n"
)


@pytest.fixture
def sweep_file(recipe: Path) -> Path:
    path = recipe.parent / "sweep.yaml"
    path.write_text(SWEEP)
    return path


def test_the_dry_run_of_a_sweep_shows_its_points_and_touches_nothing(call, sweep_file, tmp_path):
    status, out, _ = call("sweep", sweep_file, "--run-dir", tmp_path / "run", "--data", "cohort", "--dry-run")
    assert status == 0
    assert "sweep s: 2 points" in out
    assert out.count("unfinished") == 2
    assert not (tmp_path / "run").exists()


def test_a_sweep_that_cannot_be_used_is_one_paragraph(call, sweep_file, tmp_path):
    sweep_file.write_text(SWEEP.replace("seed:", "sed:"))
    status, _, err = call("sweep", sweep_file, "--run-dir", tmp_path / "run")
    assert is_one_paragraph(status, err)
    assert "did you mean seed?" in err


def test_a_sweep_with_points_that_failed_says_which_and_exits_with_an_error(call, sweep_file, tmp_path):
    status, out, err = call("sweep", sweep_file, "--run-dir", tmp_path / "run", "--data", tmp_path / "nowhere")
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: 2 of 2 points are not finished. Got: seed 0: ")
    assert "nowhere" in last
    assert out.strip() == str(tmp_path / "run" / "report.html")
    assert "nowhere" in (tmp_path / "run" / "results.csv").read_text()


def test_plan_says_what_a_target_means_for_each_site(call, recipe):
    recipe.write_text(PRIVATE_RECIPE)
    status, out, _ = call("plan", recipe, "--patients", "20,40", "--epsilon", 8)
    assert status == 0
    assert "2 site(s): feasible." in out
    assert "σ alone, image" in out


def test_plan_of_what_cannot_be_met_exits_with_an_error(call, recipe):
    recipe.write_text(PRIVATE_RECIPE)
    status, out, err = call("plan", recipe, "--patients", "20", "--epsilon", 1e-6, "--delta", 1e-6)
    assert is_one_paragraph(status, err)
    assert "NOT feasible" in out


def test_patients_of_a_plan_are_numbers(call, recipe):
    status, _, err = call("plan", recipe, "--patients", "many", "--epsilon", 8)
    assert status == 1
    assert "--patients cannot be read" in err


# --- a run in progress ----------------------------------------------------------------------------
def test_nothing_is_written_into_a_run_in_progress(call, tmp_path):
    cohort = tiny_cohort(tmp_path / "cohort", 4)
    with other_owner(tmp_path / "run") as pid:
        before = content(tmp_path)
        synthesized = call("synthesize", tmp_path / "run", "--out", tmp_path / "run" / "synthetic", "--force")
        sets = ["--train", cohort.root, "--holdout", cohort.root, "--synthetic", tmp_path / "none"]
        judged = call("evaluate", *sets, "--out", tmp_path / "run" / "evaluation" / "again")
        for status, _, err in (synthesized, judged):
            assert status == 1
            assert f"pid {pid} on" in err
        assert content(tmp_path) == before


def test_two_evaluations_do_not_share_a_folder(call, tmp_path):
    cohort = tiny_cohort(tmp_path / "cohort", 4)
    sets = ["--train", cohort.root, "--holdout", cohort.root, "--synthetic", tmp_path / "none"]
    with other_owner(tmp_path / "out"):
        status, _, err = call("evaluate", *sets, "--out", tmp_path / "out")
    assert status == 1
    assert "the evaluation folder" in err


# --- names of folders --------------------------------------------------------------------------------
ODD = [
    "a b", " lead", "trail ", "Zürich", "ε×π", "日本", "😀", "nb\u00a0sp", "soft\u00adhy", "zero\u200bwidth",
    "\u202ertl", "back\\slash", "both ' and \"", "#1", "50%", "a=b", "a,b", "[x]", "{a: b}", "*", "?", "a: b", "- a",
    "-dash", "dot.", "..dots", "!tag", "&a", "*a", "|", ">", "~", "null", "true", "1e3", "1:30", "2026-01-01", "a\tb",
    "bell\x07", "line\nline", "\x85", "\u2028", "del\x7f", "\ufeffbom", "`x`", "$HOME", "%41", "a\rb", "'", "Ä\u0308",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_cohort_of_any_name_is_found(call, recipe, tmp_path, name, monkeypatch):
    """Absolute, and relative to the folder that one is in."""
    place = tmp_path / name
    place.mkdir()
    seen = []
    monkeypatch.setattr(pipeline, "dry_run", lambda experiment: seen.append(experiment.data.cohorts) or {})
    monkeypatch.chdir(tmp_path)
    for word in (f"--data={place}", f"--data={Path('.', name)}"):
        status, _, err = call("run", recipe, "--run-dir", tmp_path / "run", word, "--dry-run")
        assert (status, err) == (0, "")
    assert seen == [(str(place),)] * 2


@pytest.mark.parametrize("name", ["line\nline", "a\rb", "\u2028", "\x85", "a b [x]"], ids=ascii)
def test_an_error_about_any_name_is_one_paragraph(call, recipe, tmp_path, name):
    status, _, err = call("run", recipe, "--run-dir", tmp_path / "run", f"--data={tmp_path / name}")
    assert is_one_paragraph(status, err)
    assert "is not a cohort" in err


@given(st.text(min_size=1, max_size=20))
def test_quoted_text_is_itself_in_yaml_and_in_flowers_configuration(text):
    assert load(quoted(text), "x") == text
    with contextlib.suppress(UnicodeEncodeError):
        text.encode()
        assert parse_config_args([f"before=1 path={toml_text(text)} after='x y'"])["path"] == text
