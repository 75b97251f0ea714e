"""nnU-Net v2 as a second segmenter of the same arms, where it is installed (Isensee et al., Nature Methods 2021).

It plans and trains its own 2-D network, all by its own code: nothing here changes what it does but the length of the
training. It reads its folders from the environment when it is imported and starts processes of its own, so it runs in a
process beside this one, whose words go to ``log.txt``. Volumes are given to it on the pixel grid of the cohort, as
slices are to the reference segmenter; distances are measured in mm afterwards.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from cmrfed.core.artifacts import digest_bytes, digest_json, read_json, write_json, write_text
from cmrfed.core.device import HOST
from cmrfed.core.errors import EvaluationError
from cmrfed.core.progress import track
from cmrfed.data.cohort import Cohort
from cmrfed.data.labels import Label
from cmrfed.evaluation.names import HOLDOUT
from cmrfed.evaluation.results.catalogue import unavailable, word
from cmrfed.evaluation.results.result import Findings
from cmrfed.evaluation.settings import NNUNET, NnunetConfig
from cmrfed.evaluation.slices import SliceSet, rows_of
from cmrfed.evaluation.utility.arms import ARMS, Runs, arms_findings
from cmrfed.evaluation.utility.contours import Scored
from cmrfed.evaluation.utility.segmenter import Patients, score_volumes

INSTALL = (
    "pip install 'cmrfed[nnunet]', or, to keep this build of torch, pip install --no-deps -r requirements-nnunet.txt"
)
NUMBER, DATASET = 1, "Dataset001_CMRFed"
SPACING = (10.0, 1.0, 1.0)
"""Spacing of slices, rows and columns given to nnU-Net: in pixels, slices far apart, which is the same in 2-D."""
_IMPORTS = "import nnunetv2.run.run_training, nnunetv2.inference.predict_from_raw_data"

Case = tuple[np.ndarray, np.ndarray]
"""Image float32 (Z, H, W) and mask uint8 (Z, H, W) of one volume."""


def missing() -> str | None:
    """Why nnU-Net cannot train here; None where it can. Asked in a process of its own, as importing it prints."""
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", _IMPORTS], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else None


# --- what it is given -----------------------------------------------------------------------------
@dataclass(frozen=True)
class Cases:
    """Cases that are read when they are asked for: memory holds one of them.

    Args:
        readers: What reads each.
    """

    readers: tuple[Callable[[], Case], ...]

    def __len__(self) -> int:
        return len(self.readers)

    def __getitem__(self, number: int) -> Case:
        return self.readers[number]()

    def __iter__(self) -> Iterator[Case]:
        return (read() for read in self.readers)

    def __add__(self, others: "Cases") -> "Cases":
        return Cases(self.readers + others.readers)


def cases_of_cohort(cohort: Cohort) -> Cases:
    """All volumes with masks."""

    def case(patient: int, number: int) -> Case:
        volume = cohort.volumes(patient)[number]
        if volume.mask is None:
            raise AssertionError(f"{volume.patient_id} has no mask")
        return np.asarray(volume.image, np.float32), volume.mask

    masked = [i for i, record in enumerate(cohort.patients) if record.has_mask]
    return Cases(tuple(partial(case, i, number) for i in masked for number in range(len(cohort.volumes(i)))))


def cases_of_slices(slices: SliceSet) -> Cases:
    """All cases with masks."""
    chosen = slices.take(slices.has_mask)

    def case(rows: np.ndarray) -> Case:
        return np.asarray(chosen.images[rows], np.float32), np.asarray(chosen.masks[rows])

    return Cases(tuple(partial(case, rows) for rows in rows_of(chosen.cases).values()))


@dataclass(frozen=True)
class _Images:
    """The images of all volumes with masks of some sets, one after the other, as often as they are asked for."""

    sets: tuple[Patients, ...]

    def __iter__(self) -> Iterator[np.ndarray]:
        for patients in self.sets:
            yield from (np.asarray(v.image, np.float32) for v in patients.iter_volumes() if v.mask is not None)


def _renumbered(labels: Sequence[Label]) -> np.ndarray:
    """Table (4,) that numbers ``labels`` 1, 2, … without gaps, as nnU-Net asks, and sends all else to background."""
    table = np.zeros(len(Label), np.uint8)
    table[[int(v) for v in sorted(labels)]] = np.arange(1, len(labels) + 1)
    return table


def _write_cases(folder: Path, cases: Cases, labels: Sequence[Label]) -> None:
    """A raw data set in nnU-Net's layout."""
    table, affine = _renumbered(labels), np.diag([*SPACING[::-1], 1.0])
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number, (image, mask) in enumerate(cases):
        nib.save(nib.Nifti1Image(image.transpose(2, 1, 0), affine), folder / "imagesTr" / f"c{number:05d}_0000.nii.gz")
        nib.save(nib.Nifti1Image(table[mask].transpose(2, 1, 0), affine), folder / "labelsTr" / f"c{number:05d}.nii.gz")
    names = {"background": 0} | {label.name: int(table[label]) for label in sorted(labels)}
    about = {"channel_names": {"0": "cineMRI"}, "labels": names, "numTraining": len(cases), "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", about)


# --- one training ---------------------------------------------------------------------------------
def _found(
    cases: Cases,
    images: Iterable[np.ndarray],
    labels: Sequence[Label],
    settings: Mapping[str, Any],
    out: Path,
    device: torch.device,
) -> list[np.ndarray]:
    """Train on the cases, or read what was trained on them before, and segment the images (Z, H, W).

    A training that was stopped goes on from nnU-Net's last checkpoint; the trained weights stay in ``out``. The images
    are gone through twice.

    Raises:
        EvaluationError: nnU-Net ended without a result.
    """
    data = [digest_bytes(part.tobytes()) for case in cases for part in case]
    here = out / digest_json([data, settings, [int(v) for v in sorted(labels)]])[:24]
    asked = digest_json([digest_bytes(image.tobytes()) for image in images])[:24]
    found = here / f"found-{asked}.npz"
    if not found.is_file():
        if not (here / "job.json").is_file():
            shutil.rmtree(here, ignore_errors=True)
            _write_cases(here / "nnUNet_raw" / DATASET, cases, labels)
            write_json(here / "job.json", dict(settings))
        _save(here / f"asked-{asked}.npz", images)
        _run(here, asked, device)
    with np.load(found) as kept:
        back = np.array([0, *sorted(labels)], np.uint8)
        return [back[kept[f"arr_{i}"]] for i in range(len(kept.files))]


def _save(path: Path, arrays: Iterable[np.ndarray]) -> None:
    """As `numpy.savez_compressed`, but one array at a time."""
    part = path.with_name(f".{path.name}")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, array in enumerate(arrays):
            with archive.open(f"arr_{number}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    part.replace(path)


def _run(here: Path, asked: str, device: torch.device) -> None:
    """Run :func:`work` in a process of its own, which ends when this one does."""
    folders = {name: str(here / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    path = os.pathsep.join([str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", f"from {__name__} import work; work()", str(here), asked, str(device)]
    environment = os.environ | folders | {"PYTHONPATH": path}
    log = here / "log.txt"
    with (
        log.open("a", encoding="utf-8") as words,
        subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=words, stderr=subprocess.STDOUT, env=environment
        ) as process,
    ):
        try:
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2][:200]
        raise EvaluationError("nnU-Net ended without a result", got=f"exit code {code}: {last}", do=f"read {log}")


# --- inside the process of nnU-Net ----------------------------------------------------------------
def work() -> None:
    """Plan, train and predict in the folder that the first argument names, on the device that the last one does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    here, asked, device = Path(sys.argv[1]), sys.argv[2], torch.device(sys.argv[3])
    job = read_json(here / "job.json")
    trained = here / "trained.json"
    if not trained.is_file():
        write_json(trained, {"folder": str(_trained(here, job, device).relative_to(here))})
        for name in ("nnUNet_raw", "nnUNet_preprocessed"):
            shutil.rmtree(here / name, ignore_errors=True)
    with np.load(here / f"asked-{asked}.npz") as kept:
        images = (kept[f"arr_{i}"] for i in range(len(kept.files)))
        _save(here / f"found-{asked}.npz", _predicted(here / read_json(trained)["folder"], images, device))
    (here / f"asked-{asked}.npz").unlink()


def _end_with_parent() -> None:
    """The parent holds the other end of standard input: when it is gone, so is this process."""
    os.read(0, 1)
    os._exit(1)


def _trained(here: Path, job: Mapping[str, Any], device: torch.device) -> Path:
    """Plan and preprocess once, then train on all cases; returns the folder that nnU-Net predicts from."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as plan

    if not (here / "planned").is_file():
        plan.extract_fingerprints([NUMBER], num_processes=1)
        plan.plan_experiments([NUMBER])
        plan.preprocess([NUMBER], configurations=("2d",), num_processes=(1,))
        write_text(here / "planned", "")
    if device == HOST:
        os.environ |= {"nnUNet_n_proc_DA": "0"}  # augment in this process: nothing is left behind by a kill
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])
    trainer = _trainer(job, device)
    trainer.run_training()
    (Path(trainer.output_folder) / "checkpoint_best.pth").unlink(missing_ok=True)
    return Path(trainer.output_folder_base)


def _trainer(job: Mapping[str, Any], device: torch.device) -> Any:
    """nnU-Net's trainer, at its last checkpoint where there is one that can be read."""
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    def made() -> Any:
        trainer = get_trainer_from_args(str(NUMBER), "2d", "all", device=device)
        trainer.num_epochs, trainer.num_iterations_per_epoch = job["epochs"], job["iterations"]
        trainer.num_val_iterations_per_epoch = 1  # on the training cases, for its log alone
        return trainer

    trainer = made()
    try:
        maybe_load_checkpoint(trainer, True, False)
    except Exception as error:  # a checkpoint that a kill tore, in one of many ways
        print(f"beginning anew: the last checkpoint cannot be read ({error!r})")
        shutil.rmtree(trainer.output_folder)
        trainer = made()
    return trainer


def _predicted(folder: Path, images: Iterable[np.ndarray], device: torch.device) -> Iterator[np.ndarray]:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), ("all",))
    about = {"spacing": list(SPACING)}
    return (predictor.predict_single_npy_array(image[None], about).astype(np.uint8) for image in images)


# --- the arms -------------------------------------------------------------------------------------
def nnunet_utility(
    real: Cohort,
    synthetic: SliceSet,
    holdout: Cohort,
    external: Mapping[str, Patients],
    config: NnunetConfig,
    out: Path,
    seed: int = 0,
    device: torch.device = HOST,
) -> Findings:
    """Train nnU-Net on real, synthetic and both, and score it as the reference segmenter is; or say why not.

    ``both`` is all cases of both together: nnU-Net draws from its cases alike, so a large synthetic set outweighs.

    Args:
        real: Patients that the generators learned from.
        synthetic: All synthetic slices.
        holdout: Patients that nothing has learned from.
        external: Name => patients of another data set.
        config: Length of the training.
        out: Folder for trained networks, which are used again.
        seed: Of the training.
        device: Where it trains.
    """
    why = missing()
    if why:
        return _unavailable(config, f"nnU-Net v2 cannot run here ({why}). Do: {INSTALL}")
    settings = config.model_dump() | {
        "seed": seed,
        "threads": torch.get_num_threads(),
        "version": importlib.metadata.version("nnunetv2"),
    }
    first, second = cases_of_cohort(real), cases_of_slices(synthetic)
    arms = {"real": first, "synthetic": second, "both": first + second}
    tests: dict[str, Patients] = {HOLDOUT: holdout, **external}
    images = _Images(tuple(tests.values()))
    scores: dict[str, dict[str, Runs]] = {test: {} for test in tests}
    try:
        with track(f"utility, {NNUNET}", len(ARMS)) as bar:
            for arm in ARMS:
                found = iter(_found(arms[arm], images, real.labels, settings, out, device))
                for test, patients in tests.items():
                    scores[test][arm] = [score_volumes(lambda _: next(found), patients, real.labels)]  # noqa: B023
                bar.advance(note=word("arm", arm, "utility.dice"))
    except EvaluationError as error:
        return _unavailable(config, str(error))
    out_of_all = Findings()
    for test, by_arm in scores.items():
        out_of_all += arms_findings(Scored(test, config.key, named={"segmenter": config.title}), by_arm, {})
    return out_of_all


def _unavailable(config: NnunetConfig, reason: str) -> Findings:
    of, named = {"segmenter": config.key}, {"segmenter": config.title}
    return Findings(metrics=(unavailable("utility.dice", reason, of, named=named),))
