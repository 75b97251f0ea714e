from pathlib import Path

import pytest

from cmrfed.data.synthetic import NOT_PRIVATE, NOTICE, PAIRED, PrivacyStatement
from cmrfed.pipeline.files.contents import CATALOGUE, CONTENTS, item_of, may_leave, write_contents
from cmrfed.pipeline.privacy.guarantee import PUBLIC
from tests.run_folder import write_run_folder

PRIVATE = PrivacyStatement(differentially_private=True, statement="ε ≤ 8.", unit="patient", epsilon=8.0, delta=0.01)


@pytest.mark.parametrize(
    ("path", "leaves"),
    [
        ("synthetic/masks/syn-0001_ED.nii.gz", "under the claim"),
        ("generators/image-ema-0.95/unet/config.json", "under the claim"),
        ("image/round-0007/global.safetensors", "under the claim"),
        ("image/round-0007/metrics.json", "no"),
        ("mask/pending-0007/sum.safetensors", "no"),
        ("start/codec/config.json", "yes"),
        ("run.json", "no"),
        ("split.json", "no"),
        ("sites/00/state/a-0123/image/round-0001/reply.safetensors", "no"),
        ("paired/masks/real-0123456789ab_ED.nii.gz", "no"),
        ("reconstructed/images/real-0123456789ab_ED.nii.gz", "no"),
        ("evaluation/features/synthetic.npy", "no"),
        ("report.html", "no"),
        (".replies/site-0.npy", "no"),
        (".run.lock", "no"),
        ("paired/" + NOTICE, "no"),
        (CONTENTS, "yes"),
    ],
)
def test_what_a_file_is(path: str, leaves: str) -> None:
    item = item_of(path)
    assert item is not None
    assert item.leaves == leaves
    assert item.what
    assert item.why


@pytest.mark.parametrize(
    "path", ["notes.txt", "image/round-0007/replies.npy", "image/weights.pt", "synthetic", "pairs.csv"]
)
def test_what_the_catalogue_does_not_name_may_not_leave(path: str) -> None:
    assert item_of(path) is None
    assert not may_leave(path, PRIVATE)


def test_the_claim_decides_for_what_was_learned_from_patients_and_for_nothing_else() -> None:
    drawn = "synthetic/images/syn-0001_ED.nii.gz"
    assert [may_leave(drawn, claim) for claim in (PRIVATE, PUBLIC, NOT_PRIVATE, PAIRED)] == [True, True, False, False]
    for claim in (PRIVATE, PUBLIC, NOT_PRIVATE):
        assert not may_leave("split.json", claim)
        assert may_leave("audit.json", claim)


def test_the_list_stands_in_the_folder_and_notices_in_what_may_not_leave(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    write_contents(folder, None)
    page = (folder / CONTENTS).read_text()
    assert "nothing is claimed yet" in page
    assert all(f"| `{item.pattern}` | {item.what} |" in page for item in CATALOGUE)
    assert "| `synthetic/` | the synthetic data set | no |" in page
    assert "without noise" in (folder / "evaluation" / NOTICE).read_text()
    assert not (folder / "synthetic" / NOTICE).exists()
    write_contents(folder, PRIVATE)
    assert "ε ≤ 8." in (folder / CONTENTS).read_text()
    assert "| `synthetic/` | the synthetic data set | yes |" in (folder / CONTENTS).read_text()
    write_contents(folder, NOT_PRIVATE)
    assert "| `synthetic/` | the synthetic data set | no |" in (folder / CONTENTS).read_text()
