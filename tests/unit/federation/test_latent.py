"""A latent generator in a federation: its autoencoder travels down, is checked, and is trained by nobody."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, Context, RecordDict

from cmrfed.core.artifacts import digest_folder, digest_state, load_state, read_json
from cmrfed.core.errors import ConfigError, DataError, SiteRefused
from cmrfed.core.settings.digests import digested
from cmrfed.federation.messages import StageJob, decode_codec, decode_job, decode_reply, encode_job, to_array_record
from cmrfed.federation.site.site import answer_train
from cmrfed.generators.autoencoder import load_autoencoder
from cmrfed.generators.generator import Generator
from tests.federation_world import (
    FaultyGrid,
    federated_run,
    latent_stage,
    make_sites,
    random_state,
    tiny_request,
    tiny_stage,
)
from tests.generator_world import same_weights, tiny_autoencoder

CODEC = tiny_autoencoder()


@pytest.fixture
def request_for(tmp_path: Path) -> tuple[StageJob, dict[str, torch.Tensor]]:
    """A request with an autoencoder, and the global weights."""
    stage = latent_stage(tmp_path)
    weights = {n: w.clone() for n, w in Generator(stage.generator).network.state_dict().items()}
    changes = {"generator": stage.generator, "model_digest": digest_state(weights)}
    return tiny_request(**changes, codec_digest=digest_state(CODEC))[0], weights


def packed(request_for, codec: dict[str, torch.Tensor] | None = CODEC) -> RecordDict:
    job, weights = request_for
    return encode_job(job, to_array_record(weights), None if codec is None else to_array_record(codec))


# --- the request ----------------------------------------------------------------------------------
def test_the_autoencoder_survives_the_record(request_for) -> None:
    content = packed(request_for)
    job, weights = decode_job(content)
    assert job == request_for[0]
    assert same_weights(weights, request_for[1])
    assert same_weights(dict(decode_codec(content, job) or {}), CODEC)


def test_each_client_gets_an_autoencoder_of_its_own(request_for) -> None:
    shared = to_array_record(CODEC)
    first, second = (encode_job(request_for[0], to_array_record(request_for[1]), shared) for _ in range(2))
    first.array_records["codec"].clear()
    assert len(second.array_records["codec"]) == len(shared) == 1


def test_another_autoencoder_than_announced_is_refused(request_for) -> None:
    with pytest.raises(SiteRefused, match="digest of the autoencoder differs"):
        decode_codec(packed(request_for, tiny_autoencoder(seed=4)), request_for[0])


def test_a_request_that_lacks_its_autoencoder_is_refused(request_for) -> None:
    for content in (packed(request_for, None), packed(request_for)):
        if "codec" in content:
            content["codec"] = ArrayRecord()
        with pytest.raises(SiteRefused, match=r"autoencoder of the request cannot be read.*same version"):
            decode_codec(content, request_for[0])


def test_an_autoencoder_without_use_and_a_use_without_autoencoder_are_no_requests(request_for) -> None:
    job = request_for[0]
    with pytest.raises(ValueError, match="codec_digest belongs to a generator with an autoencoder"):
        tiny_request(codec_digest="d")
    with pytest.raises(ValueError, match="codec_digest belongs to a generator with an autoencoder"):
        tiny_request(generator=job.generator)


def test_the_digest_of_the_autoencoder_is_part_of_the_key_and_of_the_configuration(request_for) -> None:
    job = request_for[0]
    other = job.model_copy(update={"codec_digest": "0" * 64})
    assert (job.key, job.config_digest) != (other.key, other.config_digest)
    assert job.key != other.key
    assert job.config_digest != other.config_digest


def test_a_request_without_one_is_as_it_was(tmp_path: Path) -> None:
    job, weights = tiny_request()
    assert "codec_digest" not in digested(job)
    assert "autoencoder" not in digested(job)["generator"]
    content = encode_job(job, to_array_record(weights))
    assert set(content) == {"arrays", "config"}
    assert decode_codec(content, job) is None


# --- the site ---------------------------------------------------------------------------------------
def test_a_site_refuses_an_autoencoder_that_does_not_fit_before_it_pays(tmp_path: Path, request_for) -> None:
    (root, *_) = make_sites(tmp_path, 2)
    before = (root / "ledger.jsonl").read_bytes()
    wrong = random_state(0)
    job = request_for[0].model_copy(update={"codec_digest": digest_state(wrong)})
    content = encode_job(job, to_array_record(request_for[1]), to_array_record(wrong))
    reply = decode_reply(answer_train(Context(1, 2, {"site-root": str(root)}, RecordDict(), {}), content))
    assert reply.status == "refused"
    assert (root / "ledger.jsonl").read_bytes() == before


# --- the run ----------------------------------------------------------------------------------------
def test_sites_train_the_network_and_send_nothing_of_the_autoencoder_back(tmp_path: Path) -> None:
    roots, stage = make_sites(tmp_path), latent_stage(tmp_path, rounds=1)
    public = digest_folder(stage.codec)
    result = federated_run(tmp_path, stage).start_or_resume()
    for root in roots:
        (path,) = root.glob("state/*/image/round-0001/reply.safetensors")
        assert all(name.startswith("unet.") for name in load_state(path)[0])
    made = Generator.load(result.generators["image"])
    assert same_weights(made.codec.weights, load_autoencoder(stage.codec))
    assert digest_folder(stage.codec) == public
    assert all(name.startswith("unet.") for name in load_state(tmp_path / "image/round-0001/global.safetensors")[0])


def test_bytes_down_count_the_autoencoder(tmp_path: Path) -> None:
    make_sites(tmp_path)
    stage = latent_stage(tmp_path, rounds=1)
    federated_run(tmp_path, stage).start_or_resume()
    told = read_json(tmp_path / "image" / "round-0001" / "metrics.json")
    network = to_array_record(Generator(stage.generator).network.state_dict()).count_bytes()
    assert told["bytes_down"] == 3 * (network + to_array_record(CODEC).count_bytes())


def test_a_run_that_is_killed_goes_on_to_the_same_bits_with_the_same_autoencoder(tmp_path: Path) -> None:
    """The run folder alone is enough."""
    digests = []
    for name, dies_in in (("whole", 0), ("killed", 2)):
        run_dir, rounds = tmp_path / name, []

        def spoil(number, kind, content, dies_in=dies_in, rounds=rounds):
            rounds.append(kind)
            if dies_in and rounds.count("train") == 2 * (dies_in - 1) + 1:
                raise KeyboardInterrupt
            return content

        make_sites(run_dir, 2)
        stage = latent_stage(run_dir, rounds=3)
        grid = FaultyGrid(run_dir, 2, spoil)
        if dies_in:
            with pytest.raises(KeyboardInterrupt):
                federated_run(run_dir, stage, grid=grid, sites=2).start_or_resume()
        result = federated_run(run_dir, latent_stage(run_dir, rounds=3), sites=2).start_or_resume()
        digests.append((result.digests["image"], digest_folder(result.generators["image"])))
    assert digests[0] == digests[1]


def test_a_run_whose_autoencoder_is_gone_says_so(tmp_path: Path) -> None:
    make_sites(tmp_path)
    stage = latent_stage(tmp_path)
    (stage.codec / "config.json").unlink()
    with pytest.raises(DataError, match=r"the autoencoder in .* cannot be used.*cmrfed pretrain"):
        federated_run(tmp_path, stage).start_or_resume()


def test_a_start_that_has_another_codec_is_refused(tmp_path: Path) -> None:
    Generator(tiny_stage().generator).save(tmp_path / "pixel")
    stage = replace(latent_stage(tmp_path), start=tmp_path / "pixel")
    with pytest.raises(ConfigError, match=r"does not fit the recipe.*autoencoder = None; codec = pixel"):
        federated_run(tmp_path, stage).start_or_resume()
