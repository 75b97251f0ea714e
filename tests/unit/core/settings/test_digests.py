"""A setting that is added changes no digest; a value that is changed changes it; nobody has to remember how."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import create_model

from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.artifacts import digest_json
from cmrfed.core.settings import digests
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.digests import ALWAYS, RENAMED, SINCE, digested
from cmrfed.evaluation.features.phantom_cnn import Recipe
from cmrfed.federation.messages import StageJob
from cmrfed.generators.settings import FlowConfig
from cmrfed.sweep.points import settings_of
from cmrfed.training.settings import TrainingConfig
from tests.federation_world import tiny_request

RECIPES = Path(__file__).parents[4] / "configs" / "recipes"
SHIPPED = {
    "acdc-64.yaml": [
        "882a2bbe99b0831f4bdd9515e83754329607cbf832fa435f3fa30673f07b1ad9",
        "063ee9ad1d44dab77d8d2f64bf3d308a444bf17c9189773694ed3f3a2ca88a83",
    ],
    "acdc-256.yaml": [
        "7c38f35f67483b1e8088811d91d26b37592be21e878c6723ab840fbadcc1e71d",
        "777cdb511d2e5232496ba4f487bb31afc6fdccddaa66616f4fcecbaa42465dbc",
    ],
    "acdc-families/ddpm.yaml": [
        "d5440aa079687556105ea2320cf20cd2999feee241caa8eece67e5b6313d5b14",
        "97648bb0d2b6f4f08ee733885a35e0fe56a846034838045c32d87f3d5d407b59",
    ],
    "acdc-families/fm.yaml": [
        "4f7b38277ed1a87addb7290c56936769ce85fcc973cd6fc7f2aa5ed54483a8dc",
        "369ee15219552f84b9b1f48b410d1d9ce43ec66518ab9c87ab9d06751ad60065",
    ],
    "acdc-families/ldm.yaml": [
        "2c0c0b063cb323d1a7332645a8ea319858245e7ed78ca04b9a0b42babaa975e9",
        "d69b4881f1700e0c32945125ed44263db0d9438d66376d1f3dc02a2e215224f3",
    ],
    "acdc-private.yaml": [
        "0c21e5dd7a8368ff95b94c9dfb71cb49135f1c11ca6a860d4f17b01b44267cf3",
        "d505486ea1ea0d1debfb5d9c4b75bfd3b252f2e9f2fea4ef21b6e183f83e438d",
    ],
    "acdc.yaml": [
        "27a2e4acf6d34b62d8ecb6614fc5130a692f90a3d4efe805afc5334afb5a6b93",
        "c728eeae1b1f8f0b0d3b2be142948230bdc8a761ba140bb929dcee0b6f987a97",
    ],
    "demo.yaml": [
        "f7503d5cf84981f4fea1debb7c454ef68710d0177a15be73a1b379be11387518",
        "2ce5c2ba102cf48024253c8332a2e3ec38f757ce680cd03d7e8df395775068e3",
    ],
}
"""Experiment.digest and the digest of all settings but speed. Runs and caches are named by them: they never change."""
SMALL = {"name": "small", "data": {"phantom": {}}}
WHOLE = [
    "privacy={unit: patient, epsilon: 8, declared_patients: 30}",
    "federation={weighting: equal, secure_aggregation: {threshold: 2}}",
    "privacy.image.subspace={rank: 3}",
    "pretrain={autoencoder: {}}",
    "image.generator.autoencoder={}",
    "autoencoder={training: {}}",
]
"""Assignments that make every optional section of a recipe present."""
BESIDE = ("compute", "synthesis", "evaluation", "data.cohorts", "data.external")
"""What the weights of a run do not depend on."""

Keys = tuple[str, ...]


def sections(section: Section, path: Keys = ()) -> Iterator[tuple[Keys, Section]]:
    """A section and all that are in it, with their paths."""
    yield path, section
    for name in type(section).model_fields:
        if isinstance(value := getattr(section, name), Section):
            yield from sections(value, (*path, name))


def put(root: Section, path: Keys, value: Any) -> Any:
    """A tree with another value at a path; nothing is validated."""
    if not path:
        return value
    name, *rest = path
    return root.model_copy(update={name: put(getattr(root, name), tuple(rest), value)})


def grown(section: Section, value: int) -> Section:
    """The section as it would be with one setting more, whose default is 7."""
    kind = type(section)
    model = create_model(kind.__name__, __base__=kind, __module__=kind.__module__, added=(int, 7))
    return model.model_construct(**dict(section), added=value)


def later_training(**fields: Any) -> type[Section]:
    """The settings of training as they would be in a later version of the project."""
    return create_model("TrainingConfig", __base__=TrainingConfig, __module__=TrainingConfig.__module__, **fields)


def known_models() -> dict[str, type[Section]]:
    """Every section that is in a digest, by name, found by following the types of settings."""
    found: dict[str, type[Section]] = {}

    def follow(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            assert found.setdefault(annotation.__name__, annotation) is annotation, "two sections of one name"
            for field in annotation.model_fields.values():
                follow_all(field.annotation)
        for part in get_args(annotation):
            follow(part)

    def follow_all(annotation: Any) -> None:
        if not (isinstance(annotation, type) and annotation.__name__ in found):
            follow(annotation)

    for root in (Experiment, StageJob, Recipe):
        follow(root)
    return found


WHOLE_TREE = resolve(SMALL, WHOLE)
EVERY = dict(sections(WHOLE_TREE))


# --- what is named must stay named -------------------------------------------------------------------
def test_every_shipped_recipe_has_its_digest():
    found = {}
    for path in sorted(RECIPES.rglob("*.yaml")):
        experiment = resolve(path)
        found[path.relative_to(RECIPES).as_posix()] = [experiment.digest, digest_json(settings_of(experiment))]
    assert found == SHIPPED


def test_a_request_has_its_digests():
    job, _ = tiny_request()
    job = job.model_copy(update={"model_digest": "0" * 64})
    assert (job.key, job.config_digest) == (
        "fe8dc653d7376711abd2c520eb6ae643ca3495048d7038a3568e73c2b35d5910",
        "6080d366fec858a0d5d65787def600e8ee86102d1697277941ee61add9fafe0a",
    )


def test_the_record_has_every_setting():
    missing = []
    for name, model in known_models().items():
        fields = {key: field for key, field in model.model_fields.items() if not field.exclude}
        if name not in ALWAYS:
            missing.append(f'ALWAYS: "{name}": "{" ".join(fields)}"  (under its old name, if the section was renamed)')
            continue
        for key in fields.keys() - ALWAYS[name]:
            if f"{name}.{key}" not in SINCE:
                value = model.model_construct().model_dump(mode="json", warnings=False).get(key)
                missing.append(f'SINCE: "{name}.{key}": {value!r}')
    assert not missing, "add to cmrfed/core/settings/digests.py: " + "; ".join(missing)


def test_the_record_has_no_other():
    models = known_models()
    recorded = [f"{name}.{key}" for name, keys in ALWAYS.items() for key in keys] + list(SINCE) + list(RENAMED)
    assert [each for each in recorded if each.split(".")[0] not in models] == []
    assert [each for each in recorded if each.split(".")[1] not in models[each.split(".")[0]].model_fields] == []
    assert {each for each in SINCE if each.split(".")[1] in ALWAYS[each.split(".")[0]]} == set()


# --- the rule ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", EVERY, ids=".".join)
def test_a_setting_that_is_added_to_any_section_changes_no_digest_until_it_is_used(path):
    added, used = (put(WHOLE_TREE, path, grown(EVERY[path], value)) for value in (7, 8))
    assert digested(added) == digested(WHOLE_TREE)
    assert digested(used) != digested(WHOLE_TREE)


@pytest.mark.filterwarnings("ignore:Pydantic serializer")  # which sees that the other value has another type
@pytest.mark.parametrize("path", EVERY, ids=".".join)
def test_a_value_that_is_changed_changes_the_digest(path):
    for name, field in type(EVERY[path]).model_fields.items():
        if field.exclude or isinstance(getattr(EVERY[path], name), Section):
            continue
        changed, where = put(WHOLE_TREE, (*path, name), "another value"), ".".join((*path, name))
        assert digested(changed) != digested(WHOLE_TREE), where
        assert (changed.digest == WHOLE_TREE.digest) == where.startswith(BESIDE), where


def test_a_default_that_is_changed_later_changes_the_digest(monkeypatch):
    """Otherwise a recipe that leaves the setting out would have other weights under the same name."""
    later = later_training(added=(int, 7))
    monkeypatch.setitem(digests.SINCE, "TrainingConfig.added", 7)
    assert "added" not in digested(later())
    changed = later_training(added=(int, 9))
    assert digested(changed())["added"] == 9
    assert "added" not in digested(changed(added=7))


def test_true_is_not_one_and_nothing_is_not_zero(monkeypatch):
    later = later_training(added=(Any, None))
    monkeypatch.setitem(digests.SINCE, "TrainingConfig.added", False)
    assert "added" not in digested(later(added=False))
    assert all("added" in digested(later(added=value)) for value in (0, None, "", True))


def test_a_renamed_setting_is_known_by_its_old_name(monkeypatch):
    kept = {name: (field.annotation, field) for name, field in TrainingConfig.model_fields.items() if name != "rounds"}
    renamed = create_model(
        "TrainingConfig", __base__=Section, __module__=TrainingConfig.__module__, times=(int, 10), **kept
    )
    monkeypatch.setitem(digests.RENAMED, "TrainingConfig.times", "rounds")
    monkeypatch.setitem(digests.ALWAYS, "TrainingConfig", digests.ALWAYS["TrainingConfig"] | {"times"})
    assert digest_json(digested(renamed(times=3))) == digest_json(digested(TrainingConfig(rounds=3)))


def test_a_section_that_the_record_does_not_know_is_digested_in_full():
    plugin = create_model("PluginConfig", __base__=Section, size=(int, 3), deep=(TrainingConfig, TrainingConfig()))
    assert digested(plugin()) == {"size": 3, "deep": digested(TrainingConfig())}


def test_a_plugins_section_with_the_name_of_one_of_ours_is_digested_in_full(monkeypatch):
    """The record would leave settings out, and give others the names that ours had once."""
    fields = {"timestep_sampling": (str, "uniform"), "kind": (str, "swirl"), "added": (int, 7)}
    monkeypatch.setitem(digests.SINCE, "FlowConfig.added", 7)
    for base in (Section, FlowConfig):
        plugin = create_model("FlowConfig", __base__=base, __module__="swirl.settings", **fields)
        assert digested(plugin()) == {"timestep_sampling": "uniform", "kind": "swirl", "added": 7}
    ours = create_model("FlowConfig", __base__=Section, __module__=FlowConfig.__module__, **fields)
    assert digested(ours()) == {"time_law": "uniform", "kind": "swirl"}


def test_sections_in_lists_and_mappings_follow_the_rule_too():
    holder = create_model(
        "Holder", __base__=Section, many=(tuple[TrainingConfig, ...], ()), named=(dict[str, TrainingConfig], {})
    )
    one = TrainingConfig()
    found = digested(holder(many=(one,), named={"a": one}))
    assert found == {"many": [digested(one)], "named": {"a": digested(one)}}
    assert "ema_others" not in json.dumps(found)
