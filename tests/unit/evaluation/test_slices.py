import numpy as np

from cmrfed.core.artifacts import digest_bytes, digest_json, digest_state
from cmrfed.evaluation.slices import patient_means, rows_of
from tests.evaluation_world import sliced


def test_a_choice_of_slices_is_that_of_every_array(tmp_path):
    whole = sliced(tmp_path / "c", range(4), "c")
    assert whole.take(np.ones(len(whole), bool)) is whole
    chosen = np.arange(len(whole)) % 3 == 0
    for index in (chosen, np.flatnonzero(chosen)[::-1]):
        part = whole.take(index)
        for name in ("images", "masks", "owners", "cases", "has_mask"):
            assert (getattr(part, name) == getattr(whole, name)[index]).all()


def test_the_digest_is_that_of_the_arrays_in_memory(tmp_path):
    one = sliced(tmp_path / "c", range(3), "c")
    parts = [one.images.tobytes(), one.masks.tobytes(), "|".join(one.cases).encode()]
    assert one.digest == digest_json([digest_bytes(part) for part in parts])
    labelled = one.labelled()
    assert labelled.digest == digest_state({"images": labelled.images, "masks": labelled.masks.long()})


def test_rows_and_means_of_patients_are_those_of_a_slow_loop():
    rng = np.random.default_rng(0)
    owners, values = rng.choice(list("cab"), 40), rng.normal(size=40)
    assert list(rows_of(owners)) == ["a", "b", "c"]
    for patient, rows in rows_of(owners).items():
        assert rows.tolist() == np.flatnonzero(owners == patient).tolist()
    slow = [values[owners == patient].mean() for patient in np.unique(owners)]
    assert patient_means(values, owners).tolist() == slow
    assert rows_of(owners[:0]) == {}
