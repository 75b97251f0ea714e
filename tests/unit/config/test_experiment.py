from pathlib import Path

import pytest
import yaml

from cmrfed.config.experiment import _names, _note_once, override, put, read_recipe, resolve, resolve_evaluation
from cmrfed.core.errors import ConfigError
from cmrfed.generators.generator import Generator

RECIPES = sorted((Path(__file__).parents[3] / "configs" / "recipes").rglob("*.yaml"))
FAMILIES = [path for path in RECIPES if path.parent.name == "acdc-families"]
FAMILY_ALONE = {
    "name",
    "image.generator.process",
    "image.generator.sampler",
    "image.generator.autoencoder",
    "image.generator.backbone.patch_px",
    "pretrain",
}
SMALL = {"name": "small", "data": {"phantom": {"patients": 6}}}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_is_shipped_can_be_used(recipe):
    experiment = resolve(recipe)
    assert experiment.name == (f"acdc-{recipe.stem}" if recipe in FAMILIES else recipe.stem)
    assert experiment.generator("mask").codec == "mask"
    assert experiment.generator("image").styles == experiment.sites


def differing(left, right, place=""):
    """The settings in which two trees differ, by their full names; a family's own are named as a whole."""
    if not (isinstance(left, dict) and isinstance(right, dict)) or place in FAMILY_ALONE:
        return {place} if left != right else set()
    names = ((name, f"{place}.{name}".lstrip(".")) for name in {*left, *right})
    return set().union(*(differing(left.get(name), right.get(name), whole) for name, whole in names))


def test_recipes_that_compare_families_differ_in_nothing_else():
    trees = {path.stem: resolve(path).model_dump(mode="json") for path in FAMILIES}
    assert set(trees) == {"ddpm", "fm", "ldm"}
    acdc = resolve(next(path for path in RECIPES if path.stem == "acdc-64")).model_dump(mode="json")
    for name, tree in trees.items():
        assert differing(trees["ddpm"], tree) <= FAMILY_ALONE, name
        assert differing(acdc, tree) <= FAMILY_ALONE, name
    kinds = {name: tree["image"]["generator"]["process"]["kind"] for name, tree in trees.items()}
    assert kinds == {"ddpm": "ddpm", "fm": "flow", "ldm": "ddpm"}
    assert trees["ddpm"]["image"]["generator"]["process"] == trees["ldm"]["image"]["generator"]["process"]


def test_networks_of_the_families_see_arrays_of_one_size_and_are_alike_in_size():
    networks = [Generator(resolve(path).generator("image")).network for path in FAMILIES]
    assert len({network.unet.config.sample_size for network in networks}) == 1
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert max(counts) < 1.03 * min(counts)


# --- misspelt and misfit settings -------------------------------------------------------------------
@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("sede=1", r"sede: no such setting \(did you mean seed\?\)"),
        ("data.hold_out=0.5", r"data\.hold_out: no such setting \(did you mean data\.holdout\?\)"),
        (
            "image.training.learning_rat=1",
            r"image\.training\.learning_rat: .*did you mean image\.training\.learning_rate\?",
        ),
        ("federation.strategy={nam: krum}", r"federation\.strategy: needs a 'name'"),
        ("federation.strategy={name: krum, byz: 1}", r"federation\.strategy\.krum\.byz: no such setting"),
        ("federation.round=1", r"federation\.round: no such setting"),
        ("training.rounds=1", r"training: no such setting"),
        ("xyzzy=1", r"xyzzy: no such setting\."),
        ("image.training.rounds=-1", r"image\.training\.rounds: Input should be greater than or equal to 0"),
        ("image.training.rounds=0", r"image\.training\.rounds is 0, but there are no pre-trained weights.*pretrain"),
        ("image.generator.autoencoder={}", r"autoencoder is trained on the phantom.*pretrain: \{autoencoder: \{\}\}"),
        ("pretrain={autoencoder: {}}", r"pretrain\.autoencoder is set without image\.generator\.autoencoder"),
        ("mask.generator.autoencoder={}", r"codec mask: an autoencoder belongs to latent images"),
        ("seed=many", r"seed: Input should be a valid integer"),
        ("pretrain.patient=9", r"pretrain\.patient: no such setting \(did you mean pretrain\.patients\?\)"),
        ("pretrain.patients=9", r"9 patients are too few for 10 scanners"),
        ("data=3", r"data: Input should be a valid dictionary"),
        ("data.partition=3", r"data\.partition: Input should be a valid dictionary"),
        ("name=Bad Name", r"name: String should match"),
        ("data.size_px=50", r"size_px 50 must be a multiple of"),
        ("synthesis.slices=[5, 3]", r"fewest <= most"),
        ("data.partition.only=3", r"only is 3, but the 3 site\(s\) are numbered from 0"),
        ("federation.sites=7", r"federation\.sites is 7, data\.partition\.sites is 3: set the latter alone"),
        ("image.generator.sampler.name=ddim", r"sampler ddim does not fit this process.*euler or heun"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(assignment, message):
    with pytest.raises(ConfigError, match=message):
        resolve(SMALL, [assignment])


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError, match=r"sede: .*; wordl: "):
        resolve(SMALL, ["sede=1", "wordl=2"])


def test_the_file_is_named(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(SMALL | {"sede": 1}))
    with pytest.raises(ConfigError, match=r"r\.yaml cannot be used\. Got: sede.*Do: correct these settings"):
        resolve(recipe)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not a readable recipe"),
        (b"\xff\xfe\x00binary", "is not a readable recipe"),
        (b"- a\n- b", r"is not a recipe\. Got: list\. Expected: a YAML mapping"),
        (b"", r"is not a recipe\. Got: an empty file"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, content, message):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_recipe(tmp_path / "r.yaml")


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no recipe .*none\.yaml.*configs/recipes"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is not a readable recipe"):
        read_recipe(tmp_path)


# --- overrides -----------------------------------------------------------------------------------------
def test_an_override_of_a_section_that_is_named_twice_changes_it_in_its_place_only():
    tree = yaml.safe_load("a: &net {channels: 8}\nb: *net")
    assert override(tree, ["a.channels=9"]) == {"a": {"channels": 9}, "b": {"channels": 8}}


def test_overrides_are_yaml_go_deep_and_leave_the_tree_alone():
    tree = {"a": {"b": 1, "c": None}, "d": 2}
    changed = override(tree, ["a.b=[1, 2]", "a.c.e=x", "f.g=1e-3", "d=null", "h=a=b", "a.b=3"])
    assert changed == {"a": {"b": 3, "c": {"e": "x"}}, "d": None, "f": {"g": "1e-3"}, "h": "a=b"}
    assert tree == {"a": {"b": 1, "c": None}, "d": 2}


def test_a_number_without_a_point_is_still_a_number_where_one_is_due():
    assert resolve(SMALL, ["image.training.learning_rate=1e-3"]).image.training.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", r"an override cannot be read\. Got: seed\. Expected: key=value"),
        ("=1", "an override cannot be read"),
        ("seed=[1", r"an override cannot be read\. Got: seed=\[1\. Expected: a value in YAML"),
        ("name.x.y=1", r"setting name\.x\.y goes through a value\. Got: name"),
    ],
)
def test_an_override_that_cannot_be_read(text, message):
    with pytest.raises(ConfigError, match=message):
        override(SMALL, [text])


# --- sites and digest ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("environment", "said", "threads"),
    [
        (None, None, 2),
        ("1", None, 1),
        ("3,2", None, 3),
        ("1", "compute.threads=4", 4),
        ("1", "compute.device=cpu", 1),
        ("0", None, 2),
        ("many", None, 2),
    ],
)
def test_threads_are_those_of_the_environment_where_a_recipe_does_not_say(monkeypatch, environment, said, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    tree = {"name": "x", "data": {}}
    assert resolve(tree, [said] if said else []).compute.threads == threads
    assert tree == {"name": "x", "data": {}}


def test_sites_are_counted_once():
    experiment = resolve(SMALL, ["data.partition.sites=5"])
    assert experiment.sites == experiment.federation.sites == 5


def test_a_site_that_trains_alone_is_the_whole_federation():
    experiment = resolve(SMALL, ["data.partition.only=2"])
    assert experiment.sites == experiment.federation.sites == experiment.federation.min_sites == 1
    assert experiment.generator("image").styles == 1


DECIDES = [
    "data.partition.only=1",
    "seed=1",
    "name=other",
    "image.training.rounds=3",
    "federation.min_sites=3",
    "data.holdout=0.5",
    "pretrain={}",
]
DOES_NOT = [
    "compute.threads=1",
    "synthesis.patients=3",
    "evaluation.utility=false",
    "data.cohorts=[a]",
    "data.external={x: y}",
]


@pytest.mark.parametrize("assignment", DECIDES)
def test_the_digest_changes_with_what_decides_the_weights(assignment):
    assert resolve(SMALL, [assignment]).digest != resolve(SMALL).digest


def test_the_digest_changes_with_the_settings_of_pre_training():
    assert resolve(SMALL, ["pretrain.mask.rounds=3"]).digest != resolve(SMALL, ["pretrain={}"]).digest


@pytest.mark.parametrize("assignment", DOES_NOT)
def test_the_digest_does_not_change_with_what_comes_after_or_beside(assignment):
    assert resolve(SMALL, [assignment]).digest == resolve(SMALL).digest


def test_a_default_that_is_spelt_out_gives_the_same_digest():
    assert resolve(SMALL, ["seed=0", "data.size_px=64"]).digest == resolve(SMALL).digest


def test_an_experiment_survives_the_record_of_its_run():
    experiment = resolve(SMALL)
    assert type(experiment).model_validate(experiment.model_dump(mode="json")) == experiment


# --- renamed settings -----------------------------------------------------------------------------
RENAMED = {
    "mask.generator.process.timestep_sampling": ("mask.generator.process.time_law", "uniform"),
    "image.training.extra_ema_decays": ("image.training.ema_others", [0.5]),
    "privacy.image.noise_multiplicity": ("privacy.image.draws", 3),
    "evaluation.attacks.noise_samples": ("evaluation.attacks.noises", 2),
}


@pytest.mark.parametrize("new", RENAMED)
def test_a_renamed_setting_is_read_by_either_name_and_the_note_says_the_current_one(new, capsys):
    _note_once.cache_clear()
    old, value = RENAMED[new]
    base = {"name": "demo", "data": {}, "mask": {"generator": {"process": {"kind": "flow"}}}}
    current = resolve(put(base, {new: value}))
    assert not capsys.readouterr().err
    former = resolve(put(base, {old: value}))
    assert f"{old.split('.')[-1]} is now {new.split('.')[-1]}" in " ".join(capsys.readouterr().err.split())
    assert former == current
    assert former.digest == current.digest


@pytest.mark.parametrize("new", RENAMED)
def test_an_override_is_stronger_than_a_recipe_under_whatever_name(new):
    old, value = RENAMED[new]
    base = {"name": "demo", "data": {}, "mask": {"generator": {"process": {"kind": "flow"}}}}
    for first, second in ((old, new), (new, old)):
        tree = put(put(base, {first: "not a value"}), {second: value})
        assert resolve(tree) == resolve(put(base, {new: value}))


def test_every_renamed_setting_is_tested():
    assert _names() == {tuple(name.split(".")[-1] for name in (old, new)) for new, (old, _) in RENAMED.items()}


# --- an evaluation without a recipe ---------------------------------------------------------------
def test_settings_of_an_evaluation_need_no_recipe():
    assert resolve_evaluation() == resolve({"name": "demo", "data": {}}).evaluation
    assert resolve_evaluation(["segmenter.steps=7"]).segmenter.steps == 7


def test_a_misspelt_setting_of_an_evaluation_is_refused_by_its_own_name():
    with pytest.raises(ConfigError, match=r"segmenter\.stepz: no such setting \(did you mean segmenter\.steps\?\)"):
        resolve_evaluation(["segmenter.stepz=7"])
