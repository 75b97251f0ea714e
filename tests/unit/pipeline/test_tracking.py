import importlib.util
import shutil
from pathlib import Path

import pytest

from cmrfed.core.artifacts import read_json, write_json
from cmrfed.core.errors import ConfigError, DataError
from cmrfed.evaluation.pictures import REAL_PATIENTS
from cmrfed.pipeline import tracking
from cmrfed.pipeline.tracking import (
    MLflow,
    Scalar,
    TensorBoard,
    artifacts,
    scalars_of,
    track_run,
    trackers,
    tracking_callback,
)
from tests.plugin_world import install
from tests.run_folder import write_run_folder

tensorboard = pytest.mark.skipif(
    not importlib.util.find_spec("tensorboard"), reason="tensorboard is not installed: pip install 'cmrfed[tracking]'"
)
mlflow = pytest.mark.skipif(
    not importlib.util.find_spec("mlflow"), reason="mlflow is not installed: pip install 'cmrfed[tracking]'"
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "first"
    write_run_folder(folder)
    return folder


def events(folder: Path) -> list[tuple[str, int, float]]:
    """Everything in event files, doubles included."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return [(tag, e.step, e.value) for tag in read.Tags()["scalars"] for e in read.Scalars(tag)]


# --- numbers of a run --------------------------------------------------------------------------
def test_rounds_and_evaluation_become_numbers(run_dir: Path) -> None:
    found = {(s.tag, s.step): s.value for s in scalars_of(run_dir)}
    rows = read_json(run_dir / "image" / "round-0003" / "metrics.json")["sites"].values()
    assert found["image/loss", 3] == pytest.approx(sum(row["loss"] for row in rows) / len(rows))
    assert found["image/sites that answered", 3] == 3
    assert found["image/sites that answered", 5] == 2, "one was missing"
    judged = read_json(run_dir / "evaluation" / "evaluation.json")["metrics"]
    told = [tag for tag, step in found if step == tracking.FINAL]
    assert len(told) == sum(metric.get("value") is not None for metric in judged)


def test_of_a_private_round_no_loss_is_told_and_the_largest_epsilon_is(run_dir: Path) -> None:
    path = run_dir / "image" / "round-0003" / "metrics.json"
    metrics = read_json(path) | {"seconds": None}
    for epsilon, row in zip((1.0, 3.0, 2.0), metrics["sites"].values(), strict=True):
        losses = [{"delta": delta, "prv": epsilon, "rdp": epsilon} for delta in (0.01, 0.001)]
        row |= {"loss": None, "spent": {"unit": "patient", "at": losses, "ledger_hash": "ab" * 32}}
    write_json(path, metrics)
    found = {(s.tag, s.step): s.value for s in scalars_of(run_dir)}
    assert found["image/epsilon, largest of the sites so far", 3] == 3.0
    assert ("image/loss", 3) not in found
    assert ("image/seconds", 3) not in found
    metrics["sites"]["site-1"]["spent"]["at"][0]["prv"] = None  # without a bound for one there is none for all
    write_json(path, metrics)
    assert ("image/epsilon, largest of the sites so far", 3) not in {(s.tag, s.step) for s in scalars_of(run_dir)}


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a run\. Got: no run\.json\. Expected: a folder made by `cmrfed run`"):
        scalars_of(tmp_path)
    with pytest.raises(ConfigError, match=r"no tracker was named\. Do: give --tensorboard DIR, --mlflow URI or --tr"):
        track_run(tmp_path, [])


# --- TensorBoard --------------------------------------------------------------------------------
@tensorboard
def test_tensorboard_has_each_number_once_however_often_it_is_told(run_dir: Path, tmp_path: Path) -> None:
    later = run_dir / "image" / "round-0012"
    hidden = later.rename(tmp_path / "not-yet")
    send = tracking_callback(run_dir, [TensorBoard(tmp_path / "board")])
    send()
    send()
    hidden.rename(later)
    tracking_callback(run_dir, [TensorBoard(tmp_path / "board")])()  # a run that is carried on begins anew
    written = events(tmp_path / "board" / "first")
    assert sorted((tag, step) for tag, step, _ in written) == sorted((s.tag, s.step) for s in scalars_of(run_dir))
    values = {(s.tag, s.step): s.value for s in scalars_of(run_dir)}
    assert all(value == pytest.approx(values[tag, step], rel=1e-6) for tag, step, value in written)


@tensorboard
def test_two_runs_of_one_folder_name_have_places_of_their_own(run_dir: Path, tmp_path: Path) -> None:
    """Copies with other numbers; told again and again, in any order, each updates its own."""
    runs = [tmp_path / name / "first" for name in ("a", "b", "c [x] 'é'")]
    for number, other in enumerate(runs):
        shutil.copytree(run_dir, other)
        path = other / "image" / "round-0003" / "metrics.json"
        metrics = read_json(path)
        for row in metrics["sites"].values():
            row["loss"] += 100 * number
        write_json(path, metrics)
    board = TensorBoard(tmp_path / "board")
    places = [track_run(run, [board])[1][0].removeprefix("TensorBoard: ") for run in runs]
    for run, place in zip(runs[::-1], places[::-1], strict=True):
        assert track_run(run, [TensorBoard(tmp_path / "board")])[1] == [f"TensorBoard: {place}"]
    assert len(set(places)) == 3
    assert sorted(map(str, (tmp_path / "board").iterdir())) == sorted(places)
    for run, place in zip(runs, places, strict=True):
        values = {(s.tag, s.step): s.value for s in scalars_of(run)}
        written = events(Path(place))
        assert len(written) == len(values)
        assert all(value == pytest.approx(values[tag, step], rel=1e-6) for tag, step, value in written)


@tensorboard
def test_an_unmarked_place_is_kept_if_its_numbers_are_this_runs(run_dir: Path, tmp_path: Path) -> None:
    board = TensorBoard(tmp_path / "board")
    (_, (place,)) = track_run(run_dir, [board])
    (tmp_path / "board" / "first" / tracking.OWNER).unlink()
    assert track_run(run_dir, [board])[1] == [place]
    (tmp_path / "board" / "first" / tracking.OWNER).unlink()
    other = tmp_path / "other" / "first"
    shutil.copytree(run_dir, other)
    shutil.rmtree(other / "image" / "round-0012")
    assert track_run(other, [board])[1] != [place]


@tensorboard
def test_a_number_that_has_changed_is_written_again(run_dir: Path, tmp_path: Path) -> None:
    board, path = TensorBoard(tmp_path / "board"), run_dir / "evaluation" / "evaluation.json"
    track_run(run_dir, [board])
    judged = read_json(path)
    judged["metrics"][0]["value"] = 0.123
    write_json(path, judged)
    track_run(run_dir, [board])
    (tag,) = {scalar.tag for scalar in scalars_of(run_dir) if scalar.value == 0.123}
    assert [round(value, 6) for name, _, value in events(tmp_path / "board" / "first") if name == tag][-1] == 0.123


@tensorboard
def test_numbers_that_do_not_arrive_are_an_error(run_dir: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", lambda *_, **__: None)
    with pytest.raises(DataError, match=r"\d+ numbers have not arrived in TensorBoard\. Got: image/|autoencoder|mask"):
        track_run(run_dir, [TensorBoard(tmp_path / "board")])


# --- MLflow -------------------------------------------------------------------------------------
@mlflow
def test_mlflow_has_settings_numbers_and_files_once(run_dir: Path, tmp_path: Path, monkeypatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    record = read_json(run_dir / "run.json")
    record["experiment"]["many"] = {f"setting-{number}": number for number in range(150)}
    write_json(run_dir / "run.json", record | {"finished": "2026-01-01T00:00:00+00:00"})
    (run_dir / "report.html").write_text("<html></html>")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(2):
        track_run(run_dir, [MLflow(uri)])
    client, record = MlflowClient(tracking_uri=uri), read_json(run_dir / "run.json")
    experiment = client.get_experiment_by_name(record["experiment"]["name"])
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "image/loss")
    assert [point.step for point in history] == list(range(1, 13))
    assert run.data.params["seed"] == str(record["experiment"]["seed"])
    assert run.data.params["many.setting-149"] == "149", "none is cut off"
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"evaluation"}, (
        "a report with patients stays"
    )


def test_no_tracker_gets_a_picture_or_a_series_of_real_patients(run_dir: Path) -> None:
    assert artifacts(run_dir) == ("evaluation/metrics.csv", "evaluation/pictures/synthetic.png")
    for name in REAL_PATIENTS:
        (run_dir / "evaluation" / "pictures" / f"{name}.png").unlink(missing_ok=True)
    assert artifacts(run_dir)[2:] == ("report.html",), "one that shows none may go"


# --- when it fails ------------------------------------------------------------------------------
def test_a_tracker_that_fails_stops_nothing_and_is_named_once(run_dir: Path, capsys) -> None:
    class Away:
        name = "Away"

        def write(self, run_dir: Path, scalars: list[Scalar]) -> None:
            raise OSError("no space left")

    send = tracking_callback(run_dir, [Away()])
    for _ in range(3):
        send()
    said = capsys.readouterr().err
    assert said.count("Away failed: OSError: no space left. The run goes on") == 1
    with pytest.raises(ConfigError, match=r"Away failed\. Got: no space left"):
        track_run(run_dir, [Away()])


@pytest.mark.parametrize(("module", "asked"), [("tensorboard", (Path("x"), None)), ("mlflow", (None, "sqlite:///x"))])
def test_what_is_not_installed_is_said_before_training(monkeypatch: pytest.MonkeyPatch, module: str, asked) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ConfigError, match=r"is not installed\. Do: pip install 'cmrfed\[tracking\]'"):
        trackers(*asked)


def test_a_run_is_tracked_after_every_round_and_at_the_end(tmp_path: Path) -> None:
    from cmrfed.federation.local_grid import LocalGrid
    from tests.federation_world import federated_run, make_sites, site_roots

    make_sites(tmp_path)
    seen: list[int] = []
    run = federated_run(tmp_path, grid=LocalGrid(site_roots(tmp_path, 3)))
    run.on_round = lambda: seen.append(len(list(tmp_path.glob("image/round-*/metrics.json"))))
    run.start_or_resume()
    assert seen == [1, 2]


# --- plugins ----------------------------------------------------------------------------------------
def test_a_tracker_of_a_plugin_is_made_of_its_address(tmp_path, monkeypatch):
    code = "class Lines:\n    name = 'lines'\n    def __init__(self, address):\n        self.address = address\n"
    install(tmp_path, "cmrfed.trackers", "paint-lines", {"lines": "paint_lines:Lines"}, code)
    monkeypatch.syspath_prepend(tmp_path)
    (made,) = trackers(None, None, ["lines=a=b.txt"])
    assert (made.name, made.address) == ("lines", "a=b.txt")
    with pytest.raises(ConfigError, match=r"a tracker needs an address. Got: lines\. Expected: NAME=ADDRESS, where"):
        trackers(None, None, ["lines"])
    with pytest.raises(ConfigError, match=r"there is no tracker line \(did you mean lines\?\)"):
        trackers(None, None, ["line=x"])
