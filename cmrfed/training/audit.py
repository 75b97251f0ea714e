"""The audit of private training as it is configured: its step on canaries, and its trainer on patients that are marked.

The trainer is the very one that trains at a site. It is given a cohort of marked patients, and a generator whose
network is real (on small images) and whose losses are not: they pull at the weights by known amounts. So it shows what
reaches a loss, and from what it learns: from pixels of one record at a time, with the configured bound, noise,
denominator, optimizer and learning rate, on the named parameters or along the public directions.
"""

import fnmatch
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from cmrfed.core.device import HOST, normal, to_device, to_host
from cmrfed.core.errors import PrivacyError
from cmrfed.core.precision import granted
from cmrfed.data.cohort import Cohort, PatientRecord, PreparedPatient, Volume, write_cohort
from cmrfed.data.draws import NO_SLICE
from cmrfed.data.labels import Phase
from cmrfed.generators.condition import Condition
from cmrfed.generators.settings import GeneratorConfig
from cmrfed.generators.stages import STAGES, StageName
from cmrfed.generators.trainable import make_trainable
from cmrfed.privacy.audit.checks import Check, Finding, binomial_p, normal_p, squares_p, worst_of, yes_or_no
from cmrfed.privacy.audit.result import AuditResult
from cmrfed.privacy.audit.run import EXACT_NOISE, audit
from cmrfed.privacy.dpsgd.mechanism import MechanismConfig
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.settings import PrivateTraining, Subspace
from cmrfed.training import private
from cmrfed.training.loop import make_optimizer
from cmrfed.training.settings import TrainingConfig
from cmrfed.training.subspace import public_directions

PATIENTS, STEPS = 12, 6
LEAST_RATE = 0.3
"""Sampling rate of the trainer's lines, at least: with less, hardly a marked patient would be read."""
NORMS = (1000.0, 0.3, 1.05)
"""Of the gradients of successive patients, in units of C."""
_DEPTHS = (3, 2)
"""Slices in each phase of the first patient; the next ones have one, two, … more."""
_SUBSPACE = Subspace(rank=4, patients=6, scanners=3, draws=2)
_CLOSE = 1e-5
_GREY_CLOSE = 1e-2
_SOME = 50_000
"""Numbers whose law is looked at."""


def audit_training(
    stage: StageName,
    generator: GeneratorConfig,
    training: TrainingConfig,
    privacy: PrivateTraining,
    device: torch.device,
) -> AuditResult:
    """Audit one stage on a device, in seconds, without any patient.

    Args:
        stage: What is trained.
        generator: As requests name it; a network of the same kind on small images stands for it.
        training: As requests name it.
        privacy: As requests name it.
        device: Where.

    Raises:
        PrivacyError: A step cannot be made with these settings.
    """
    config = MechanismConfig(
        clip_norm=privacy.clip_norm,
        declared_patients=privacy.declared_patients,
        precision=granted(training.precision, device.type),
    )
    found = audit(
        privacy.noise_multiplier,
        config,
        sampling_rate=privacy.sampling_rate,
        make_optimizer=partial(make_optimizer, training),
        device=device,
    )
    checks = check_trainer(stage, generator, training, privacy, device)
    return replace(found, checks=(*found.checks, *checks))


def check_trainer(
    stage: StageName,
    generator: GeneratorConfig,
    training: TrainingConfig,
    privacy: PrivateTraining,
    device: torch.device,
) -> list[Check]:
    """Lines on the trainer: with hardly any noise and each patient's pixels of one value, then as configured."""
    privacy = privacy.model_copy(update={"sampling_rate": max(privacy.sampling_rate, LEAST_RATE)})
    exact = privacy.model_copy(update={"noise_multiplier": EXACT_NOISE})
    plain = training.model_copy(update={"augment": None})
    runs = [
        _MarkedRun(stage, generator, plain, exact, device, tainted=False).run(),
        _MarkedRun(stage, generator, training, privacy, device, tainted=True).run(),
    ]
    faults = [fault for run in runs for fault in run.faults]
    lines = [yes_or_no("trainer: one record at a time, nothing beside the released sums", "nothing else", faults)]
    if any(not run.whole for run in runs):
        return lines
    return [*lines, _rate(runs), _shares(runs), _noise(runs)]


# --- marked patients ----------------------------------------------------------------------------
def _level(patient: int) -> float:
    """The grey of every pixel of a marked patient; exact in float16."""
    return -0.75 + patient / 16


def _marked_cohort(folder: Path, size_px: int, *, tainted: bool) -> Cohort:
    """Patients of one grey and one label each; where tainted, every second one has no number for a grey."""

    def patient(number: int) -> PreparedPatient:
        name, volumes = f"marked-{number:02d}", []
        level = math.nan if tainted and number % 2 else _level(number)
        for phase in Phase:
            shape = (_DEPTHS[phase] + number % 3, size_px, size_px)
            label = 1 + number % 2 if tainted else 1 + number % 3
            image, mask = np.full(shape, level, np.float32), np.full(shape, label, np.uint8)
            volumes.append(Volume(name, phase, image, mask, None))
        return PreparedPatient(PatientRecord(patient_id=name), tuple(volumes))

    made = [patient(number) for number in range(PATIENTS)]
    return write_cohort(folder, made, name="marked", source="audit", size_px=size_px, labels=(1, 2, 3), preparation={})


# --- a generator with known gradients -----------------------------------------------------------
class _Marked:
    """A generator whose network is real and whose losses are known: linear in the weights.

    Args:
        stage: What is trained.
        config: Of the network.
        device: Where.
    """

    def __init__(self, stage: StageName, config: GeneratorConfig, device: torch.device) -> None:
        self.config, self.network = config, make_trainable(stage, config, seed=1).to(device).network
        self.direction: list[Tensor] = []
        self.read: Callable[[Tensor, Condition], float] | None = None
        """What gives the norm of a gradient along ``direction``; None while public patients are looked at."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def save(self, folder: Path) -> None:
        """Nobody wants it."""
        raise AssertionError(f"a marked generator was to be saved to {folder}")

    def loss(self, raw: Tensor, cond: Condition, rng: torch.Generator) -> Tensor:
        """One value per item (B,)."""
        trained = trained_parameters(self.network)
        if self.read is None:
            along, size = [normal(p.shape, rng, p.detach()) for p in trained], 1.0
        else:
            along, size = self.direction, self.read(to_host(raw), to_device(cond, HOST))
        pull = torch.stack([(p * part).sum() for p, part in zip(trained, along, strict=True)]).sum()
        return (pull * size).expand(len(raw))


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Those that require gradients."""
    return [p for p in network.parameters() if p.requires_grad]


def _small(config: GeneratorConfig) -> GeneratorConfig:
    """The same network on the smallest images that it takes."""
    step = config.backbone.size_multiple
    step *= config.autoencoder.shrink if config.autoencoder else 1
    step = math.lcm(step, config.segmenter.size_multiple if config.segmenter else 1)
    size = min(config.size_px, step * math.ceil(16 / step))
    return GeneratorConfig.model_validate(config.model_dump() | {"size_px": size})


# --- a run on marked patients -------------------------------------------------------------------
@dataclass(frozen=True)
class _Noise:
    """What is kept of a step's noise, of which a large network has too much to keep."""

    squares: np.ndarray
    """Sums over each tensor."""
    along: float
    """Along the direction of all gradients."""
    some: np.ndarray
    """Some of its numbers."""


class _MarkedRun:
    """Some steps of the trainer on marked patients, and what they read, released and touched."""

    def __init__(
        self,
        stage: StageName,
        generator: GeneratorConfig,
        training: TrainingConfig,
        privacy: PrivateTraining,
        device: torch.device,
        *,
        tainted: bool,
    ) -> None:
        self.stage, self.training, self.tainted = stage, training, tainted
        self.privacy = privacy.model_copy(update={"subspace": privacy.subspace and _SUBSPACE})
        self.marked = _Marked(stage, _small(generator), device)
        self.faults: list[str] = []
        self.read: list[list[tuple[int, float | None]]] = []
        """Of each step: kind and grey of each record that was read."""
        self.noise: list[_Noise] = []
        """Of each step: what the optimizer was given, less the clipped gradients, in units of σ·C."""
        self.whole = False
        self._inside = False

    def run(self) -> "_MarkedRun":
        """Take the steps and look at all that they touched."""
        network, privacy = self.marked.network, self.privacy
        before = {name: t.detach().clone() for name, t in _state(network).items()}
        event = PrivacyEvent(
            noise_multiplier=privacy.noise_multiplier,
            sampling_rate=privacy.sampling_rate,
            steps=STEPS,
            run="audit",
            stage=self.stage,
            round=1,
            digest="",
            unit=privacy.unit,
        )
        with tempfile.TemporaryDirectory() as folder:
            cohort = _marked_cohort(Path(folder) / "cohort", self.marked.config.size_px, tainted=self.tainted)
            self.count = len(cohort.rows) if privacy.unit == "slice" else PATIENTS
            trainer = private.PrivateTrainer(self.marked, cohort, self.stage, 0, self.training, privacy, event)
            names = [n for n, p in network.named_parameters() if p.requires_grad]
            if names != [n for n, _ in network.named_parameters() if _matches(n, privacy.trained)]:
                self.faults.append("other parameters require gradients than those that the patterns name")
            self._aim()
            self._note_steps(trainer)
            try:
                trainer.run(0, STEPS)
            except Exception as error:  # whatever it is: these patients are valid
                self.faults.append(f"training raised {type(error).__name__}: {error}"[:300])
                return self
            self._look(trainer, before, names)
        return self

    def _aim(self) -> None:
        """Choose the direction of all gradients: within the public directions, where there are some."""
        trained, rng = trained_parameters(self.marked.network), torch.Generator().manual_seed(0)
        sizes, device = [p.numel() for p in trained], self.marked.device
        self.public: Tensor | None = None
        if self.privacy.subspace:
            self.public = public_directions(self.marked, self.stage, self.privacy.subspace, self.training)
            flat = self.public.sum(0)
        else:
            flat = to_device(torch.randn(sum(sizes), generator=rng), device)
        flat = flat / flat.double().norm()
        self.along = to_host(flat if self.public is None else self.public @ flat).double().numpy()
        bound = self.privacy.clip_norm
        self.marked.direction = [part.view_as(p) * bound for part, p in zip(flat.split(sizes), trained, strict=True)]
        self.marked.read = self._read
        self._start_twins()

    # --- what is read ---------------------------------------------------------------------------
    def _note_steps(self, trainer: private.PrivateTrainer) -> None:
        """Note where each step begins and ends, and what its optimizer is given."""
        take = trainer.steps.step

        def step(*args: object, **named: object) -> object:
            self.read.append([])
            self._inside = True
            try:
                return take(*args, **named)  # type: ignore[arg-type]
            finally:
                self._inside = False

        def given(optimizer: torch.optim.Optimizer, *_: object) -> None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in parameters]
            self._follow(gradients)
            self.noise.append(self._left(gradients))

        trainer.steps.step = step  # type: ignore[method-assign, assignment]
        trainer.optimizer.register_step_pre_hook(given)

    def _read(self, raw: Tensor, cond: Condition) -> float:
        """Look at what reached a loss; the norm of its gradient over C."""
        labels = _labels(raw, cond)
        if not self._inside:
            if labels & {1, 2, 3}:
                self._fault("patients were read outside of a step")
            return 1.0
        if len(labels) != 1 or not labels < {1, 2, 3}:
            self._fault(f"a pass reads masks of several records: labels {sorted(labels)}")
            return 1.0
        kind = labels.pop() - 1
        if len(raw) != self.privacy.noise_multiplicity:
            self._fault(f"a pass has {len(raw)} draws where {self.privacy.noise_multiplicity} are configured")
        grey = self._grey(raw, kind) if raw.is_floating_point() else None
        if self.privacy.unit == "slice":
            self._one_slice(cond)
        elif grey is not None and grey in {other for _, other in self.read[-1]}:
            self._fault("a patient was read twice in a step")
        self.read[-1].append((kind, grey))
        return self._norm(kind)

    def _norm(self, kind: int) -> float:
        return NORMS[kind]

    def _grey(self, raw: Tensor, kind: int) -> float | None:
        """The one grey of all items, which has to be that of a patient of this kind; None where there is no number."""
        broken = raw.isnan().flatten(1)
        if bool(broken.any()) != bool(broken.all()):
            self._fault("a pass mixes images of several records")
        if self.tainted and bool(broken.any()) != bool(kind % 2):
            self._fault("image and mask of a pass are of two records")
        if broken.any():
            return None
        grey, spread = float(raw.mean()), float(raw.max() - raw.min())
        greys = [_level(number) for number in range(PATIENTS) if number % (2 if self.tainted else 3) == kind]
        if not self.tainted and (spread > _GREY_CLOSE or min(abs(grey - g) for g in greys) > _GREY_CLOSE):
            self._fault("the pixels of a pass are not those of one record")
        return None if self.tainted else min(greys, key=lambda g: abs(g - grey))

    def _one_slice(self, cond: Condition) -> None:
        """Where slices are the unit, all draws are of one of them, and its neighbours are other records."""
        if len(cond.position.unique()) > 1 or len(cond.phase.unique()) > 1:
            self._fault("a pass reads several slices where a slice is the unit")
        if STAGES[self.stage].sees_neighbours and bool((cond.masks != NO_SLICE).any()):
            self._fault("a slice is read with its neighbours, which are other records")

    def _fault(self, text: str) -> None:
        if text not in self.faults:
            self.faults.append(text)

    # --- what was released ----------------------------------------------------------------------
    def counts(self) -> np.ndarray:
        """How many records of each kind each step read, float64 (T, kinds)."""
        steps = self.read[:STEPS]
        return np.array([[sum(k == kind for k, _ in step) for kind in range(len(NORMS))] for step in steps], float)

    def clipped(self) -> np.ndarray:
        """Norm over C of what each kind adds, (kinds,)."""
        return np.array([min(1.0, self._norm(kind)) for kind in range(len(NORMS))])

    def _left(self, gradients: list[Tensor]) -> _Noise:
        """What a step released beside the records that it read."""
        divisor = self.privacy.sampling_rate * self.privacy.declared_patients / self.privacy.clip_norm
        left = np.concatenate([to_host(g).flatten().double().numpy() for g in gradients]) * divisor
        left -= float(self.counts()[-1] @ self.clipped()) * self.along
        left /= self.privacy.noise_multiplier
        ends = np.cumsum([0, *(g.numel() for g in gradients[:-1])])
        some = left[:: max(1, len(left) * STEPS // _SOME)].copy()
        return _Noise(np.add.reduceat(left**2, ends), float(left @ self.along), some)

    # --- what was touched -----------------------------------------------------------------------
    def _look(self, trainer: private.PrivateTrainer, before: Mapping[str, Tensor], names: list[str]) -> None:
        if not len(self.noise) == len(self.read) == STEPS:
            self._fault(f"{len(self.read)} steps, {len(self.noise)} of the optimizer, where {STEPS} were paid for")
            return
        self.whole = True
        now = _state(self.marked.network)
        for name in sorted(set(before) | set(now)):
            if name not in names and not (name in now and name in before and torch.equal(now[name], before[name])):
                self._fault(f"untrained state changed: {name}")
        expected = self._expected(trainer, [before[n] for n in names])
        for name, tensor in zip(names, expected, strict=True):
            moved = float((tensor - before[name]).abs().max())
            off = float((now[name].detach() - tensor).abs().max())
            if not off <= _CLOSE * moved + 1e-6 * float(tensor.abs().max()):
                self._fault(f"weights are not what the noisy gradients make of them: {name}")
                break
        kept = {n: t.detach().clone() for n, t in now.items()}
        try:
            trainer.run(STEPS, 1)
            self._fault("a step more was taken than were paid for")
        except PrivacyError:
            if not all(torch.equal(t, kept[n]) for n, t in _state(self.marked.network).items()):
                self._fault("the weights moved in a step that was refused")

    def _start_twins(self) -> None:
        """Prepare an optimizer of the same settings, which will be given the noisy gradients alone."""
        trained = trained_parameters(self.marked.network)
        if self.public is None:
            self.twins = [nn.Parameter(p.detach().clone()) for p in trained]
        else:
            self.twins = [nn.Parameter(torch.zeros(len(self.public), device=self.marked.device))]
        self.twin_optimizer = make_optimizer(self.training, self.twins)

    def _follow(self, gradients: list[Tensor]) -> None:
        for twin, gradient in zip(self.twins, gradients, strict=True):
            twin.grad = gradient.view_as(twin).clone()
        for group in self.twin_optimizer.param_groups:
            group["lr"] = self.training.rate_at(len(self.noise))
        self.twin_optimizer.step()

    def _expected(self, trainer: private.PrivateTrainer, start: list[Tensor]) -> list[Tensor]:
        """Weights that the noisy gradients alone make."""
        twins, optimizer = self.twins, self.twin_optimizer
        for twin, theirs in zip(twins, [p for g in trainer.optimizer.param_groups for p in g["params"]], strict=True):
            if not _alike(optimizer.state.get(twin, {}), trainer.optimizer.state.get(theirs, {})):
                self._fault("moments of the optimizer are not those of the noisy gradients")
        if self.public is None:
            return [t.detach() for t in twins]
        shift = (twins[0].detach() @ self.public).split([t.numel() for t in start])
        return [t + part.view_as(t) for t, part in zip(start, shift, strict=True)]


def _alike(ours: Mapping[str, object], theirs: Mapping[str, object]) -> bool:
    """Whether two states of an optimizer are the same up to rounding."""
    if ours.keys() != theirs.keys():
        return False
    tensors = [(a, theirs[n]) for n, a in ours.items() if torch.is_tensor(a)]
    return all(torch.is_tensor(b) and bool((a - b).abs().max() <= _CLOSE * a.abs().max()) for a, b in tensors)


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **{f"buffer {n}": b for n, b in network.named_buffers()}}


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _labels(raw: Tensor, cond: Condition) -> set[int]:
    """All labels that a pass has in its masks; -1, which stands for no mask, aside."""
    masks = [cond.masks] if raw.is_floating_point() else [cond.masks, raw]
    return {int(label) for mask in masks for label in mask.unique()} - {NO_SLICE}


# --- lines --------------------------------------------------------------------------------------
def _titles(runs: list[_MarkedRun]) -> list[tuple[str, _MarkedRun]]:
    return list(zip(("hardly any noise", "as configured"), runs, strict=True))


def _rate(runs: list[_MarkedRun]) -> Check:
    found = []
    for title, run in _titles(runs):
        hits, trials = int(run.counts().sum()), run.count * STEPS
        p_value = float(binomial_p(np.array(hits), trials, run.privacy.sampling_rate))
        found.append(Finding(title, f"{hits} of {trials}", p_value))
    return worst_of("trainer: records that were read", f"q = {runs[0].privacy.sampling_rate:g} of them", found)


def _shares(runs: list[_MarkedRun]) -> Check:
    """What records of each kind add, over their clipped gradients."""
    found = []
    for title, run in _titles(runs):
        along = np.array([step.along for step in run.noise])
        for kind, (norm, clipped) in enumerate(zip(map(run._norm, range(len(NORMS))), run.clipped(), strict=True)):
            times = run.counts()[:, kind]
            if times.any():
                length = float(np.linalg.norm(times))
                score = float(times @ along) / length
                share = 1 + score * run.privacy.noise_multiplier / length / clipped
                found.append(Finding(f"{norm:g} C, {title}", f"{share:.3f}", float(normal_p(score))))
    return worst_of("trainer: what a record adds / its clipped gradient", "1.000", found)


def _noise(runs: list[_MarkedRun]) -> Check:
    """Scale of the noise in all numbers, in each step and in each tensor; its law in some of them."""
    found = []
    for title, run in _titles(runs):
        squares = np.stack([step.squares for step in run.noise])
        size = len(run.along)
        sizes = np.array([p.numel() for p in run.twins])
        rows = [(title, squares.sum(), size * STEPS)]
        rows += [(f"step {i + 1}, {title}", row.sum(), size) for i, row in enumerate(squares)]
        rows += [(f"tensor {i + 1}, {title}", squares[:, i].sum(), n * STEPS) for i, n in enumerate(sizes)]
        found += [Finding(name, f"{np.sqrt(sum_ / n):.3f}", float(squares_p(sum_, n))) for name, sum_, n in rows]
        some = np.concatenate([step.some for step in run.noise])
        law = stats.kstest(some, "norm")
        found.append(Finding(f"law, {title}", f"distance {law.statistic:.4f}", float(law.pvalue)))
    return worst_of("trainer: standard deviation of its noise / (σ·C)", "1.000", found)
