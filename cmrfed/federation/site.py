"""A site: its own folder, its own patients, and the training of one round, safe to repeat.

Folder::

    site.json                                   SiteRecord
    state/<run>/<stage>/round-0007/             the reply and the optimizer's state, written together
        reply.safetensors  optimizer.safetensors
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from flwr.app import Context, RecordDict
from pydantic import Field, ValidationError
from torch import Tensor

from cmrfed.artifacts import load_state, new_folder, read_json, save_state, write_json
from cmrfed.config import Section
from cmrfed.data.cohort import Cohort
from cmrfed.errors import CmrfedError, DataError
from cmrfed.federation.messages import (
    SiteInfo,
    StageJob,
    State,
    TrainReply,
    decode_job,
    encode_info,
    encode_refusal,
    encode_reply,
)
from cmrfed.generators.generator import Generator
from cmrfed.rng import fold
from cmrfed.training.loop import LocalResult, LocalTrainer

KEPT_ROUNDS = 2


class SiteRecord(Section):
    """The content of site.json, written by the site's own staff or by a simulation."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    style: int = Field(0, ge=0)
    """Number of the site's scanner style, a condition of the generator."""
    cohort: str
    """Cohort folder: absolute, or relative to the site's folder."""
    patients: tuple[str, ...] | None = None
    """The site's patients in the cohort; None: all."""
    device: Literal["cpu", "cuda"] = "cpu"

    def save(self, root: Path) -> None:
        """Write ``root``/site.json."""
        write_json(root / "site.json", self.model_dump(mode="json"))


def open_site(context: Context) -> "Site":
    """Open the site that a Flower node stands for: the only difference between simulation and hospital.

    Raises:
        DataError: The node names no folder, or the folder is not a site.
    """
    if "site-root" in context.node_config:
        return Site.open(Path(str(context.node_config["site-root"])))
    run_dir, number = context.run_config.get("run-dir"), context.node_config.get("partition-id")
    if not run_dir or number is None:
        raise DataError(
            "the node knows no site",
            got=f"node config {dict(context.node_config)}, run-dir {run_dir!r}",
            expected="site-root in the node config, or a simulation with run-dir",
            do="start the node with --node-config 'site-root=\"/srv/site\"'",
        )
    return Site.open(Path(str(run_dir)) / "sites" / f"{int(number):02d}")


def answer_train(context: Context, content: RecordDict) -> RecordDict:
    """Answer a request to train; what a user can act on becomes a refusal, not a failure."""
    site, key = "", ""
    try:
        opened = open_site(context)
        site = opened.record.name
        job, arrays = decode_job(content)
        key = job.key
        return encode_reply(opened.train_round(job, arrays))
    except CmrfedError as error:
        return encode_reply(TrainReply(site, "refused", key, str(error)))


def answer_hello(context: Context) -> RecordDict:
    """Answer the question who this is."""
    try:
        return encode_info(open_site(context).hello())
    except CmrfedError as error:
        return encode_refusal(str(error))


class Site:
    """One site. Made by `Site.open`."""

    def __init__(self, root: Path, record: SiteRecord) -> None:
        self.root, self.record = root, record

    @classmethod
    def open(cls, root: Path) -> "Site":
        """Read site.json.

        Raises:
            DataError: There is none, or it is wrong.
        """
        try:
            return cls(root, SiteRecord.model_validate(read_json(root / "site.json")))
        except ValidationError as error:
            raise DataError(
                f"{root}/site.json cannot be used",
                got="; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()),
                expected="name, style, cohort, patients",
                do="correct it",
            ) from None

    @cached_property
    def cohort(self) -> Cohort:
        """The site's patients."""
        return Cohort.open(self.root / self.record.cohort, self.record.patients)

    def hello(self) -> SiteInfo:
        """Name, style and number of patients."""
        return SiteInfo(name=self.record.name, style=self.record.style, patients=len(self.cohort))

    def train_round(self, job: StageJob, arrays: State) -> TrainReply:
        """Train one round from the global weights; a repeated request gets the stored reply.

        The reply and the optimizer's state are on the disk before the reply leaves, so a crash at any moment leads to
        the same weights.

        Args:
            job: What to do; its digests have been checked.
            arrays: Global weights, by name in ``generator.network``.

        Raises:
            DataError: The site's cohort cannot be used for this stage.
        """
        state = _StateFolder(self.root / "state" / job.run / job.stage)
        stored = state.reply(job)
        return stored or self._train(job, arrays, state)

    def _train(self, job: StageJob, arrays: State, state: "_StateFolder") -> TrainReply:
        generator = Generator(job.generator)
        generator.network.load_state_dict(dict(arrays))
        generator.to(self.record.device)
        seed = fold(job.seed, "site", self.record.name)
        trainer = LocalTrainer(generator, self.cohort, job.stage, self.record.style, job.training, seed)
        previous = state.optimizer_before(job.round)
        if previous is not None:
            trainer.load_state_dict(previous)
        steps = job.training.local_steps
        with _threads(job.threads):
            result = trainer.run((job.round - 1) * steps, steps, anchor=arrays, proximal_mu=job.proximal_mu)
        weights = {n: p.detach().cpu() for n, p in generator.network.state_dict().items()}
        reply = TrainReply(self.record.name, "ok", job.key, arrays=weights, metrics=_metrics(result))
        state.save(job, reply, trainer.state_dict())
        return reply


def _metrics(result: LocalResult) -> dict[str, float]:
    return {
        "loss": sum(result.losses) / len(result.losses),
        "first_loss": result.losses[0],
        "last_loss": result.losses[-1],
        "items": float(result.items),
        "seconds": result.seconds,
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _StateFolder:
    """The last rounds of one stage of one run at a site."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _rounds(self) -> list[int]:
        return sorted(int(p.name.removeprefix("round-")) for p in self.path.glob("round-*"))

    def _folder(self, number: int) -> Path:
        return self.path / f"round-{number:04d}"

    def reply(self, job: StageJob) -> TrainReply | None:
        """The stored reply to this very request, or None."""
        path = self._folder(job.round) / "reply.safetensors"
        if not path.is_file():
            return None
        arrays, told = load_state(path)
        if told["key"] != job.key:
            return None
        return TrainReply(told["site"], "ok", job.key, arrays=arrays, metrics=json.loads(told["metrics"]))

    def optimizer_before(self, number: int) -> dict[str, Tensor] | None:
        """The optimizer's state after the last round before ``number`` in which the site took part."""
        earlier = [n for n in self._rounds() if n < number]
        return load_state(self._folder(earlier[-1]) / "optimizer.safetensors")[0] if earlier else None

    def save(self, job: StageJob, reply: TrainReply, optimizer: State) -> None:
        """Write both files at once, then drop what no request can ask for any more."""
        told = {"site": reply.site, "key": reply.key, "metrics": json.dumps(dict(reply.metrics or {}))}
        with new_folder(self._folder(job.round)) as part:
            save_state(part / "reply.safetensors", reply.arrays or {}, told)
            save_state(part / "optimizer.safetensors", optimizer)
        kept = [n for n in self._rounds() if n <= job.round][-KEPT_ROUNDS:]
        for path in [*self.path.glob("round-*"), *self.path.glob(".round-*")]:
            if path.name not in {self._folder(n).name for n in kept}:
                shutil.rmtree(path, ignore_errors=True)
