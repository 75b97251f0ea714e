"""Each message that docs/faq.md quotes is one that the code says, and that it says when it is provoked."""

import ast
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.artifacts import write_json
from cmrfed.core.errors import CmrfedError
from cmrfed.data.cohort import Cohort, write_cohort
from cmrfed.deploy.approval import Approvals
from cmrfed.deploy.checks import probe
from cmrfed.deploy.coordinator import submit
from cmrfed.deploy.inner import nginx_command
from cmrfed.deploy.kit import read_site_kit
from cmrfed.deploy.provision import provision
from cmrfed.evaluation.evaluate import evaluate
from cmrfed.evaluation.settings import EvaluationConfig
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.pipeline import run as pipeline
from cmrfed.pipeline.context import begin as begin_run
from cmrfed.privacy.budget import calibrate_privacy
from cmrfed.privacy.ledger.ledger import History, PrivacyLedger
from cmrfed.privacy.policy import SitePolicy
from cmrfed.privacy.settings import PrivacyConfig
from tests.deployment_world import make_federation, write_recipe
from tests.federation_world import FaultyGrid, federated_run, make_sites, site_roots, tiny_cohort
from tests.support import other_owner
from tests.unit.privacy.ledger.test_ledger import damage_edit, event

ROOT = Path(__file__).parents[2]
MESSAGES = re.findall(r"^```text\n(.+)\n```$", (ROOT / "docs" / "faq.md").read_text(), flags=re.M)
ANY = "…"
PARTS = ("got", "expected", "do")


def fits(quote: str, said: str) -> bool:
    """Whether a quoted message is what was said; … stands for anything."""
    return re.fullmatch(".*".join(re.escape(part) for part in quote.split(ANY)), said, flags=re.S) is not None


# --- found in the code ----------------------------------------------------------------------------
def said_in(source: str) -> list[str]:
    """Every error of a source as it is printed, with … for what is put in."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Name | ast.Attribute)):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        if re.search(r"(Error|Refused|Exhausted|InUse)$", name) and name != "ValueError":
            parts = {str(word.arg): words_of(word.value) for word in node.keywords if word.arg in PARTS}
            found.append(str(CmrfedError(words_of(node.args[0]), **parts)))
    return found


def words_of(value: ast.expr) -> str:
    if isinstance(value, ast.JoinedStr):
        return "".join(words_of(part) for part in value.values)
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ANY


SAID = [text for path in (ROOT / "cmrfed").rglob("*.py") for text in said_in(path.read_text())]


def test_the_page_has_messages():
    assert len(MESSAGES) >= 15
    assert len(set(MESSAGES)) == len(MESSAGES)
    assert len(SAID) > 200


@pytest.mark.parametrize("message", MESSAGES, ids=lambda text: text[:40])
def test_a_quoted_message_is_said_by_the_code(message):
    by_hand = message.startswith("A file cannot be used")  # `main` makes this one of an error of the system
    assert by_hand or any(len(said) > 20 and fits(said, message) for said in SAID)


def test_a_message_that_nobody_says_is_found():
    said = said_in('raise ConfigError(f"{a} is bad", got=1, do="mend it")')
    assert said == ["… is bad. Got: …. Do: mend it."]
    assert fits(said[0], "x.yaml is bad. Got: 1. Do: mend it.")
    assert not fits(said[0], "x.yaml is bad. Got: 1. Do: leave it.")


# --- provoked -------------------------------------------------------------------------------------
NET = {"generator": {"backbone": {"channels": [8]}}}
TINY = {"name": "x", "data": {"size_px": 16, "partition": {"sites": 2}}, "mask": NET, "image": NET}
PRIVATE = {"unit": "patient", "epsilon": 8, "declared_patients": 20}


def recipe(folder: Path, **changes: object) -> Experiment:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(TINY | changes))
    return resolve(folder / "recipe.yaml")


def begin(folder: Path, *cohorts: str, seed: int = 0, size_px: int = 16, **data: object) -> None:
    paths = [str(tiny_cohort(folder / name).root) for name in cohorts]
    settings = {"size_px": size_px, "cohorts": paths, "partition": {"sites": 2}, **data}
    begin_run(recipe(folder, data=settings, seed=seed), folder / "run")


def another_run(folder: Path) -> None:
    begin(folder, "a")
    shutil.rmtree(folder / "a")
    begin(folder, "a", seed=1)


def in_use(folder: Path) -> None:
    with other_owner(folder / "run"):
        pipeline.run(recipe(folder), folder / "run")


def shared_patients(folder: Path) -> None:
    cohort = tiny_cohort(folder / "a")
    rest = {"external": {}, "paired": None, "config": EvaluationConfig(), "out": folder / "out"}
    evaluate(synthetic=folder, train=cohort, holdout=cohort, **rest)


def damaged_ledger(folder: Path) -> None:
    ledger = PrivacyLedger.create(folder)
    ledger.commit(ledger.reserve(event(1)))
    damage_edit(folder)
    PrivacyLedger(folder).history()


def own_ledger(folder: Path) -> PrivacyLedger:
    write_json(folder / "site.json", {"name": "ward", "cohort": "cohort"})
    ledger = PrivacyLedger.create(folder)
    ledger.reserve(event(1))
    return ledger


def ledger_is_gone(folder: Path) -> None:
    shutil.rmtree(own_ledger(folder).folder)
    PrivacyLedger.create(folder)


def older_ledger(folder: Path) -> None:
    ledger = own_ledger(folder)
    saved = {name: (ledger.folder / name).read_bytes() for name in ("ledger.jsonl", "ledger.head")}
    ledger.reserve(event(2))
    for name, data in saved.items():
        (ledger.folder / name).write_bytes(data)
    ledger.history()


def ask(patients: int = 20, **changes: object) -> None:
    SitePolicy(epsilon_cap=0.1, delta=0.001).check(event(**changes), History(), patients)


def submit_to_two(folder: Path) -> None:
    provision(make_federation(2), folder / "kits")
    submit(folder / "kits" / "coordinator", write_recipe(folder / "recipe.yaml", sites=3), [])


def call_nobody(folder: Path) -> None:
    provision(make_federation(1), folder / "kits")
    kit = folder / "kits" / "site-0"
    probe(kit, read_site_kit(kit))


def few_sites(folder: Path) -> None:
    make_sites(folder, 2)
    federated_run(folder, grid=LocalGrid(site_roots(folder, 2)), sites=3, min_sites=3).start_or_resume()


def silent_sites(folder: Path) -> None:
    make_sites(folder)
    grid = FaultyGrid(folder, 3, lambda site, kind, reply: None if kind == "train" else reply)
    federated_run(folder, grid=grid, min_sites=3, retries=0).start_or_resume()


def nginx_is_nowhere(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmrfed.deploy.inner.shutil.which", lambda *_, **__: None)
        nginx_command(folder, "gate.conf")


def unmet(folder: Path) -> None:
    calibrate_privacy(PrivacyConfig(**PRIVATE | {"epsilon": 1e-6, "delta": 1e-6}), {"image": 10})


PROVOCATIONS: dict[str, Callable[[Path], object]] = {
    "data.hold_out": lambda folder: recipe(folder, data={"hold_out": 0.5}),
    "there are no patients": begin,
    "size_px 50": lambda folder: recipe(folder, data={"size_px": 50}, mask={}, image={}),
    "sampler dpm++": lambda folder: recipe(folder, image=NET | {"generator": {"sampler": {"name": "dpm++"}}}),
    "federation.weighting": lambda folder: recipe(folder, privacy=PRIVATE),
    "unit patient needs": lambda folder: recipe(folder, privacy={"unit": "patient"}),
    "mask.training.rounds is 0": lambda folder: recipe(folder, mask=NET | {"training": {"rounds": 0}}),
    "cannot be met with": unmet,
    "is not a cohort": lambda folder: Cohort.open(folder),
    "of another size than the recipe": lambda folder: begin(folder, "a", size_px=64),
    "each of several cohorts": lambda folder: begin(folder, "a", "b", partition={"sites": 3}),
    "cannot be split by group": lambda folder: begin(folder, "a", partition={"sites": 2, "scheme": "group"}),
    "the cohort would be empty": lambda folder: write_cohort(
        folder / "c", [], name="c", source="test", size_px=16, labels=(), preparation={}
    ),
    "holds another run": another_run,
    "is in use": in_use,
    "training and hold-out share": shared_patients,
    "has no privacy ledger": lambda folder: PrivacyLedger(folder).history(),
    "ledger is gone": ledger_is_gone,
    "older than what the site": older_ledger,
    "is damaged": damaged_ledger,
    "would exceed the site": lambda _: ask(),
    "does not permit": lambda _: ask(unit="none", sigma=0.0),
    "fewer patients than its policy": lambda _: ask(patients=9),
    "inside secure sums alone": lambda _: SitePolicy(epsilon_cap=8, delta=0.001, secure_threshold=3).check_sum(None),
    "policy.yaml is missing": lambda folder: SitePolicy.load(folder / "policy.yaml"),
    "too few sites": few_sites,
    "misses its quorum": silent_sites,
    "another number of sites": submit_to_two,
    "nginx is not installed": nginx_is_nowhere,
    "cannot be reached": call_nobody,
    "no digest of a bundle": lambda folder: Approvals(folder).approve("abc"),
}


@pytest.mark.parametrize("words", PROVOCATIONS)
def test_a_message_is_quoted_as_it_is_printed(words, tmp_path):
    with pytest.raises(CmrfedError, match=re.escape(words)) as error:
        PROVOCATIONS[words](tmp_path)
    (quoted,) = [message for message in MESSAGES if words in message]
    assert fits(quoted, str(error.value)), f"{quoted}\n{error.value}"


def test_messages_of_the_command_line_are_quoted_as_they_are_printed(call, monkeypatch, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    exists = call("phantom", tmp_path / "out")[2]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/run.json")

    monkeypatch.setattr("cmrfed.report.html.write_report", full)
    no_space = call("report", tmp_path)[2]
    for words, printed in (("exists. Do: choose", exists), ("A file cannot be used", no_space)):
        (quoted,) = [message for message in MESSAGES if words in message]
        assert fits(f"error: {quoted}\n", printed)


def test_every_message_is_provoked():
    by_hand = ("exists. Do: choose", "A file cannot be used")
    assert not [m for m in MESSAGES if not any(words in m for words in (*PROVOCATIONS, *by_hand))]
