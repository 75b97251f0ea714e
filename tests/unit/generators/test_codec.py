import torch

from cmrfed.generators.codec import make_codec


def test_labels_survive_the_round_trip_even_with_noise():
    labels = torch.randint(4, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    codec = make_codec("mask")
    array = codec.encode(labels)
    assert array.shape == (2, codec.channels, 8, 8)
    assert set(array.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(codec.decode(array), labels)
    assert torch.equal(codec.decode(array + 0.9 * torch.rand(array.shape)), labels)


def test_images_survive_the_round_trip_and_are_clipped_to_the_range():
    codec = make_codec("pixel")
    image = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    assert torch.equal(codec.decode(codec.encode(image)), image)
    assert codec.decode(image * 3).abs().max() == 1
