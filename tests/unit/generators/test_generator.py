import json

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel
from pydantic import ValidationError

from cmrfed.core.artifacts import digest_folder
from cmrfed.core.errors import ConfigError, DataError
from cmrfed.core.settings.digests import digested
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import FlowConfig, GeneratorConfig, SamplerConfig
from tests.generator_world import (
    TINY_AUTOENCODER,
    ddpm,
    random_condition,
    same_weights,
    tiny_config,
    tiny_generator,
)

FAMILIES = {
    "v": ("pixel", ddpm("v_prediction")),
    "epsilon": ("pixel", ddpm("epsilon")),
    "sample": ("mask", ddpm("sample")),
    "flow": ("pixel", FlowConfig()),
    "latent v": ("latent", ddpm("v_prediction")),
    "latent flow": ("latent", FlowConfig()),
}


@pytest.fixture(params=list(FAMILIES))
def generator(request):
    return tiny_generator(*FAMILIES[request.param])


def raw_and_condition(generator, count=3):
    rng = torch.Generator().manual_seed(4)
    if generator.config.codec == "mask":
        return torch.randint(4, (count, 16, 16), generator=rng), random_condition(count, masks=2)
    return torch.rand(count, 1, 16, 16, generator=rng) * 2 - 1, random_condition(count)


# --- loss ---------------------------------------------------------------------------------------
def test_the_loss_is_one_number_per_item_and_that_of_the_item_alone(generator):
    raw, cond = raw_and_condition(generator)
    loss = generator.loss(raw, cond, torch.Generator().manual_seed(8))
    array = generator.codec.encode(raw)
    noisy, time, target = generator.process.perturb(array, torch.Generator().manual_seed(8))
    planes = generator.network.condition_planes(cond)
    for i in range(3):
        one = generator.network(noisy[i : i + 1], time[i : i + 1], planes[i : i + 1])
        assert loss.shape == (3,)
        assert torch.allclose(loss[i], (one - target[i : i + 1]).square().mean(), rtol=1e-4)


def test_condition_dropout_trains_the_unconditional_side():
    generator = tiny_generator(condition_dropout=0.999999)
    raw, cond = raw_and_condition(generator)
    other = random_condition(3, seed=5)
    first, second = (generator.loss(raw, c, torch.Generator().manual_seed(8)) for c in (cond, other))
    assert torch.equal(first, second), "what is forgotten cannot matter"


def test_the_initial_weights_follow_from_the_seed_and_leave_the_global_stream_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, same, other = (Generator(tiny_config(), seed).network.state_dict() for seed in (1, 1, 2))
    assert same_weights(first, same)
    assert not same_weights(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


# --- samples ------------------------------------------------------------------------------------
def test_samples_have_the_form_of_the_data(generator):
    _, cond = raw_and_condition(generator)
    drawn = generator.sample(cond, [1, 2, 3])
    if generator.config.codec == "mask":
        assert drawn.shape == (3, 16, 16)
        assert drawn.dtype == torch.int64
        assert drawn.min() >= 0
        assert drawn.max() <= 3
    else:
        assert drawn.shape == (3, 1, 16, 16)
        assert drawn.dtype == torch.float32
        assert drawn.abs().max() <= 1


@pytest.mark.parametrize(
    ("codec", "process", "sampler"),
    [
        ("pixel", ddpm(), SamplerConfig(name="ancestral", steps=4)),
        ("pixel", FlowConfig(), SamplerConfig(name="heun", steps=3)),
        ("latent", ddpm(), SamplerConfig(name="ancestral", steps=4)),
        ("latent", FlowConfig(), SamplerConfig(name="heun", steps=3)),
    ],
    ids=["ancestral", "heun", "latent ancestral", "latent heun"],
)
def test_a_sample_depends_on_its_own_seed_whatever_the_batch(codec, process, sampler):
    generator = tiny_generator(codec, process, sampler=sampler)
    cond = random_condition(5)
    alone = torch.cat([generator.sample(cond[i : i + 1], [i]) for i in range(5)])
    for batch_size in (1, 2, 5):
        assert torch.allclose(generator.sample(cond, range(5), batch_size=batch_size), alone, atol=1e-5)
    changed = generator.sample(cond, [0, 1, 99, 3, 4])
    assert torch.allclose(changed[[0, 1, 3, 4]], alone[[0, 1, 3, 4]], atol=1e-5)
    assert not torch.allclose(changed[2], alone[2], atol=1e-2)


def test_samplers_clip_what_is_bounded_and_no_latent():
    assert all(tiny_generator(codec, ddpm()).sampler().config.clip_sample for codec in ("pixel", "mask"))
    latent = tiny_generator("latent", ddpm())
    for name in ("ddim", "ancestral"):
        assert latent.sampler(SamplerConfig(name=name, steps=2)).config.clip_sample is False


def test_the_loss_reaches_the_network_and_not_the_autoencoder():
    generator = tiny_generator("latent", ddpm())
    raw, cond = raw_and_condition(generator)
    before = generator.codec.weights
    generator.loss(raw.requires_grad_(), cond, torch.Generator().manual_seed(8)).sum().backward()
    assert all(p.grad is not None for p in generator.network.parameters())
    assert raw.grad is None
    assert all(p.grad is None for p in generator.codec.parameters())
    assert same_weights(before, generator.codec.weights)


def test_an_autoencoder_belongs_to_latent_images_and_the_size_must_fit():
    with pytest.raises(ValidationError, match="codec mask: an autoencoder belongs to latent images"):
        tiny_config("mask", autoencoder=TINY_AUTOENCODER)
    with pytest.raises(ValidationError, match="codec latent: an autoencoder belongs to latent images"):
        GeneratorConfig(codec="latent")
    with pytest.raises(ValidationError, match=r"size_px 20 must be a multiple of 8 .*× shrink of the autoencoder"):
        tiny_config("latent", size_px=20)


def test_a_generator_without_its_autoencoder_neither_learns_nor_draws_nor_is_saved(tmp_path):
    generator = Generator(tiny_config("latent"))
    raw, cond = raw_and_condition(generator)
    calls = (
        lambda: generator.loss(raw, cond, torch.Generator()),
        lambda: generator.sample(cond, [1, 2, 3]),
        lambda: generator.save(tmp_path / "g"),
    )
    for call in calls:
        with pytest.raises(ConfigError, match="the autoencoder has no weights"):
            call()
    assert not list(tmp_path.iterdir())


def test_settings_without_an_autoencoder_are_written_as_they_were_before_there_was_one():
    assert "autoencoder" not in digested(tiny_config())
    assert "autoencoder" in tiny_config("latent").model_dump(mode="json")


def test_noise_that_is_shared_whole_gives_equal_samples_for_equal_conditions():
    generator, cond = tiny_generator(), random_condition(1)
    twice = type(cond)(*(torch.cat([t, t]) for t in vars(cond).values()))
    whole = generator.sample(twice, [1, 2], shared_seeds=[7, 7], shared=1.0)
    none = generator.sample(twice, [1, 2], shared_seeds=[7, 7], shared=0.0)
    assert torch.allclose(whole[0], whole[1], atol=1e-5)
    assert torch.allclose(none, generator.sample(twice, [1, 2]), atol=1e-5)


@pytest.mark.parametrize("shared", [0.25, 0.5])
def test_shared_noise_keeps_the_variance_and_correlates_by_its_share(shared):
    generator = tiny_generator(codec="mask", process=ddpm("sample"))
    noise = generator._noise(range(100), [7] * 100, shared).flatten(1)
    assert noise.std() == pytest.approx(1, abs=0.05)
    correlation = torch.corrcoef(noise)
    off = correlation[~torch.eye(100, dtype=torch.bool)]
    assert off.mean() == pytest.approx(shared, abs=0.05)


def test_guidance_of_scale_one_is_none_and_costs_nothing():
    sampler = SamplerConfig(name="euler", steps=3, guidance_scale=1.0)
    generator = tiny_generator(condition_dropout=0.1, sampler=sampler)
    calls, cond = [], random_condition(2)
    generator.network.register_forward_hook(lambda *_: calls.append(1))
    one = generator.sample(cond, [1, 2])
    assert len(calls) == 3
    almost = generator.sample(cond, [1, 2], sampler=SamplerConfig(name="euler", steps=3, guidance_scale=1 + 1e-6))
    assert len(calls) == 9
    assert torch.allclose(one, almost, atol=1e-4)
    strong = generator.sample(cond, [1, 2], sampler=SamplerConfig(name="euler", steps=3, guidance_scale=3))
    assert not torch.allclose(one, strong, atol=1e-2)


def test_each_sample_needs_a_seed():
    with pytest.raises(ConfigError, match=r"each sample needs a seed\. Got: 1 seeds\. Expected: 2"):
        tiny_generator().sample(random_condition(2), [1])


def test_progress_counts_the_items():
    seen = []
    tiny_generator().sample(random_condition(5), range(5), batch_size=2, on_batch=seen.append)
    assert seen == [2, 2, 1]


# --- files --------------------------------------------------------------------------------------
def test_a_generator_that_was_saved_with_the_former_names_of_settings_is_loaded(tmp_path):
    made = tiny_generator()
    made.save(tmp_path / "g")
    path = tmp_path / "g" / "generator.json"
    text = path.read_text(encoding="utf-8")
    assert '"timestep_sampling"' in text
    path.write_text(text.replace('"timestep_sampling"', '"time_law"'), encoding="utf-8")
    assert Generator.load(tmp_path / "g").config == made.config


def test_what_is_saved_is_loaded(generator, tmp_path):
    generator.save(tmp_path / "g")
    loaded = Generator.load(tmp_path / "g")
    assert loaded.config == generator.config
    assert not loaded.training
    assert same_weights(loaded.network.state_dict(), generator.network.state_dict())
    _, cond = raw_and_condition(generator)
    assert torch.equal(loaded.sample(cond, [1, 2, 3]), generator.sample(cond, [1, 2, 3]))
    assert digest_folder(tmp_path / "g") == digest_folder(_saved_again(loaded, tmp_path / "again"))


def _saved_again(generator, folder):
    generator.save(folder)
    return folder


def test_diffusers_itself_opens_the_folder(generator, tmp_path):
    folder = tmp_path / "g"
    generator.save(folder)
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
    assert same_weights(unet.state_dict(), generator.network.unet.state_dict())
    flow = isinstance(generator.config.process, FlowConfig)
    kind = FlowMatchEulerDiscreteScheduler if flow else DDPMScheduler
    scheduler = kind.from_pretrained(folder, subfolder="scheduler")
    pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    assert type(pipeline.scheduler) is kind
    assert same_weights(pipeline.unet.state_dict(), unet.state_dict())
    if generator.config.codec == "latent":
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", use_safetensors=True)
        assert same_weights(vae.state_dict(), generator.codec.weights)
    if not flow:
        assert scheduler.config.prediction_type == generator.config.process.prediction
        assert scheduler.config.beta_schedule == "squaredcos_cap_v2"


def test_a_saved_generator_is_safetensors_json_and_its_card(generator, tmp_path):
    generator.save(tmp_path / "g")
    files = {path.relative_to(tmp_path / "g").as_posix() for path in (tmp_path / "g").rglob("*") if path.is_file()}
    latent = generator.config.codec == "latent"
    autoencoder = {"vae/config.json", "vae/diffusion_pytorch_model.safetensors"} if latent else set()
    assert files == autoencoder | {
        "README.md",
        "generator.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _garble(path):
    path.write_bytes(b"\x00" * 50)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (WEIGHTS, _cut),
        (WEIGHTS, _garble),
        (WEIGHTS, lambda path: path.unlink()),
        ("unet/config.json", _garble),
        ("unet/config.json", lambda path: path.unlink()),
        ("generator.json", _cut),
        ("generator.json", lambda path: path.unlink()),
        ("generator.json", lambda path: path.write_text("[]")),
    ],
)
def test_a_damaged_folder_is_an_error_that_names_the_file(tmp_path, name, damage):
    folder = tmp_path / "g"
    tiny_generator().save(folder)
    damage(folder / name)
    with pytest.raises(DataError, match=str(folder / name.split("/")[0])):
        Generator.load(folder)


def test_weights_of_another_generator_are_refused(tmp_path):
    folder = tmp_path / "g"
    tiny_generator().save(folder)
    config = json.loads((folder / "generator.json").read_text())
    (folder / "generator.json").write_text(json.dumps({**config, "styles": 5}))
    with pytest.raises(DataError, match=r"(?s)the weights in .*unet cannot be used.*save the generator again"):
        Generator.load(folder)


def test_a_save_that_fails_leaves_the_old_generator(tmp_path, monkeypatch):
    folder = tmp_path / "g"
    tiny_generator().save(folder)
    monkeypatch.setattr(
        "cmrfed.generators.generator.write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(OSError, match="No space"):
        tiny_generator(seed=2).save(folder)
    assert same_weights(Generator.load(folder).network.state_dict(), tiny_generator().network.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["g"]
