"""A federation small enough for tests: discs for hearts, a network of a few thousand weights, real code."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID

from cmrfed.core.artifacts import digest_state
from cmrfed.data.cohort import Cohort, PatientRecord, PreparedPatient, Volume, write_cohort
from cmrfed.data.labels import Phase
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.federation.messages import Spent, StageJob
from cmrfed.federation.server.run import FederatedRun, StageSpec
from cmrfed.federation.settings import FederationConfig
from cmrfed.federation.site.folder import SiteRecord
from cmrfed.federation.site.site import Site
from cmrfed.generators.autoencoder import LatentCodec
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import BackboneConfig, GeneratorConfig
from cmrfed.privacy.ledger.statement import Loss
from cmrfed.privacy.policy import SitePolicy
from cmrfed.training.settings import TrainingConfig
from tests.generator_world import TINY_AUTOENCODER, tiny_autoencoder

SIZE_PX = 16


def tiny_patient(number: int, *, has_mask: bool = True) -> PreparedPatient:
    """Two phases of two slices: concentric discs whose radius depends on the patient."""
    rows, columns = np.mgrid[:SIZE_PX, :SIZE_PX] - SIZE_PX / 2
    radius = np.hypot(rows, columns)
    volumes = []
    for phase in Phase:
        outer = 4 + number % 3 - 0.5 * phase
        mask = np.where(radius < outer - 2, 3, np.where(radius < outer, 2, 0)).astype(np.uint8)
        image = (np.array([-0.8, 0, -0.2, 0.7], np.float32)[mask]) + np.float32(0.01 * number)
        volumes.append(
            Volume(f"p{number:02d}", phase, np.stack([image] * 2), np.stack([mask] * 2) if has_mask else None, None)
        )
    return PreparedPatient(PatientRecord(patient_id=f"p{number:02d}", has_mask=has_mask), tuple(volumes))


def tiny_cohort(path: Path, patients: int = 6, *, has_mask: bool = True) -> Cohort:
    """Write a cohort of discs."""
    made = [tiny_patient(i, has_mask=has_mask) for i in range(patients)]
    return write_cohort(path, made, name="discs", source="test", size_px=SIZE_PX, labels=(2, 3), preparation={})


def site_roots(run_dir: Path, sites: int) -> list[Path]:
    """Where `make_sites` puts them."""
    return [run_dir / "sites" / f"{i:02d}" for i in range(sites)]


NOTHING_PROMISED = Spent(
    unit="none",
    at=(Loss(delta=1e-3, prv=None, rdp=None), Loss(delta=1e-3, prv=None, rdp=None)),
    ledger_hash="0" * 64,
)
OPEN = SitePolicy.of_simulation("none", None, 1e-3)


def make_sites(run_dir: Path, sites: int = 3, policy: SitePolicy | None = None) -> list[Path]:
    """Write site roots that share one cohort: site i has i + 1 patients of its own."""
    total = sites * (sites + 1) // 2
    cohort = tiny_cohort(run_dir / "cohort", total)
    ids, roots = list(cohort.patient_ids), site_roots(run_dir, sites)
    for i, root in enumerate(roots):
        mine, ids = tuple(ids[: i + 1]), ids[i + 1 :]
        record = SiteRecord(name=f"site-{i}", style=i, cohort="../../cohort", patients=mine, simulated=True)
        Site.register(root, record, policy or OPEN)
    return roots


def tiny_stage(name: str = "image", rounds: int = 2, steps: int = 2, **training: object) -> StageSpec:
    """A stage with a network of one level and a few steps."""
    generator = GeneratorConfig(
        codec="pixel" if name == "image" else "mask",
        size_px=SIZE_PX,
        condition_masks=1 if name == "image" else 2,
        styles=8,
        backbone=BackboneConfig(channels=(32,), layers_per_block=1, patch_px=4, attention_levels=0, norm_groups=4),
    )
    settings = {"batch_size": 2, "precision": "fp32", "rounds": rounds, "local_steps": steps, **training}
    return StageSpec(name, generator, TrainingConfig(**settings))


def latent_stage(run_dir: Path, rounds: int = 2, steps: int = 2, **training: object) -> StageSpec:
    """The image stage on the latents of an autoencoder, which lies in the run folder."""
    stage, folder = tiny_stage("image", rounds, steps, **training), run_dir / "start" / "autoencoder"
    settings = stage.generator.model_dump() | {"codec": "latent", "autoencoder": TINY_AUTOENCODER.model_dump()}
    if not folder.exists():
        LatentCodec(TINY_AUTOENCODER, tiny_autoencoder()).save(folder)
    return replace(stage, generator=GeneratorConfig.model_validate(settings), codec=folder)


def tiny_request(number: int = 1, weights_seed: int = 0, **changes: object) -> tuple[StageJob, dict[str, torch.Tensor]]:
    """A request to train one round, and the weights that go with it."""
    stage = tiny_stage(rounds=9)
    weights = {n: w.clone() for n, w in Generator(stage.generator, weights_seed).network.state_dict().items()}
    plain = {
        "run": "r",
        "experiment": "e",
        "seed": 1,
        "stage": "image",
        "round": number,
        "generator": stage.generator,
        "training": stage.training,
        "model_digest": digest_state(weights),
    }
    return StageJob(**{**plain, **changes}), weights


def federated_run(
    run_dir: Path, *stages: StageSpec, grid: LocalGrid | None = None, **federation: object
) -> FederatedRun:
    """A run over the sites of ``run_dir``; unknown keywords go to the FederationConfig."""
    config = FederationConfig(**{"connect_timeout_s": 0.01, **federation})
    return FederatedRun(
        grid or LocalGrid(site_roots(run_dir, config.sites)),
        run_dir,
        run_id="test-run",
        seed=5,
        digest="d" * 64,
        federation=config,
        stages=stages or (tiny_stage(),),
    )


class FaultyGrid(LocalGrid):
    """A grid whose replies can be spoiled or lost.

    Args:
        spoil: Called with (site number, type of message, reply content); returns the content to deliver, or None to
            lose the reply.
    """

    def __init__(self, run_dir: Path, sites: int, spoil: Callable[[int, str, RecordDict], RecordDict | None]) -> None:
        super().__init__(site_roots(run_dir, sites))
        self.spoil = spoil
        self.asked: list[list[int]] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        out, asked = [], []
        assert isinstance(messages, list), "Flower's grid goes through them twice"
        for message in messages:
            number = message.metadata.dst_node_id - SUPERLINK_NODE_ID - 1
            asked.append(number)
            for reply in super().send_and_receive([message], timeout=timeout):
                content = self.spoil(number, message.metadata.message_type, copy.deepcopy(reply.content))
                if content is not None:
                    reply.content = content
                    out.append(reply)
        self.asked.append(asked)
        return out[::-1]  # the order of arrival must not matter


def random_state(seed: int, names: Iterable[str] = ("a", "b")) -> dict[str, torch.Tensor]:
    """Weights for tests of aggregation: float32, of unlike shapes."""
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3 + i, 2, generator=rng) for i, name in enumerate(names)}
