"""A federated run: stage after stage, round after round, saved after each, resumed by starting it again."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flwr.serverapp import Grid
from torch import Tensor

from cmrfed.core.artifacts import digest_state
from cmrfed.core.errors import ConfigError, FederationError
from cmrfed.core.progress import track
from cmrfed.core.rng import fold
from cmrfed.federation.messages import StageJob, State
from cmrfed.federation.secagg.server import SecureRound
from cmrfed.federation.server.checkpoint import RoundStore, ServerState
from cmrfed.federation.server.exchange import Outcome, Roster, ask
from cmrfed.federation.server.metrics import RoundMetrics
from cmrfed.federation.server.statements import FILE as STATEMENTS
from cmrfed.federation.server.statements import Statements
from cmrfed.federation.server.strategy import Aggregator, choose
from cmrfed.federation.settings import FederationConfig
from cmrfed.generators.autoencoder import load_autoencoder
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import GeneratorConfig
from cmrfed.generators.stages import STAGES, StageName
from cmrfed.generators.trainable import make_trainable
from cmrfed.privacy.settings import PrivateTraining
from cmrfed.segmentation.files import load_segmenter
from cmrfed.training.average import moved_average
from cmrfed.training.settings import TrainingConfig

CHANGEABLE = {"sampler", "condition_dropout", "mask_dropout", "finetuned_autoencoder"}
"""Settings in which a generator may differ from the one that it starts from; so may the law of times in training."""


@dataclass(frozen=True)
class StageSpec:
    """One generator, the autoencoder of one, or a segmenter to train."""

    name: StageName
    generator: GeneratorConfig
    training: TrainingConfig
    privacy: PrivateTraining | None = None
    start: Path | None = None
    """Folder of a generator (or autoencoder, or segmenter) to start from; None: random weights."""
    codec: Path | None = None
    """Folder of the autoencoder, of a generator that has one."""


@dataclass(frozen=True)
class RunResult:
    """Per stage: the folder of the averaged generator, and the digest of the last global weights."""

    generators: dict[StageName, Path] = field(default_factory=dict)
    digests: dict[StageName, str] = field(default_factory=dict)


class FederatedRun:
    """Trains the stages over a grid of sites.

    Args:
        grid: Flower's, or a `LocalGrid`.
        run_dir: Run folder; ``<stage>/`` and ``generators/<stage>/`` are written into it.
        run_id: Name of the run; with the start of the digest it names the run at the sites.
        seed: Of the experiment.
        digest: Of the experiment.
        federation: Who takes part and how replies are aggregated.
        stages: In order.
        threads: Threads at each site; the same number everywhere gives the same bits everywhere.
        on_round: Called when a round is saved.
    """

    def __init__(
        self,
        grid: Grid,
        run_dir: Path,
        *,
        run_id: str,
        seed: int,
        digest: str,
        federation: FederationConfig,
        stages: Sequence[StageSpec],
        threads: int = 1,
        on_round: Callable[[], None] = lambda: None,
    ) -> None:
        self.grid, self.run_dir, self.run_id, self.seed = grid, run_dir, run_id, seed
        self.digest, self.federation, self.stages, self.threads = digest, federation, tuple(stages), threads
        self.roster, self.on_round = Roster(grid, federation, Statements(run_dir / STATEMENTS)), on_round

    def start_or_resume(self) -> RunResult:
        """Train what is not trained yet.

        Raises:
            FederationError: The folder belongs to another experiment, or a round misses its quorum.
        """
        result = RunResult()
        for stage in self.stages:
            store = RoundStore(self.run_dir / stage.name, self.digest)
            codec = load_autoencoder(stage.codec) if stage.codec else None
            state = self._train_stage(stage, store, codec)
            for name, weights in averages(stage, state["ema"]).items():
                folder = self.run_dir / "generators" / name
                if not folder.is_dir():
                    generator = make_trainable(stage.name, stage.generator, autoencoder=codec)
                    generator.network.load_state_dict(dict(weights))
                    generator.save(folder)
            result.generators[stage.name] = self.run_dir / "generators" / stage.name
            result.digests[stage.name] = digest_state(state["global"])
        return result

    def _train_stage(self, stage: StageSpec, store: RoundStore, codec: State | None) -> ServerState:
        done, total = store.latest(), stage.training.rounds
        state = store.load(done) if done else self._initial(stage)
        if done >= total:
            return state
        for number in range(1, done + 1):  # a run that was killed between saving a round and forgetting its sum
            shutil.rmtree(self._pending(stage.name, number), ignore_errors=True)
        self.roster.wait()
        aggregator = Aggregator(self.federation.strategy)
        aggregator.load_state_dict(state["strategy"])
        with track(f"Training the {STAGES[stage.name].title}", total, done, whole=True) as progress:
            for number in range(done + 1, total + 1):
                start = time.monotonic()
                state, outcome = self._round(stage, number, state, aggregator, codec)
                seconds = None if stage.privacy else time.monotonic() - start  # it tells how many were in the steps
                store.save(number, state, self._metrics(stage.name, number, seconds, outcome))
                shutil.rmtree(self._pending(stage.name, number), ignore_errors=True)
                loss = outcome.mean_loss
                self.on_round()
                progress.advance(1, "losses stay at the sites" if loss is None else f"loss {loss:.4f}")
        return state

    def _initial(self, stage: StageSpec) -> ServerState:
        weights = _start(stage) if stage.start else _untrained(stage, fold(self.seed, "init", stage.name))
        whole = [name for name, tensor in weights.items() if not tensor.is_floating_point()]
        if whole:
            raise FederationError("averaging needs floating-point weights", got=f"integers in {whole[0]}")
        weights = {name: weights[name].clone() for name in sorted(weights)}
        others = {
            _other(decay, name): weight for decay in stage.training.extra_ema_decays for name, weight in weights.items()
        }
        return {"global": weights, "ema": weights | others, "strategy": {}}

    def _round(
        self, stage: StageSpec, number: int, state: ServerState, aggregator: Aggregator, codec: State | None
    ) -> tuple[ServerState, Outcome]:
        old = state["global"]
        names = choose(self.roster.quorum(), self.federation.asked, self.seed, stage.name, number)
        job = self._job(stage, number, old, codec)
        weights = {site: self._weight(site) for site in names}  # before anyone pays
        replies: list[tuple[State | Path, float]]
        with self._scratch() as scratch:
            if job.secure_threshold is None:
                outcome = ask(self.grid, self.roster, job, old, names, codec, scratch=scratch)
                replies = [(path, weights[site]) for site, path in sorted(outcome.kept.items())]
            else:
                counts = {site: int(weight) for site, weight in weights.items()}
                summed = SecureRound(self.grid, self.roster, job, old, counts)
                mean, total, outcome = summed.run(codec, scratch, self._pending(stage.name, number))
                replies = [(mean, float(total))]
            new = aggregator.aggregate(number, old, replies)
        ema = _averaged(stage.training, number, state["ema"], new)
        return {"global": new, "ema": ema, "strategy": aggregator.state_dict()}, outcome

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder for the replies of one round; what a killed run left in it goes."""
        folder = self.run_dir / ".replies"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _pending(self, stage: StageName, number: int) -> Path:
        """Where the masked sum of a round is kept until the round is saved."""
        return self.run_dir / stage / f"pending-{number:04d}"

    def _job(self, stage: StageSpec, number: int, weights: State, codec: State | None = None) -> StageJob:
        return StageJob(
            run=f"{self.run_id}-{self.digest[:12]}",
            experiment=self.digest,
            seed=self.seed,
            stage=stage.name,
            round=number,
            generator=stage.generator,
            training=stage.training,
            proximal_mu=self.federation.proximal_mu,
            privacy=stage.privacy,
            model_digest=digest_state(weights),
            codec_digest=digest_state(codec) if codec is not None else None,
            compression=self.federation.compression,
            secure_threshold=self.federation.secure_threshold,
            threads=self.threads,
        )

    def _weight(self, site: str) -> float:
        """What a site counts in the mean: public under "equal"."""
        if self.federation.weighting == "equal":
            return 1.0
        patients = self.roster.sites[site].patients
        if patients is None:
            raise FederationError(
                "a site keeps its number of patients to itself",
                got=f"{site} under federation.weighting = patients",
                do="--set federation.weighting=equal",
            )
        return float(patients)

    def _metrics(self, stage: StageName, number: int, seconds: float | None, outcome: Outcome) -> RoundMetrics:
        return RoundMetrics(
            stage=stage,
            round=number,
            seconds=seconds,
            sites=outcome.metrics(),
            bytes_down=outcome.bytes_down,
            bytes_up=outcome.bytes_up,
        )


# --- averaged weights ---------------------------------------------------------------------------
def _other(decay: float, name: str) -> str:
    """Name under which a weight with another decay than ``ema_decay`` is kept."""
    return f"{decay}/{name}"


def _averaged(training: TrainingConfig, number: int, old: State, new: State) -> State:
    """All averages of the global weights after a round."""
    out: dict[str, Tensor] = {}
    for chosen, decay in [(True, training.ema_decay), *((False, decay) for decay in training.extra_ema_decays)]:
        kept = {name: name if chosen else _other(decay, name) for name in new}
        average = moved_average({name: old[kept[name]] for name in new}, new, training.decay_at(decay, number))
        out |= {kept[name]: weights for name, weights in average.items()}
    return out


def averages(stage: StageSpec, ema: State) -> dict[str, dict[str, Tensor]]:
    """The averaged weights by the name of the generator that has them: the stage's own, then ``image-ema-0.95`` etc."""
    others = {f"{stage.name}-ema-{decay}": _other(decay, "") for decay in stage.training.extra_ema_decays}
    out: dict[str, dict[str, Tensor]] = {stage.name: {name: w for name, w in ema.items() if "/" not in name}}
    for folder, mark in others.items():
        out[folder] = {name.removeprefix(mark): weight for name, weight in ema.items() if name.startswith(mark)}
    return out


def _untrained(stage: StageSpec, seed: int) -> State:
    """Random weights."""
    return make_trainable(stage.name, stage.generator, seed).network.state_dict()


def _start(stage: StageSpec) -> State:
    """The weights to start from.

    Raises:
        ConfigError: They are those of another network.
    """
    if stage.start is None:
        raise AssertionError(f"the {stage.name} stage has no folder to start from")
    if STAGES[stage.name].trains_autoencoder:
        return load_autoencoder(stage.start)
    if STAGES[stage.name].trains_segmenter:
        return load_segmenter(stage.start).state_dict()
    return _read_start(stage.start, stage.generator).network.state_dict()


def _read_start(folder: Path, wanted: GeneratorConfig) -> Generator:
    """Read the generator to start from.

    Raises:
        ConfigError: It is another network than the recipe's, or predicts something else.
    """
    generator = Generator.load(folder)
    ours, theirs = (
        config.model_dump(exclude={**dict.fromkeys(CHANGEABLE, True), "process": {"timestep_sampling"}})
        for config in (wanted, generator.config)
    )
    differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    if differing:
        raise ConfigError(
            f"the generator in {folder} does not fit the recipe",
            got="; ".join(f"{name} = {theirs.get(name)}" for name in differing),
            expected="; ".join(f"{name} = {ours.get(name)}" for name in differing),
            do="start from a generator with the settings of the recipe, such as `cmrfed pretrain` makes",
        )
    return generator
