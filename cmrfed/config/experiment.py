"""The root of the configuration: a recipe, its overrides, and the digest that names the result."""

import difflib
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from cmrfed.core.artifacts import digest_json
from cmrfed.core.errors import ConfigError
from cmrfed.core.progress import say
from cmrfed.core.settings.config import DeviceName, Section, Seed, outdated_keys, sections_of
from cmrfed.core.settings.digests import digested
from cmrfed.core.settings.registry import builtins_only
from cmrfed.core.settings.strict_yaml import load, read_mapping
from cmrfed.data.settings import PartitionConfig, PhantomConfig, PublicCohort
from cmrfed.evaluation.settings import EvaluationConfig
from cmrfed.federation.settings import FederationConfig
from cmrfed.generators import stages
from cmrfed.generators.settings import GeneratorConfig, GeneratorSettings, SegmenterNetwork
from cmrfed.generators.stages import StageName
from cmrfed.privacy.settings import PrivacyConfig
from cmrfed.segmentation.settings import SegmenterConfig
from cmrfed.synthesis.settings import SynthesisConfig
from cmrfed.training.settings import PretrainConfig, SegmenterTraining, TrainingConfig

STAGES: tuple[StageName, ...] = tuple(stages.DRAWING)
"""Those that draw."""
ALL_STAGES: tuple[StageName, ...] = tuple(stages.STAGES)
"""In the order in which they are trained."""


class DataConfig(Section):
    """Real or simulated patients, and their partition over the sites."""

    phantom: PhantomConfig | None = None
    """The built-in phantom, used when no cohort is given."""
    cohorts: tuple[str, ...] = ()
    """Cohort folders. A single one is split over the sites by ``partition``; with several, each is a site."""
    size_px: int = Field(64, ge=16, le=1024)
    """Height and width of the slices in pixels, as set by `cmrfed prepare --size`; a multiple of patch_px × 2^(levels -
    1)."""
    holdout: float = Field(1 / 3, gt=0, lt=1)
    """Fraction of patients held out from all training, for evaluation."""
    partition: PartitionConfig = PartitionConfig()
    external: dict[str, str] = {}
    """Name → cohort folder: external data sets on which the segmenters are tested."""


class StageConfig(Section):
    """The generator and the training of one stage."""

    generator: GeneratorSettings = GeneratorSettings()
    """Generator architecture, process and sampler."""
    training: TrainingConfig = TrainingConfig()
    """Federated training at the sites."""


class AutoencoderStage(Section):
    """Training of the image generator's autoencoder at the sites, from its public weights, before the two stages."""

    training: TrainingConfig = TrainingConfig()


class SegmenterStage(Section):
    """A segmenter that learns at the sites what their annotators drew, and then labels the public patients again.

    It starts from public weights. When it is trained, `pretrain` gives both generators the public images with its
    labels in place of the phantom's own masks: what it has learned of patients reaches them at no further ε. Where
    nothing else is asked of the sites, set ``mask.training.rounds`` and ``image.training.rounds`` to 0.
    """

    public: SegmenterConfig = SegmenterConfig()
    """Its architecture, and its training on the public patients before the first round."""
    training: SegmenterTraining = SegmenterTraining()


class ComputeConfig(Section):
    """Hardware settings. They change no privacy guarantee and are not part of the recipe's digest."""

    threads: int = Field(2, ge=1, le=1024)
    """CPU threads, also at each site. Defaults to OMP_NUM_THREADS where that is set."""
    device: DeviceName = "auto"
    """Where networks compute: cpu, cuda, cuda:N (the GPU of that number, from 0) or mps; auto takes CUDA, else MPS,
    else the CPU. Simulated sites take turns where there are several GPUs; a deployed site uses its own setting."""


class Experiment(Section):
    """Everything that decides a result."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    """Name of the run and of its synthetic data set: lower-case letters, digits and hyphens, at most 41."""
    seed: Seed = 0
    """Seed for the hold-out split, the partition, initialisation and non-private training. Private training draws from
    the operating system."""
    data: DataConfig
    segmenter: SegmenterStage | None = None
    """A segmenter that learns at the sites and labels the public patients anew; None: they keep their own masks."""
    autoencoder: AutoencoderStage | None = None
    """Fine-tuning of the image autoencoder at the sites; None keeps it as pre-trained on the phantom."""
    mask: StageConfig = StageConfig()
    """The mask stage: generates segmentation masks."""
    image: StageConfig = StageConfig()
    """The image stage: generates an image from a mask."""
    pretrain: PretrainConfig | None = None
    """Public pre-training on the phantom before the first round; None skips it."""
    federation: FederationConfig = FederationConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="before")
    @classmethod
    def _count_sites_once(cls, tree: Any) -> Any:
        """``data.partition`` also says how many sites there are, where ``federation`` does not."""
        if not isinstance(tree, dict):
            return tree
        data, federation = tree.get("data") or {}, tree.get("federation") or {}
        layout = (data.get("partition") or {}) if isinstance(data, dict) else None
        if isinstance(layout, dict) and isinstance(federation, dict):
            alone = layout.get("only") is not None
            counts = {"sites": 1, "min_sites": 1} if alone else {"sites": layout.get("sites", PartitionConfig().sites)}
            tree = tree | {"federation": counts | federation}
        return tree

    @model_validator(mode="after")
    def _fits(self) -> "Experiment":
        if self.federation.sites != self.sites:
            shared = self.data.partition
            which = "sites" if shared.only is None else "only"
            raise ValueError(
                f"federation.sites is {self.federation.sites}, data.partition.{which} is {getattr(shared, which)}: "
                "set the latter alone"
            )
        for stage in STAGES:
            self.generator(stage)
        self._has_its_autoencoder()
        self._has_its_segmenter()
        self._trains_something()
        if self.privacy.private and self.federation.weighting != "equal":
            raise ValueError(
                "federation.weighting: patients tells the server how many there are, which privacy forbids: "
                "set it to equal"
            )
        if self.privacy.private and self.federation.proximal_mu:
            raise ValueError("federation.strategy: fedprox has no private form here: take another strategy")
        return self

    def _has_its_autoencoder(self) -> None:
        trained = self.pretrain.autoencoder if self.pretrain else None
        if self.image.generator.autoencoder and not trained:
            raise ValueError(
                "image.generator.autoencoder is trained on the phantom before the first round: set "
                "pretrain: {autoencoder: {}}"
            )
        if trained and not self.image.generator.autoencoder:
            raise ValueError("pretrain.autoencoder is set without image.generator.autoencoder: nothing would use it")
        if self.autoencoder and not self.image.generator.autoencoder:
            raise ValueError("autoencoder is set without image.generator.autoencoder: nothing would use it")
        if self.autoencoder and not self.autoencoder.training.rounds:
            raise ValueError("autoencoder.training.rounds is 0: leave the section out, and it stays as it is")

    def _has_its_segmenter(self) -> None:
        if self.segmenter is None:
            if self.synthesis.source == "relabelled":
                raise ValueError(
                    "synthesis.source is relabelled, but there is no segmenter to label: set segmenter: {}"
                )
            return
        self.generator("segmenter")
        if self.pretrain is None or not any(self.pretrain.of(stage) for stage in STAGES):
            raise ValueError(
                "segmenter is set, but no generator learns from public patients, whom it would label: set pretrain: {}"
            )
        if not self.segmenter.training.rounds:
            raise ValueError("segmenter.training.rounds is 0: leave the section out, and masks stay as they are")

    def _trains_something(self) -> None:
        asked = self.steps()
        for stage in STAGES:
            if stage not in asked and not self._learns_publicly(stage):
                raise ValueError(
                    f"{stage}.training.rounds is 0, but there are no pre-trained weights to keep: set pretrain: {{}}"
                    + (f", with pretrain.{stage}" if self.pretrain else "")
                )
        if self.privacy.private and not asked:
            raise ValueError("no stage asks the sites for anything: set privacy.unit to none, and there is no loss")

    @property
    def sites(self) -> int:
        """Number of sites that train, which is also the number of styles."""
        return len(self.data.partition.numbers)

    def generator(self, stage: StageName) -> GeneratorConfig:
        """The generator of a stage in full: the recipe's settings and what follows from the data.

        The autoencoder's is that of the images, which has it. The segmenter's has its network, and no autoencoder.
        """
        one = stages.STAGES[stage]
        settings: GeneratorSettings = getattr(self, one.section).generator
        if one.trains_segmenter:
            settings = settings.model_copy(update={"autoencoder": None})
        return GeneratorConfig(
            **settings.model_dump(),
            finetuned_autoencoder=bool(one.learns_images and settings.autoencoder and self.autoencoder),
            segmenter=self._segmenter_network() if one.trains_segmenter else None,
            codec=one.codec(settings),
            condition_masks=one.condition_masks,
            size_px=self.data.size_px,
            styles=self.sites,
        )

    def _segmenter_network(self) -> SegmenterNetwork | None:
        return SegmenterNetwork(channels=self.segmenter.public.channels) if self.segmenter else None

    def starts_publicly(self, stage: StageName) -> bool:
        """Whether the generator of a stage begins with weights that public patients alone have taught it."""
        return self.segmenter is None and self._learns_publicly(stage)

    def starts_relabelled(self, stage: StageName) -> bool:
        """Whether it begins with weights that public patients have taught it whom a segmenter of the sites labelled."""
        return self.segmenter is not None and self._learns_publicly(stage)

    def _learns_publicly(self, stage: StageName) -> bool:
        return self.pretrain is not None and self.pretrain.of(stage) is not None

    def steps(self) -> dict[str, int]:
        """Steps of one site by stage, over all rounds; a stage without rounds is left out."""
        training = {stage: self.training(stage) for stage in self.stages}
        return {stage: t.rounds * t.local_steps for stage, t in training.items() if t.rounds}

    @property
    def stages(self) -> tuple[StageName, ...]:
        """What the recipe trains, or leaves as it starts, in order."""
        optional = {"segmenter": self.segmenter, "autoencoder": self.autoencoder}
        return tuple(stage for stage in ALL_STAGES if optional.get(stage, True) is not None)

    def training(self, stage: StageName) -> TrainingConfig:
        """How a stage is trained.

        Raises:
            ConfigError: The recipe leaves it out.
        """
        section: StageConfig | AutoencoderStage | SegmenterStage | None = getattr(self, stage)
        if section is None:
            raise ConfigError(f"the recipe does not train the {stage} at the sites", do=f"set {stage}: {{}}")
        return section.training.as_sent

    @property
    def digest(self) -> str:
        """Names the trained weights: the digest of every setting that decides them, and of no other.

        Synthesis and evaluation can be done again, with other settings, on the same weights.
        """
        without = {"synthesis", "evaluation", "compute"} | (set() if self.pretrain else {"pretrain"})
        tree = digested(self, without)
        for place in ("cohorts", "external"):
            del tree["data"][place]
        public = self.pretrain.cohorts if self.pretrain else ()
        if named := [cohort for cohort in public if isinstance(cohort, PublicCohort)]:
            tree["pretrain"]["cohorts"] = [digested(cohort, {"path", "licence", "source"}) for cohort in named]
        return digest_json(tree)


def check_fits_sites(experiment: Experiment) -> None:
    """Refuse a recipe whose requests only a simulated site could answer: deployed ones load no plugins.

    Raises:
        ConfigError: A generator is made of parts that another distribution offers.
    """
    with builtins_only():
        for stage in experiment.stages:
            try:
                experiment.generator(stage)
            except ValidationError as error:
                raise ConfigError(
                    f"deployed sites cannot train the {stage} generator: they run approved code alone, without plugins",
                    got="; ".join(_in_words(problem, GeneratorConfig) for problem in error.errors()),
                    do="train with the project's own parts, or simulate the sites with `cmrfed run`",
                ) from None


S = TypeVar("S", bound=Section)

INVALID_RECIPE = "invalid-recipe"
"""Code of the error that settings do not make an experiment."""


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a YAML recipe, by the rules of `cmrfed.core.settings.strict_yaml`.

    Raises:
        ConfigError: There is none, it is not in UTF-8, or it is not such YAML.
    """
    try:
        return read_mapping(path, "recipe")
    except FileNotFoundError:
        raise ConfigError(f"there is no recipe {path}", do="name a file in configs/recipes") from None


def override(tree: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Apply ``key.sub=value`` assignments, values in YAML; the tree itself is left alone."""
    tree = _copied(tree)
    for text in assignments:
        path, mark, value = text.partition("=")
        if not mark or not path:
            raise ConfigError("an override cannot be read", got=text, expected="key=value, such as seed=1")
        _put(tree, path, _value(text, value))
    return tree


def put(tree: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with settings (``key.sub`` → value) over its own; the tree itself is left alone."""
    tree = _copied(tree)
    for path, value in settings.items():
        _put(tree, path, _copied(value))
    return tree


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    node, *rest = tree, *path.split(".")
    for key in rest[:-1]:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise ConfigError(f"setting {path} goes through a value", got=key, expected="a section")
    node[rest[-1]] = value
    for other in _other_names(rest[-1]):
        node.pop(other, None)  # an override is stronger than what it overrides, under whatever name


@cache
def _names() -> frozenset[tuple[str, str]]:
    """Old and current names of the renamed settings of a recipe."""
    return frozenset(pair for section in _all_sections(Experiment) for pair in section.renamed.items())


def _other_names(key: str) -> list[str]:
    return [new if key == old else old for old, new in _names() if key in (old, new)]


def _copied(tree: Any) -> Any:
    """A copy in which sections that a recipe writes once and names twice (YAML aliases) are separate."""
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree


def _value(text: str, value: str) -> Any:
    expected = "a value in YAML after the =, or the word null"
    if not value.strip():
        raise ConfigError("an override has no value", got=text, expected=expected)
    try:
        return load(value, text)
    except ConfigError as error:
        raise ConfigError(
            "an override cannot be read", got=text, expected=expected, do=f"correct it ({error.got})"
        ) from None


def resolve(recipe: Path | dict[str, Any], overrides: list[str] | None = None) -> Experiment:
    """Recipe and overrides => experiment.

    Raises:
        ConfigError: A key is misspelt or a value does not fit; the message names each.
    """
    tree = override(read_recipe(recipe) if isinstance(recipe, Path) else recipe, overrides or [])
    where = str(recipe) if isinstance(recipe, Path) else "the recipe"
    return _validated(Experiment, _with_threads(tree), where)


def resolve_evaluation(overrides: list[str] | None = None) -> EvaluationConfig:
    """Settings of an evaluation without a recipe: the defaults, and overrides without ``evaluation.`` before the key.

    Raises:
        ConfigError: A key is misspelt or a value does not fit; the message names each.
    """
    return _validated(EvaluationConfig, override({}, overrides or []), "the evaluation's settings")


def _validated(section: type[S], tree: dict[str, Any], where: str) -> S:
    try:
        with outdated_keys() as outdated:
            found = section.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(_in_words(problem, section) for problem in error.errors())
        do = "correct these settings"
        raise ConfigError(f"{where} cannot be used", got=problems, do=do, code=INVALID_RECIPE) from None
    if outdated:
        _note_once(", ".join(f"{old} is now {new}" for old, new in outdated.items()))
    return found


@cache
def _note_once(names: str) -> None:
    say(f"Settings were renamed, and their old names are read in this release for the last time: {names}.")


def _with_threads(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with as many threads as OMP_NUM_THREADS asks for, if it does not say itself.

    Two processes that each keep as many threads as there are cores wait for one another far more than they compute.
    """
    said, asked = tree.get("compute") or {}, os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not isinstance(said, dict) or "threads" in said or not asked.isdecimal() or not int(asked):
        return tree
    return tree | {"compute": said | {"threads": int(asked)}}


def _in_words(problem: Any, section: type[Section]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "union_tag_not_found":
        return f"{where}: needs a {problem['ctx']['discriminator']}"
    if problem["type"] != "extra_forbidden":
        return f"{where or 'recipe'}: {problem['msg']}"
    near = difflib.get_close_matches(where, list(_settings(section)), 1)
    return f"{where}: no such setting" + (f" (did you mean {near[0]}?)" if near else "")


def _settings(section: type[Section], prefix: str = "") -> Iterator[str]:
    """The full names of all settings of a section and of those inside it."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in sections_of(field.annotation):
            yield from _settings(inner, f"{prefix}{name}.")


def _all_sections(section: type[Section]) -> Iterator[type[Section]]:
    """A section and all inside it."""
    yield section
    for field in section.model_fields.values():
        for inner in sections_of(field.annotation):
            yield from _all_sections(inner)
