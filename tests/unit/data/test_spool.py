"""Pixels on disk: the same numbers as in memory, and no set in memory."""

import tracemalloc

import numpy as np
import pytest

from cmrfed.core.artifacts import digest_bytes
from cmrfed.data.spool import Spool, blocks, digest_array, release
from cmrfed.evaluation.privacy.nearest import Points, neighbours


def spooled(rows, folder):
    spool = Spool(rows.shape[1:], rows.dtype, folder)
    for part in np.array_split(rows, 3):
        spool.add(part)
    return spool.array()


def test_what_is_written_in_parts_is_read_as_one_array(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 4, 6))
    array = spooled(rows, tmp_path / "new")
    assert (array == rows).all()
    array[3] = 7
    release(array)
    assert (array[3] == 7).all(), "what was written is not lost with the memory"
    assert not list((tmp_path / "new").iterdir()), "the file has no name that a crash could leave behind"


def test_rows_are_cast_and_those_of_another_shape_are_refused(tmp_path):
    spool = Spool((2, 2), np.float32, tmp_path)
    spool.add(np.ones((3, 2, 2), np.float16))
    with pytest.raises(ValueError, match=r"\(2, 3\) do not fit"):
        spool.add(np.ones((3, 2, 3)))
    assert spool.array().dtype == np.float32
    assert Spool((2, 2), np.uint8).array().shape == (0, 2, 2)


@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_blocks_are_the_array_in_order(tmp_path, count):
    rows = np.arange(count * 2.0).reshape(count, 2)
    found = list(blocks(spooled(rows, tmp_path), 4))
    assert [place.start for place, _ in found] == list(range(0, count, 4))
    assert np.concatenate([rows[:0], *(block for _, block in found)]).tolist() == rows.tolist()


def test_a_digest_in_blocks_is_that_of_the_whole(tmp_path):
    rows = np.random.default_rng(0).normal(size=(600, 5)).astype(np.float32)
    assert digest_array(spooled(rows, tmp_path)) == digest_array(rows) == digest_bytes(rows.tobytes())


def test_neighbours_are_found_without_a_set_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("cmrfed.evaluation.privacy.nearest.BLOCK", 128)
    rows = np.random.default_rng(0).normal(size=(4096, 512)).astype(np.float32)
    points = Points(spooled(rows, tmp_path), np.repeat(np.arange(32).astype(str), 128))
    size = rows.nbytes
    del rows
    neighbours(points.vectors[:9], points.vectors[:9], points.owners[:9])  # what libraries take once
    tracemalloc.start()
    try:
        points.to(points)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.5 * size
