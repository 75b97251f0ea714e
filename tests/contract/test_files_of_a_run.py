"""Whatever somebody does to a file of a run, its readers answer or refuse in one paragraph."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cmrfed.core.artifacts import read_json, write_json
from cmrfed.core.errors import CmrfedError
from cmrfed.data.partition import read_split
from cmrfed.deploy.submission import Submission, read_submission
from cmrfed.federation.server.metrics import SiteRound
from cmrfed.federation.server.statements import Heard, read_statements
from cmrfed.federation.site.audit import read_audits
from cmrfed.figures.pipeline import facts_of
from cmrfed.figures.study import read_run as read_study_run
from cmrfed.pipeline.files.record import RecordWriter, read_run
from cmrfed.pipeline.privacy.guarantee import claim
from cmrfed.pipeline.privacy.plan import PrivacyPlan
from cmrfed.pipeline.tracking import scalars_of
from cmrfed.report.html import write_report
from cmrfed.sweep.work import record_of

OLD = Path(__file__).parents[1] / "golden" / "run-0.1"
ODD = (None, True, -1, 0, 10**30, 1.5, "", "x", "NaN", [], [None], {}, {"a": 1}, [[1]], "2026-13-45")
EXPERIMENT = read_run(OLD).experiment
PLAN = PrivacyPlan(EXPERIMENT)

Reader = Callable[[Path], object]


def _with_ledgers(run: Path) -> None:
    """ledgers.json and submission.json, which a simulated run of that version did not leave, and an audit of a site."""
    heard = {}
    for name, site in read_json(run / "image" / "round-0002" / "metrics.json")["sites"].items():
        spent = SiteRound.model_validate(site).spent
        assert spent is not None
        heard[name] = Heard(largest=spent, last=spent.ledger_hash, losses=spent.at).model_dump(mode="json")
    write_json(run / "ledgers.json", heard)
    Submission(digest=EXPERIMENT.digest, time="2026-01-01T00:00:00+00:00", flower_run="1", resumed_at=2).write(run)


READERS: dict[str, tuple[Reader, ...]] = {
    "run.json": (
        write_report,
        scalars_of,
        read_study_run,
        lambda run: facts_of(read_study_run(run)),
        lambda run: RecordWriter(run, EXPERIMENT),
        record_of,
    ),
    "image/round-0002/metrics.json": (write_report, scalars_of, lambda run: claim(PLAN, run)),
    "image/LATEST": (lambda run: claim(PLAN, run),),
    "ledgers.json": (lambda run: read_statements(run / "ledgers.json"), lambda run: claim(PLAN, run)),
    "audit.json": (write_report, lambda run: claim(PLAN, run), read_audits),
    "split.json": (read_split, lambda run: claim(PLAN, run)),
    "synthetic/manifest.json": (write_report,),
    "evaluation/evaluation.json": (write_report, scalars_of, read_study_run),
    "submission.json": (read_submission,),
}


def _places(tree: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each node below the root."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*here, key)
        yield from _places(value, (*here, key))


def _edited(tree: Any, place: tuple[Any, ...], replacement: Any, drop: bool) -> Any:
    tree = json.loads(json.dumps(tree))
    node = tree
    for key in place[:-1]:
        node = node[key]
    if drop:
        del node[place[-1]]
    else:
        node[place[-1]] = replacement
    return tree


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(OLD, tmp_path_factory.mktemp("fuzz") / "run"))
    _with_ledgers(folder)
    return folder


def _answers_or_refuses(run: Path, name: str, content: bytes) -> None:
    """Put the content in place of a file, ask all of its readers, and put the file back."""
    whole = (run / name).read_bytes()
    (run / name).write_bytes(content)
    try:
        for reader in READERS[name]:
            try:
                reader(run)
            except CmrfedError as error:
                assert len(str(error).splitlines()) == 1, f"{name}: one paragraph"  # noqa: PT017
    finally:
        (run / name).write_bytes(whole)


@pytest.mark.parametrize("name", READERS)
def test_whole_it_is_read(run: Path, name: str) -> None:
    for reader in READERS[name]:
        if name not in ("run.json", "audit.json"):  # a study refuses this old data set; a site's audits have a key
            reader(run)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_node_may_be_gone_or_of_another_kind(run: Path, name: str, data: st.DataObject) -> None:
    tree = read_json(run / name)
    place = data.draw(st.sampled_from(list(_places(tree))))
    edited = _edited(tree, place, data.draw(st.sampled_from(ODD)), data.draw(st.booleans()))
    _answers_or_refuses(run, name, json.dumps(edited).encode())


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40))
@example(content=b"")
@example(content=b"[]")
@example(content=b"null")
@example(content=b"3")
@example(content=b"[" * 100_000)
@example(content=b'{"a":' * 900 + b"0" + b"}" * 900)
@example(content=b'{"schema_version": 99}')
def test_any_bytes_may_be_in_its_place(run: Path, name: str, content: bytes) -> None:
    _answers_or_refuses(run, name, content)


@pytest.mark.parametrize("name", READERS)
def test_it_may_be_torn_anywhere(run: Path, name: str) -> None:
    whole = (run / name).read_bytes()
    for share in (0.1, 0.5, 0.9):
        _answers_or_refuses(run, name, whole[: int(len(whole) * share)])
