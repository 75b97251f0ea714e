from typing import get_args

import pytest

from cmrfed.evaluation.results.catalogue import MEASURES, metric
from cmrfed.federation.settings import FederationConfig
from cmrfed.generators.settings import SAMPLERS
from cmrfed.report.methods import _MEASURES, SOURCES, bibliography, paragraphs
from cmrfed.synthesis.settings import PostProcessing


def run_of(kind="flow", sampler="euler", guidance=1.0, strategy="fedavg"):
    generator = {"process": {"kind": kind}, "sampler": {"name": sampler, "steps": 20, "guidance_scale": guidance}}
    stage = {"generator": generator, "training": {"rounds": 3, "local_steps": 20}}
    experiment = {"mask": stage, "image": stage, "federation": {"strategy": {"name": strategy}}}
    return {"experiment": experiment, "sites": [{"name": "a"}, {"name": "b"}]}


def cited(run, metrics=()):
    return {key for paragraph in paragraphs(run, metrics) for key in paragraph.sources}


def test_cites_what_was_run_and_nothing_else():
    assert cited(run_of()) == {"flow", "flower", "fedavg"}
    assert cited(run_of("ddpm", "dpm++", 2.0, "krum")) == {"ddpm", "dpm++", "guidance", "flower", "krum"}


def test_post_processing_of_masks_is_named_where_there_was_some():
    run = run_of()
    assert "largest piece" not in " ".join(p.text for p in paragraphs(run, ()))
    for method in set(get_args(PostProcessing)) - {"none"}:
        run["experiment"]["synthesis"] = {"mask_post_processing": method}
        masks, images = paragraphs(run, ())[:2]
        assert masks.text.endswith("Of each structure on a slice the largest piece alone was kept.")
        assert "largest piece" not in images.text


def test_public_weights_are_named_where_a_run_began_with_them():
    run = run_of()
    assert "phantom" not in " ".join(p.text for p in paragraphs(run, ()))
    run["experiment"]["pretrain"] = {"patients": 120, "scanners": 6, "mask": {"rounds": 1}, "image": {"rounds": 1}}
    start, federation = [p.text for p in paragraphs(run, ())][-2:]
    assert "first trained on a phantom alone (120 simulated patients on 6 simulated scanners)" in start
    assert federation.startswith("The generators were trained at 2 sites")


def test_a_latent_generator_is_said_to_draw_latents_of_a_public_autoencoder():
    run = run_of()
    image = run["experiment"]["image"]
    run["experiment"]["image"] = image | {"generator": image["generator"] | {"autoencoder": {"channels": [8, 8]}}}
    public = {"patients": 120, "scanners": 6, "mask": None, "image": None, "autoencoder": {"steps": 9}}
    run["experiment"]["pretrain"] = public
    text = " ".join(p.text for p in paragraphs(run, ()))
    assert "flow matching on straight paths on the latents of an autoencoder, sampled" in text
    assert text.count("latents of an autoencoder") == 1, "masks are drawn as they are"
    assert "The autoencoder was trained on a phantom alone (120 simulated patients" in text
    assert "learned from no patient" in text
    assert "began with public weights" not in text
    assert "latent" in cited(run)
    run["experiment"]["pretrain"] = public | {"image": {"rounds": 1}}
    text = " ".join(p.text for p in paragraphs(run, ()))
    assert "The image generator was first trained on a phantom alone" in text


def test_segmenters_of_each_site_are_named_where_there_were_any():
    pooled, site = (metric("utility.dice", 0.8, {"arm": arm, "test": "holdout"}) for arm in ("real", "site"))
    assert "each site" not in paragraphs(None, [pooled])[-1].text
    assert "each site alone" in paragraphs(None, [pooled, site])[-1].text


def test_a_stage_without_rounds_is_not_said_to_have_been_trained_at_sites():
    run = run_of()
    run["experiment"]["mask"] = run["experiment"]["mask"] | {"training": {"rounds": 0, "local_steps": 20}}
    text = " ".join(p.text for p in paragraphs(run, ()))
    assert "The generator of one stage was trained at 2 sites" in text
    assert "fedavg" in cited(run)
    assert "combined them by" in text
    assert "for the masks" not in text
    assert "3 rounds of 20 local steps for the images" in text
    run["experiment"]["image"] = run["experiment"]["mask"]
    assert "No site was asked to train" in " ".join(p.text for p in paragraphs(run, ()))
    assert "flower" not in cited(run)


def strategies():
    union = FederationConfig.model_json_schema()["$defs"]
    return [d["properties"]["name"]["const"] for d in union.values() if "const" in d["properties"].get("name", {})]


@pytest.mark.parametrize("strategy", strategies())
def test_every_strategy_has_words_and_a_source(strategy):
    words = paragraphs(run_of(strategy=strategy), ())[-1]
    assert len(words.sources) == 2
    assert set(words.sources) <= set(SOURCES)


@pytest.mark.parametrize("sampler", SAMPLERS.builtin_names)
def test_every_sampler_is_named(sampler):
    assert f"sampled with {sampler} in 20 steps" in paragraphs(run_of(sampler=sampler), ())[0].text


def test_sources_are_numbered_in_order_of_first_use():
    numbers, texts = bibliography(paragraphs(run_of("ddpm", "ddim"), ()))
    assert list(numbers.values()) == list(range(1, len(texts) + 1))
    assert texts[numbers["ddpm"] - 1].startswith("Ho J")


def test_an_evaluation_alone_says_nothing_of_training():
    assert paragraphs(None, []) == []


def test_only_measured_values_are_cited():
    dice = [metric(f"utility.{m}", 0.5, {"arm": "real", "test": "holdout"}) for m in ("dice", "dice-gain")]
    assert cited(None, [metric("fidelity.ms-ssim", 0.5), *dice]) == {"ms-ssim", "dice", "monai", "bootstrap"}
    assert cited(None, [metric("fidelity.ssim", 0.5)]) == {"ssim", "bootstrap"}


def test_every_measure_that_has_words_is_in_the_catalogue_and_has_its_sources():
    assert set(_MEASURES) <= set(MEASURES)
    assert {source for _, sources in _MEASURES.values() for source in sources} <= set(SOURCES)


def attack(key, attack, space):
    return metric(f"leakage.{key}", 0.5, {"attack": attack, "space": space})


def test_attacks_on_the_generator_are_named_with_their_sources():
    found = [attack("auc", "loss", "white-box"), attack("auc", "secmi", "white-box")]
    last = paragraphs(None, [*found, attack("control", "pia", "white-box")])[-1]
    assert "attacked as well, by patient: loss, SecMI;" in last.text
    assert last.sources == ("loss-attack", "secmi")
    near = paragraphs(None, [attack("auc", "nearest-neighbour", "pixels")])[-1].text
    assert "attacked as well" not in near
    assert "membership inference attacks" in near
