"""The clipped sum of the private step against one backward per patient by hand, and against Opacus' functorch mode.

Opacus' hooks mode is no oracle here: its convolutions assume NCHW strides, which attention does not keep.
"""

import pytest
import torch
from diffusers import UNet2DModel
from monai.networks.nets import BasicUNet, DiffusionModelUNet
from opacus import GradSampleModule
from torch import nn

from cmrfed.privacy.dpsgd.mechanism import MechanismConfig, PrivateSGD
from cmrfed.privacy.event import PrivacyEvent

EVENT = PrivacyEvent(noise_multiplier=1.0, sampling_rate=1.0, steps=1, run="r", stage="s", round=1, digest="d")
PATIENTS, DRAWS = 3, 2


class Diffusers(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )

    def forward(self, x, time):
        return self.net(x, time).sample


class Monai(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=(8, 8),
            attention_levels=(False, True),
            num_res_blocks=1,
            num_head_channels=4,
            norm_num_groups=4,
        )

    def forward(self, x, time):
        return self.net(x, time)


class MonaiBasic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = BasicUNet(2, 1, 1, features=(4, 4, 4, 4, 4, 4), norm=("group", {"num_groups": 2}))
        for part in self.net.modules():  # Opacus' backward hooks do not allow in-place activations
            part.inplace = False

    def forward(self, x, time):
        return self.net(x) + time.view(-1, 1, 1, 1) * 0


NETWORKS = [(Diffusers, 8), (Monai, 8), (MonaiBasic, 16)]


def world(make, size):
    torch.manual_seed(0)
    module = make()
    for parameter in module.parameters():  # no layer that starts at zero and hides an error
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    x = torch.randn(PATIENTS, DRAWS, 1, size, size)
    return module, x, torch.randint(0, 1000, (PATIENTS, DRAWS)), torch.randn_like(x)


def losses_of(module, x, time, target):
    return (module(x, time) - target).square().flatten(1).mean(1)


def clip_and_add(gradients, bound):
    """Gradients (N, P) → clipped sum (P,), in float64."""
    return sum(g * min(1.0, bound / float(g.norm())) for g in gradients.double())


def by_hand(module, x, time, target):
    rows = []
    for patient in range(PATIENTS):
        module.zero_grad()
        losses_of(module, x[patient], time[patient], target[patient]).mean().backward()
        rows.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
    module.zero_grad()
    return torch.stack(rows)


def by_functorch(module, x, time, target):
    wrapped = GradSampleModule(module, loss_reduction="sum", force_functorch=True)
    losses_of(wrapped, x.flatten(0, 1), time.flatten(), target.flatten(0, 1)).sum().backward()
    each = torch.cat([p.grad_sample.flatten(1) for p in module.parameters()], 1)
    return each.unflatten(0, (PATIENTS, DRAWS)).mean(1)


def by_private_step(module, bound, x, time, target):
    config = MechanismConfig(clip_norm=bound, declared_patients=PATIENTS)
    step = PrivateSGD(module, torch.optim.AdamW(module.parameters()), EVENT, PATIENTS, config)
    step._accumulate(list(range(PATIENTS)), lambda i: losses_of(module, x[i], time[i], target[i]))
    return torch.cat([p.summed_grad.flatten() for p in step.parameters]).double()


@pytest.mark.parametrize(("make", "size"), NETWORKS)
@pytest.mark.parametrize("oracle", [by_hand, by_functorch])
def test_the_clipped_sum_is_right(make, size, oracle):
    module, *data = world(make, size)
    gradients = oracle(make_copy(module, make), *data)
    bound = float(gradients.norm(dim=1).median())  # some are clipped, some are not
    expected = clip_and_add(gradients, bound)
    found = by_private_step(module, bound, *data)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def make_copy(module, make):
    """An untouched twin: Opacus leaves hooks and attributes behind."""
    twin = make()
    twin.load_state_dict(module.state_dict())
    return twin
