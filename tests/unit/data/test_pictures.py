import numpy as np
from PIL import Image

from cmrfed.data.labels import Label
from cmrfed.data.pictures import COLOURS, coloured, enlarge, grey, outlined, save_png, sheet


def test_grey_maps_the_range_to_black_and_white_and_clips():
    picture = grey(np.array([[-1.0, 0.0], [1.0, 5.0]]))
    assert picture.dtype == np.uint8
    assert picture[..., 0].tolist() == [[0, 128], [255, 255]]
    assert (picture == picture[..., :1]).all()


def test_the_outline_is_the_inner_border_and_the_inside_stays_visible():
    mask = np.zeros((7, 7), np.uint8)
    mask[1:6, 1:6] = Label.LV
    picture = outlined(np.zeros((7, 7)), mask)
    border = (picture == COLOURS[Label.LV]).all(-1)
    expected = mask > 0
    expected[2:5, 2:5] = False
    assert np.array_equal(border, expected)
    assert (picture[2:5, 2:5] == 128).all()


def test_a_structure_at_the_edge_of_the_picture_is_closed():
    mask = np.full((3, 3), Label.MYO, np.uint8)
    border = (outlined(np.zeros((3, 3)), mask) == COLOURS[Label.MYO]).all(-1)
    assert border.sum() == 8


def test_each_label_has_a_colour_of_its_own():
    picture = coloured(np.arange(4).reshape(2, 2))
    assert len({tuple(colour) for colour in picture.reshape(-1, 3)}) == 4


def test_enlarging_repeats_pixels():
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(enlarge(picture, 3)[::3, ::3], picture)
    assert enlarge(picture, 3).shape == (6, 6, 3)


def test_a_sheet_has_rows_of_any_length_on_white():
    black = np.zeros((4, 5, 3), np.uint8)
    made = sheet([[black, black, black], [black]], gap=2)
    assert made.shape == (10, 19, 3)
    assert (made[6:, 7:] == 255).all()
    assert (made[:4, :5] == 0).all()
    assert (made[4:6] == 255).all()


def test_a_png_is_what_was_given(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    save_png(tmp_path / "new" / "a.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), picture)
