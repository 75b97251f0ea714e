import pytest
import torch
from pydantic import ValidationError

from cmrfed.generators.backbone import UNet
from cmrfed.generators.settings import BackboneConfig
from tests.generator_world import TINY, random_condition, tiny_config


def test_prediction_has_the_shape_of_the_array_at_any_patch_size():
    for patch in (1, 2, 4):
        config = TINY.model_copy(update={"patch_px": patch})
        network = UNet(config, size=16, channels=4, masks=2, styles=3)
        planes = network.condition_planes(random_condition(2, masks=2))
        assert planes.shape == (2, 2 * 4 * patch**2 + 7, 16 // patch, 16 // patch)
        out = network(torch.randn(2, 4, 16, 16), torch.tensor([0.0, 999.0]), planes)
        assert out.shape == (2, 4, 16, 16)
        assert out.dtype == torch.float32


def test_prediction_depends_on_time_and_on_every_part_of_the_condition():
    network = UNet(TINY, size=16, channels=1, masks=1, styles=3).eval()
    cond = random_condition(1)
    noisy, time = torch.randn(1, 1, 16, 16), torch.tensor([500.0])
    changed = [random_condition(1, seed=9).masks, 1 - cond.phase, cond.position + 0.3, (cond.style + 1) % 3]
    base = network(noisy, time, network.condition_planes(cond))
    assert not torch.allclose(base, network(noisy, time + 200, network.condition_planes(cond)))
    for name, value in zip(("masks", "phase", "position", "style"), changed, strict=True):
        other = type(cond)(**{**vars(cond), name: value})
        assert not torch.allclose(base, network(noisy, time, network.condition_planes(other))), name


def test_silenced_styles_and_nothing_else_are_not_heard():
    network = UNet(TINY, size=16, channels=1, masks=1, styles=3).eval()
    before = {name: weights.clone() for name, weights in network.state_dict().items()}
    network.zero_site_conditioning()
    cond = random_condition(3)
    noisy, time = torch.randn(3, 1, 16, 16), torch.tensor([500.0] * 3)
    other = type(cond)(**(vars(cond) | {"style": (cond.style + 1) % 3}))
    draws = [network(noisy, time, network.condition_planes(c)) for c in (cond, other)]
    assert torch.equal(*draws)
    changed = {name for name, weights in network.state_dict().items() if not weights.equal(before[name])}
    assert changed == {"unet.conv_in.weight"}
    kept = network.unet.conv_in.weight[:, :-3]
    assert torch.equal(kept, before["unet.conv_in.weight"][:, :-3])


def test_a_narrow_network_attends_too():
    """Attention with more channels a head than the network has would silently have no weights at all."""
    network = UNet(TINY, size=16, channels=1, masks=1, styles=1)
    assert all(p.numel() for p in network.parameters())
    assert network.unet.mid_block.attentions[0].heads >= 1


def test_attention_levels_are_the_deepest():
    config = BackboneConfig(channels=(8, 16), norm_groups=4, attention_levels=1)
    unet = UNet(config, size=16, channels=1, masks=1, styles=1).unet
    assert unet.config.down_block_types == ("DownBlock2D", "AttnDownBlock2D")
    assert unet.config.up_block_types == ("AttnUpBlock2D", "UpBlock2D")


def test_weights_are_all_floating_point_so_that_they_can_be_averaged():
    state = UNet(TINY, size=16, channels=1, masks=1, styles=1).state_dict()
    assert all(tensor.is_floating_point() for tensor in state.values())


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(ValidationError, match=r"size_px 18 must be a multiple of 4 \(patch_px × 2\^\(levels - 1\)\)"):
        tiny_config(size_px=18)
