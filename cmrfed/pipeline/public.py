"""Public patients that a recipe learns from: its phantom, and public cohorts whose masks were completed.

Public training is not accounted for because the data are public, so nobody may be in it who is a patient of a site or
of a test set: both are looked for by what images show.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from cmrfed.config.experiment import Experiment
from cmrfed.core.artifacts import digest_json, locked, new_folder, read_json, write_json
from cmrfed.core.device import resolve
from cmrfed.core.errors import ConfigError, DataError
from cmrfed.core.progress import say, track
from cmrfed.core.rng import fold
from cmrfed.core.settings.digests import digested
from cmrfed.data.cohort import Cohort
from cmrfed.data.labels import STRUCTURES
from cmrfed.data.overlap import Same, shared_patients, without_shared
from cmrfed.data.pool import pool
from cmrfed.data.public import PUBLIC_VERSION, cache_folder, public_patients
from cmrfed.data.settings import PublicCohort
from cmrfed.data.synthetic import Completed, LearnedFrom
from cmrfed.segmentation.completion import Completion, complete_labels, train_public_segmenter
from cmrfed.training.settings import PretrainConfig

COMPLETION_VERSION = 1
"""Names what is cached of completed cohorts. To be raised when the same cohorts and settings give other masks."""
_ABOUT = "public.json"
_NAMED_MOST = 5


@dataclass(frozen=True)
class PublicTrainingSet:
    """What public training learns from.

    phantom: simulated patients. completed: for each public cohort its training patients, with whole masks. mixed: all
    of them; training draws each entry equally often, and patients of the smaller part have several entries, so that
    public cohorts have ``pretrain.mixed_share`` of the draws.
    """

    phantom: Cohort
    completed: tuple[Cohort, ...]
    mixed: Cohort
    learned_from: tuple[LearnedFrom, ...]


def public_config(experiment: Experiment) -> PretrainConfig:
    """The recipe's public training.

    Raises:
        ConfigError: It has none.
    """
    if experiment.pretrain is None:
        raise ConfigError(
            "the recipe has no pre-training", got="pretrain: null", do="--set 'pretrain={}', which takes the defaults"
        )
    return experiment.pretrain


# --- the cohorts ----------------------------------------------------------------------------------
def open_public(experiment: Experiment) -> list[Cohort]:
    """The training part of each public cohort of a recipe, in its order.

    Raises:
        ConfigError: A cohort is of another size than the recipe.
        DataError: A folder is no cohort, or has too few patients to be split.
    """
    return [_training_part(experiment, entry) for entry in _entries(experiment)]


def _entries(experiment: Experiment) -> tuple[PublicCohort, ...]:
    return experiment.pretrain.cohorts if experiment.pretrain else ()


def _training_part(experiment: Experiment, entry: PublicCohort) -> Cohort:
    cohort, size = Cohort.open(entry.path), experiment.data.size_px
    if cohort.size_px != size:
        raise ConfigError(
            f"public cohort {entry.name} is of another size than the recipe",
            got=f"{cohort.size_px} px",
            expected=f"{size} px",
            do=f"prepare it with --size {size}",
        )
    if not entry.holdout:
        return cohort
    return cohort.split({"train": 1 - entry.holdout, "holdout": entry.holdout}, public_config(experiment).seed)["train"]


def refuse_public(experiment: Experiment, patients: Cohort) -> None:
    """Refuse to learn publicly from somebody who is a patient of the run, under whatever name.

    Args:
        experiment: The recipe.
        patients: All patients of a simulated run: those of sites, and those who are held out.

    Raises:
        DataError: There are such patients.
    """
    for entry, cohort in zip(_entries(experiment), open_public(experiment), strict=True):
        if found := shared_patients(cohort, patients):
            raise DataError(
                f"public cohort {entry.name} has patients of the run: what is learned from them in public would cost "
                "them no ε",
                got=f"{len(found)} patient(s): {_pairs(found)}",
                expected="public patients who are in no cohort of the sites and in no test set",
                do="take them out of one of the two cohorts, or the public cohort out of pretrain.cohorts",
            )


def _pairs(found: Sequence[Same]) -> str:
    more = f" and {len(found) - _NAMED_MOST} more" if len(found) > _NAMED_MOST else ""
    named = ", ".join(f"{same.second} is {same.first} there" for same in found[:_NAMED_MOST])
    return named + more


def never_learned_from(experiment: Experiment, name: str, cohort: Cohort) -> Cohort:
    """The patients of an external data set whom public training does not learn from.

    Raises:
        DataError: It learns from all of them.
    """
    left, found = without_shared(cohort, open_public(experiment))
    if not found:
        return cohort
    if not len(left):
        raise DataError(
            f"external data set {name} cannot test anything: public training learns from all of its patients",
            got=f"{len(found)} patients in pretrain.cohorts",
            expected="at least one patient that nothing learns from",
            do="set holdout of the public cohort, or take the data set out of data.external",
        )
    say(f"external data set {name}: {len(found)} of {len(cohort)} patients left out: public training learns from them")
    return left


# --- what decides them ------------------------------------------------------------------------------
def public_origin(experiment: Experiment) -> dict[str, Any]:
    """What decides the completed cohorts, by content; empty where a recipe has no public cohort."""
    config = public_config(experiment)
    if not config.cohorts:
        return {}
    cohorts = zip(config.cohorts, open_public(experiment), strict=True)
    return {
        "cohorts": [[entry.name, cohort.digest, [int(v) for v in cohort.labels]] for entry, cohort in cohorts],
        "completion": digested(config.completion),
        "mixed_share": config.mixed_share,
        "completion_version": COMPLETION_VERSION,
    }


def public_settings(config: PretrainConfig, **changed: Any) -> dict[str, Any]:
    """Settings of public training but for its cohorts, which `public_origin` names by content."""
    plain = config.model_copy(update=changed)
    return digested(plain, {"cohorts", "mixed_share", "completion"})


# --- what is learned from ---------------------------------------------------------------------------
def public_training_set(experiment: Experiment, cache: Path | None = None) -> PublicTrainingSet:
    """Find what a recipe learns from in public, or make it: its phantom, and its public cohorts with whole masks.

    It is kept in the cache under the content of the cohorts, not under their names or places.

    Args:
        experiment: The recipe.
        cache: Another cache than the user's.

    Raises:
        ConfigError: The recipe has no public training.
        DataError: A public cohort cannot be used.
    """
    config, root = public_config(experiment), cache or cache_folder()
    phantom = _phantom(experiment, root)
    if not config.cohorts:
        return PublicTrainingSet(phantom, (), phantom, (phantom_words(config),))
    key = digest_json([phantom.digest, config.seed, public_origin(experiment)])
    folder = root / f"public-{key[:16]}"
    with locked(folder):
        if not (folder / _ABOUT).is_file():
            with new_folder(folder) as part:
                _complete(experiment, phantom, part)
    completed = tuple(Cohort.open(folder / str(number)) for number in range(len(config.cohorts)))
    together = mixed(Cohort.open(folder / "pooled"), len(phantom), config.mixed_share)
    stated = _learned_from(config, open_public(experiment), read_json(folder / _ABOUT))
    return PublicTrainingSet(phantom, completed, together, stated)


def _phantom(experiment: Experiment, root: Path) -> Cohort:
    config = public_config(experiment)
    return public_patients(config, experiment.data.size_px, fold(config.seed, "public phantom"), root)


def _complete(experiment: Experiment, phantom: Cohort, part: Path) -> None:
    """Complete the cohorts round by round; write them, all patients together, and how it went."""
    config, cohorts = public_config(experiment), open_public(experiment)
    threads = torch.get_num_threads()
    torch.set_num_threads(experiment.compute.threads)
    done, first = list[Completion](), dict[str, dict[str, float]]()
    steps = config.completion.rounds * config.completion.segmenter.steps
    try:
        with track("completing public cohorts: segmenter steps", steps) as bar:
            for number in range(config.completion.rounds):
                model = train_public_segmenter(
                    phantom,
                    config.completion.segmenter,
                    fold(config.seed, "public segmenter", number),
                    completed=[each.cohort for each in done],
                    on_step=lambda: bar.advance(1),
                    device=resolve(experiment.compute.device),
                )
                done = [
                    complete_labels(cohort, model, part / str(place), name=entry.name)
                    for place, (entry, cohort) in enumerate(zip(config.cohorts, cohorts, strict=True))
                ]
                first = first or {each.cohort.name: _agreement(each) for each in done}
    finally:
        torch.set_num_threads(threads)
    pool([phantom, *(each.cohort for each in done)], part / "pooled", "public")
    about = {
        each.cohort.name: {"pixels": each.pixels, "slices": each.slices, "agreement": first[each.cohort.name]}
        for each in done
    }
    write_json(part / _ABOUT, about)


def _agreement(done: Completion) -> dict[str, float]:
    return {label.name: value for label, value in done.agreement.items()}


def mixed(pooled: Cohort, simulated: int, share: float) -> Cohort:
    """All patients of the pool, whose first ones are simulated; the smaller part is repeated until the shares fit."""
    names = pooled.patient_ids
    first, second = names[:simulated], names[simulated:]
    wanted = max(round(len(first) * share / (1 - share)), 1)
    if wanted < len(second):
        first = tuple(islice(cycle(first), max(round(len(second) * (1 - share) / share), len(first))))
    else:
        second = tuple(islice(cycle(second), wanted))
    return pooled.select([*first, *second])


# --- what is said of it -----------------------------------------------------------------------------
def phantom_words(config: PretrainConfig) -> LearnedFrom:
    """The phantom, as something that was learned from."""
    return LearnedFrom(name=f"phantom v{PUBLIC_VERSION}", patients=config.patients)


def _learned_from(config: PretrainConfig, cohorts: Sequence[Cohort], about: dict[str, Any]) -> tuple[LearnedFrom, ...]:
    """``cohorts``: what the annotators drew; ``about``: by name, how the completion went."""
    entries = zip(config.cohorts, cohorts, strict=True)
    return (phantom_words(config), *(_entry(entry, cohort, about[entry.name]) for entry, cohort in entries))


def _entry(entry: PublicCohort, cohort: Cohort, completion: dict[str, Any]) -> LearnedFrom:
    absent = tuple(label.name for label in STRUCTURES if label not in cohort.labels)
    return LearnedFrom(
        name=entry.name,
        licence=entry.licence,
        source=entry.source,
        patients=len(cohort),
        completed=Completed(structures=absent, **completion) if absent else None,
    )


def as_stated(experiment: Experiment, stored: Sequence[dict[str, Any]]) -> tuple[LearnedFrom, ...]:
    """What weights were learned from, as it was kept beside them, with terms and source as the recipe has them now."""
    entries = {entry.name: entry for entry in _entries(experiment)}
    out = []
    for item in (LearnedFrom.model_validate(each) for each in stored):
        entry = entries.get(item.name)
        out.append(item.model_copy(update={"licence": entry.licence, "source": entry.source}) if entry else item)
    return tuple(out)
