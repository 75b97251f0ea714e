"""The segmenter as a stage trains it: its loss sees one item at a time, and is the segmenter of evaluations."""

import pytest
import torch
from torch.nn import functional

from cmrfed.core.errors import ConfigError, DataError
from cmrfed.data.draws import SliceBatch
from cmrfed.generators.labeller import TrainableSegmenter, segmentation_losses
from cmrfed.generators.settings import SegmenterNetwork
from cmrfed.generators.trainable import make_trainable, weight_layout
from cmrfed.privacy.settings import PrivacyConfig
from cmrfed.segmentation.files import load_segmenter
from cmrfed.segmentation.segmenter import build_segmenter
from cmrfed.segmentation.settings import SegmenterConfig
from cmrfed.training.batches import stage_inputs
from cmrfed.training.private import train_only
from cmrfed.training.rehearsal import made_up_slices
from tests.generator_world import same_weights, tiny_config

NETWORK = SegmenterNetwork(channels=(4, 8))


def made_up(count: int) -> SliceBatch:
    return made_up_slices(count, 16, torch.Generator().manual_seed(1))


def loss_by_hand(logits: torch.Tensor, labels: torch.Tensor) -> float:
    share, found = logits.softmax(0), -logits.log_softmax(0)
    entropy = sum(float(found[labels[i, j], i, j]) for i in range(16) for j in range(16)) / 256
    dice = []
    for structure in (1, 2, 3):
        truth = (labels == structure).float()
        both, either = float((share[structure] * truth).sum()), float((share[structure] + truth).sum())
        dice.append(1 - (2 * both + 1) / (either + 1))
    return entropy + sum(dice) / 3


def test_the_loss_of_an_item_is_cross_entropy_and_soft_dice_of_its_own_pixels():
    batch = made_up(3)
    logits = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    labels = batch.mask.clone()
    labels[1] = 0  # no structure at all
    expected = torch.tensor([loss_by_hand(one, mask) for one, mask in zip(logits, labels, strict=True)])
    assert torch.allclose(segmentation_losses(logits, labels), expected, rtol=1e-5)


def test_a_perfect_segmenter_has_no_loss_and_a_structure_that_is_not_there_has_a_gradient():
    labels = made_up(2).mask
    perfect = 50.0 * functional.one_hot(labels, 4).movedim(-1, 1).float()
    assert segmentation_losses(perfect, labels).abs().max() < 1e-5
    logits = torch.zeros(1, 4, 16, 16, requires_grad=True)
    segmentation_losses(logits, torch.zeros(1, 16, 16, dtype=torch.int64)).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[:, 1:] > 0).all(), "towards less of what is not there"


def test_the_stage_learns_masks_from_images_item_by_item():
    model = make_trainable("segmenter", tiny_config(segmenter=NETWORK))
    assert isinstance(model, TrainableSegmenter)
    raw, cond = stage_inputs(made_up(3), "segmenter", style=0)
    assert raw.shape == (3, 1, 16, 16)
    assert cond.masks.shape == (3, 1, 16, 16)
    together = model.loss(raw, cond, torch.Generator())
    alone = torch.cat([model.loss(raw[i : i + 1], cond[i : i + 1], torch.Generator()) for i in range(3)])
    assert torch.allclose(together, alone, rtol=1e-5)
    assert not dict(model.network.named_buffers()), "no statistics of patients beside the weights"


def test_it_is_the_segmenter_of_evaluations_and_is_saved_as_one(tmp_path):
    model = make_trainable("segmenter", tiny_config(segmenter=NETWORK), seed=4)
    assert same_weights(
        model.network.state_dict(), build_segmenter(SegmenterConfig(channels=NETWORK.channels), 4).state_dict()
    )
    model.save(tmp_path / "segmenter")
    loaded = load_segmenter(tmp_path / "segmenter")
    assert same_weights(loaded.state_dict(), model.network.state_dict())
    assert not loaded.training
    card = (tmp_path / "segmenter" / "README.md").read_text(encoding="utf-8")
    assert "promises none" in card
    assert "channels [4, 8]" in card
    (tmp_path / "segmenter" / "segmenter.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"the segmenter in .* cannot be used"):
        load_segmenter(tmp_path / "segmenter")


def test_few_parameters_are_trained_by_default_the_first_and_the_last_block():
    network = make_trainable("segmenter", tiny_config(segmenter=SegmenterNetwork())).network
    trained = train_only(network, PrivacyConfig().segmenter.trained)
    assert sum(p.numel() for p in trained) == 3_947
    names = {name.split(".")[1] for name, p in network.named_parameters() if p.requires_grad}
    assert names == {"0", "2"}


@pytest.mark.parametrize(
    ("channels", "message"), [((4, 8, 8, 8, 8, 8), "must be a multiple of 32"), ((4,), "at least 2")]
)
def test_a_network_that_does_not_fit_is_refused(channels, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(segmenter=SegmenterNetwork(channels=channels))


def test_requests_name_its_weights_without_making_them():
    layout = weight_layout("segmenter", tiny_config(segmenter=NETWORK))
    weights = make_trainable("segmenter", tiny_config(segmenter=NETWORK)).network.state_dict()
    assert {name: tuple(w.shape) for name, w in weights.items()} == {name: shape for name, (_, shape) in layout.items()}
    with pytest.raises((ConfigError, AssertionError)):
        weight_layout("segmenter", tiny_config())
