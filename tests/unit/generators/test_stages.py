"""What the stages say of themselves fits together, and nobody else asks for their names."""

import re
from typing import get_args

import pytest

from cmrfed.config.experiment import Experiment
from cmrfed.federation.server.metrics import RoundMetrics
from cmrfed.generators.settings import CodecName, GeneratorSettings
from cmrfed.generators.stages import DRAWING, STAGES, StageName, drawn_by
from cmrfed.report.html import _training
from tests.generator_world import TINY_AUTOENCODER, tiny_config
from tests.support import ROOT


def test_stages_come_in_the_order_of_their_names_and_draw_or_train_something_else():
    assert tuple(STAGES) == get_args(StageName)
    others = [name for name, stage in STAGES.items() if stage.trains_autoencoder or stage.trains_segmenter]
    assert tuple(DRAWING) == tuple(name for name in STAGES if name not in others)
    assert all(stage.name == name and stage.section in Experiment.model_fields for name, stage in STAGES.items())
    assert all(name in Experiment.model_fields for name in STAGES)


@pytest.mark.parametrize("codec", get_args(CodecName))
def test_a_generator_tells_which_stage_it_is_of(codec):
    assert drawn_by(tiny_config(codec)).name == ("mask" if codec == "mask" else "image")
    assert drawn_by(tiny_config(codec)).condition_masks == tiny_config(codec).condition_masks


@pytest.mark.parametrize("name", STAGES)
def test_weights_of_an_autoencoder_go_with_the_generators_that_have_one_alone(name):
    latent = GeneratorSettings(autoencoder=TINY_AUTOENCODER)
    assert not STAGES[name].needs_autoencoder(GeneratorSettings())
    assert STAGES[name].needs_autoencoder(latent) == (name in DRAWING)


@pytest.mark.parametrize("name", STAGES)
def test_losses_of_every_stage_are_drawn_under_its_heading(name):
    entry = RoundMetrics.model_validate(
        {
            "stage": name,
            "round": 1,
            "seconds": None,
            "sites": {"a": {"loss": 1.0, "status": "ok"}},
            "bytes_down": 0,
            "bytes_up": 0,
        }
    )
    (chart,) = _training({name: [entry]})["charts"]
    assert STAGES[name].heading in str(chart)


def test_no_module_compares_the_name_of_a_stage():
    compared = re.compile(
        r"""stage(\.name)? [!=]= "|name [!=]= "(mask|image|autoencoder|segmenter)"|codec == "mask\""""
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / "cmrfed").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if compared.search(line)
    ]
    assert found == []
