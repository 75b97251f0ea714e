"""A site: what it answers, what it stores, what it refuses."""

from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from cmrfed.core.artifacts import digest_state, load_state, write_text
from cmrfed.core.errors import DataError
from cmrfed.federation.messages import (
    StageJob,
    TrainReply,
    decode_info,
    decode_reply,
    encode_job,
    to_array_record,
)
from cmrfed.federation.site.answers import answer_hello, open_site
from cmrfed.federation.site.folder import SiteFolder, SiteRecord
from cmrfed.federation.site.site import Site, answer_train
from cmrfed.privacy.ledger.journal import Journal
from cmrfed.training.loop import LocalTrainer
from tests.federation_world import OPEN, make_sites, tiny_cohort
from tests.federation_world import tiny_request as request


def make_context(node: dict, run: dict | None = None) -> Context:
    return Context(1, 2, node, RecordDict(), run or {})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.open(make_sites(tmp_path)[1])


def weights_of(reply: TrainReply) -> str:
    assert reply.arrays is not None
    return digest_state(reply.arrays)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch):
    def forbid() -> None:
        monkeypatch.setattr(LocalTrainer, "run", lambda *_, **__: pytest.fail("it trained again"))

    return forbid


def test_it_introduces_itself(site: Site) -> None:
    info = site.hello()
    assert (info.name, info.style, info.patients) == ("site-1", 1, 2)


def test_simulation_and_hospital_open_the_same_site(tmp_path: Path) -> None:
    root = make_sites(tmp_path)[2]
    simulated = open_site(
        make_context({"partition-id": 2, "num-partitions": 3}, {"run-dir": str(tmp_path)}), SiteFolder
    )
    deployed = open_site(make_context({"site-root": str(root)}), SiteFolder)
    assert simulated.root == deployed.root
    assert simulated.record == deployed.record
    with pytest.raises(DataError, match=r"knows no site.*Do: start the node with --node-config"):
        open_site(make_context({}), SiteFolder)


def test_a_round_changes_the_weights_and_reports_its_losses(site: Site) -> None:
    job, weights = request()
    reply = site.train_round(job, weights)
    assert reply.status == "ok"
    assert weights_of(reply) != job.model_digest
    assert set(reply.metrics or {}) == {"loss", "first_loss", "last_loss", "items", "seconds"}
    assert digest_state(weights) == job.model_digest, "the request itself stays as it was"


def test_a_repeated_request_gets_the_stored_reply(site: Site, no_training) -> None:
    job, weights = request()
    first = site.train_round(job, weights)
    no_training()
    again = Site.open(site.root).train_round(job, weights)
    assert weights_of(again) == weights_of(first)
    assert again.metrics == first.metrics


def test_another_request_for_the_same_round_is_trained_anew(site: Site) -> None:
    first = site.train_round(*request(weights_seed=0))
    other = site.train_round(*request(weights_seed=1))
    assert weights_of(first) != weights_of(other)
    assert weights_of(site.train_round(*request(weights_seed=0))) == weights_of(first)


def test_the_optimizer_goes_on_where_the_last_round_in_which_the_site_took_part_left_it(site: Site) -> None:
    for number in (1, 2, 5):
        site.train_round(*request(number))
    folder = site.root / "state" / "r" / "image"
    assert sorted(p.name for p in folder.iterdir()) == ["round-0002", "round-0005"]
    moments, _ = load_state(folder / "round-0005" / "optimizer.safetensors")
    steps = {float(v) for k, v in moments.items() if k.endswith(".step")}
    assert steps == {3 * 2.0}, "three rounds of two steps"


def test_a_round_that_is_begun_again_does_not_see_its_own_optimizer_state(site: Site) -> None:
    site.train_round(*request(1))
    first = site.train_round(*request(2))
    state = site.root / "state" / "r" / "image" / "round-0002"
    for path in state.iterdir():
        path.unlink()
    state.rmdir()
    assert weights_of(site.train_round(*request(2))) == weights_of(first)


def test_left_overs_of_a_killed_write_are_swept_away(site: Site) -> None:
    left = site.root / "state" / "r" / "image" / ".round-0001.abc.partial"
    left.mkdir(parents=True)
    site.train_round(*request())
    assert not left.exists()


def test_the_proximal_term_holds_the_weights_back(site: Site) -> None:
    job, weights = request()
    free, held = site.train_round(job, weights), site.train_round(*request(proximal_mu=1000.0))
    assert weights_of(free) != weights_of(held)


def test_the_number_of_threads_is_that_of_the_job_and_is_put_back(site: Site, monkeypatch) -> None:
    seen, original = [], LocalTrainer.run

    def run(self, *args, **kwargs):
        seen.append(torch.get_num_threads())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LocalTrainer, "run", run)
    before = torch.get_num_threads()
    site.train_round(*request(threads=before + 1))
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_sites_of_the_same_style_draw_differently(tmp_path: Path) -> None:
    cohort = tiny_cohort(tmp_path / "cohort")
    replies = []
    for name in ("one", "two"):
        made = Site.register(tmp_path / name, SiteRecord(name=name, cohort=str(cohort.root)), OPEN)
        replies.append(weights_of(made.train_round(*request())))
    assert replies[0] != replies[1]


def answer(root: Path, job: StageJob, weights: dict[str, torch.Tensor]) -> TrainReply:
    return decode_reply(answer_train(make_context({"site-root": str(root)}), encode_job(job, to_array_record(weights))))


def test_a_site_without_masks_refuses_with_the_reason(tmp_path: Path) -> None:
    cohort = tiny_cohort(tmp_path / "cohort", has_mask=False)
    Site.register(tmp_path, SiteRecord(name="bare", cohort=str(cohort.root)), OPEN)
    reply = answer(tmp_path, *request())
    assert (reply.site, reply.status) == ("bare", "refused")
    assert "without masks" in reply.reason
    assert "Do:" in reply.reason


def test_a_site_without_patients_refuses_with_the_reason(tmp_path: Path) -> None:
    cohort = tiny_cohort(tmp_path / "cohort")
    Site.register(tmp_path, SiteRecord(name="void", cohort=str(cohort.root), patients=()), OPEN)
    assert "fewer patients than its policy asks for" in answer(tmp_path, *request()).reason


def test_another_digest_is_refused(site: Site) -> None:
    job, weights = request()
    reply = answer(site.root, job.model_copy(update={"model_digest": "0" * 64}), weights)
    assert reply.status == "refused"
    assert "0" * 64 in reply.reason
    assert job.model_digest in reply.reason


def test_a_damaged_site_file_is_named(tmp_path: Path) -> None:
    write_text(tmp_path / "site.json", '{"name": "a", "colour": 1}')
    with pytest.raises(DataError, match=r"site.json cannot be used.*colour"):
        Site.open(tmp_path)
    content = answer_hello(make_context({"site-root": str(tmp_path)}))
    with pytest.raises(Exception, match=r"refused.*the reason is in its own log"):
        decode_info(content)
    assert "colour" not in answer(tmp_path, *request()).reason, "nobody has said yet what may leave"


def test_what_was_trained_and_what_was_declined_is_in_the_sites_journal(tmp_path: Path) -> None:
    root = make_sites(tmp_path)[0]
    journal = Journal(root)
    journal.start()
    answer(root, *request())
    closed = OPEN.model_copy(update={"permitted_stages": ("mask",)})
    closed.save(root / "policy.yaml")
    assert answer(root, *request(2)).status == "refused"
    trained, declined = journal.read()
    assert (trained.kind, trained.body["stage"], trained.body["round"], trained.body["unit"]) == (
        "trained",
        "image",
        1,
        "none",
    )
    assert declined.kind == "declined"
    assert "policy does not permit this stage" in declined.body["why"]
