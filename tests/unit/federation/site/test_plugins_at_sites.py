"""A deployed site answers with the code that its owner approved, and with no plugin that lies beside it."""

import sys

import pytest

from cmrfed.config.experiment import check_fits_sites, resolve
from cmrfed.core.artifacts import digest_state
from cmrfed.core.errors import ConfigError
from cmrfed.data.cohort import Cohort
from cmrfed.federation.messages import StageJob
from cmrfed.federation.site.folder import SiteRecord
from cmrfed.federation.site.site import Site
from cmrfed.generators.generator import Generator
from cmrfed.privacy.policy import SitePolicy
from tests.federation_world import OPEN, SIZE_PX, tiny_cohort
from tests.plugin_world import install
from tests.unit.federation.site.test_private_site import answer

CODE = """
from typing import Literal
from cmrfed.generators.processes.flow import Flow
from cmrfed.generators.samplers import Sampler
from cmrfed.generators.settings import FlowConfig, ProcessSettings, BackboneConfig

class Other(ProcessSettings):
    kind: Literal["other"] = "other"
    family = FlowConfig.family
    samplers = ("euler",)

    def build(self, *, bounded):
        return Flow(FlowConfig())

class Wide(BackboneConfig):
    kind: Literal["wide"] = "wide"

SLOW = Sampler(lambda process, steps: None, families=("flow",))
"""
PARTS = {
    "process": ("cmrfed.process_families", "paint-process", "other", "Other", {"process": {"kind": "other"}}),
    "backbone": ("cmrfed.backbones", "paint-backbone", "wide", "Wide", {"backbone": {"kind": "wide"}}),
    "sampler": ("cmrfed.samplers", "paint-sampler", "slow", "SLOW", {"sampler": {"name": "slow"}}),
}
SMALL = {"backbone": {"channels": [8, 16], "patch_px": 2, "norm_groups": 4}, "sampler": {"name": "euler", "steps": 2}}


@pytest.fixture(params=PARTS)
def settings(request, tmp_path, monkeypatch):
    """Settings of a generator that needs a plugin, which is installed."""
    group, distribution, name, part, asked = PARTS[request.param]
    module = distribution.replace("-", "_")
    install(tmp_path / "beside", group, distribution, {name: f"{module}:{part}"}, CODE)
    monkeypatch.syspath_prepend(tmp_path / "beside")
    yield {key: value | asked.get(key, {}) for key, value in (asked | SMALL).items()}
    sys.modules.pop(module, None)


def request_of(settings: dict) -> tuple[StageJob, dict]:
    full = {**settings, "codec": "pixel", "size_px": SIZE_PX, "condition_masks": 1, "styles": 2}
    config = StageJob.model_fields["generator"].annotation.model_validate(full)
    weights = Generator(config).network.state_dict()
    training = {"rounds": 1, "local_steps": 1, "batch_size": 2}
    asked = {"run": "tiny", "experiment": "x", "seed": 0, "stage": "image", "round": 1, "training": training}
    return StageJob(**asked, generator=config, model_digest=digest_state(weights)), weights


def make_site(tmp_path, *, simulated: bool) -> Site:
    cohort: Cohort = tiny_cohort(tmp_path / "cohort", 2)
    policy: SitePolicy = OPEN
    record = SiteRecord(name="ward", cohort=str(cohort.root), simulated=simulated)
    return Site.register(tmp_path / "site", record, policy)


def test_a_deployed_site_refuses_it_says_why_and_loads_nothing(settings, tmp_path):
    job, weights = request_of(settings)
    site = make_site(tmp_path, simulated=False)
    before = (site.open_ledger().history().payments, set(sys.modules))
    loaded = [name for name in sys.modules if name.startswith("paint_")]
    for name in loaded:
        del sys.modules[name]
    reply = answer(site, job, weights)
    assert reply.status == "refused"
    assert reply.reason.startswith(
        "the request needs a plugin, and this site runs the code that its owner has approved, which has none. Got: "
    )
    assert "is not part of the code that this site has approved" in reply.reason
    assert "simulate the sites with `cmrfed run`" in reply.reason
    assert not [name for name in sys.modules if name.startswith("paint_")]
    assert site.open_ledger().history().payments == before[0] == ()


def test_a_simulated_site_takes_it(settings, tmp_path):
    job, weights = request_of(settings)
    reply = answer(make_site(tmp_path, simulated=True), job, weights)
    assert reply.status == "ok", reply.reason


def test_a_coordinator_refuses_it_before_anything_is_sent(settings):
    tree = {"name": "tiny", "data": {"phantom": {}, "size_px": 32}, "image": {"generator": settings}}
    experiment = resolve(tree | {"mask": {"generator": SMALL}})
    with pytest.raises(ConfigError, match=r"deployed sites cannot train the image generator: they run approved code"):
        check_fits_sites(experiment)
    check_fits_sites(resolve({**tree, "image": {"generator": SMALL}, "mask": {"generator": SMALL}}))
