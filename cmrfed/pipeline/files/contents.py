"""What each file of a run folder is, and whether it may leave: one catalogue, written into the folder as CONTENTS.md.

A file that the catalogue does not name may not leave; tests hold runs to that.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cmrfed.config.experiment import ALL_STAGES
from cmrfed.core.artifacts import write_text
from cmrfed.data.synthetic import MANIFEST, NOTICE, PrivacyStatement, read_manifest

CONTENTS = "CONTENTS.md"

Leaves = Literal["yes", "under the claim", "no"]


@dataclass(frozen=True)
class Item:
    """Files of one kind: where they are, what they are, whether they may leave, and why."""

    pattern: str
    """Relative to the run folder; ``*`` stands for anything but a slash, and a folder for all that is below it."""
    what: str
    leaves: Leaves
    why: str

    def names(self, path: str) -> bool:
        """Whether a file, by its path relative to the run folder, is of this kind."""
        parts = (re.escape(self.pattern).replace(r"\*", "[^/]*"), ".*" if self.pattern.endswith("/") else "")
        return re.fullmatch("".join(parts), path) is not None


_DATA_SET = "synthetic"
_STAGE_ITEMS = tuple(
    item
    for stage in ALL_STAGES
    for item in (
        Item(f"{stage}/LATEST", f"number of the last round of the {stage} stage", "yes", "follows from the recipe"),
        *(
            Item(f"{stage}/round-*/{name}.safetensors", what, "under the claim", "made of the sites' updates alone")
            for name, what in (
                ("global", "weights after a round"),
                ("ema", "averaged weights"),
                ("strategy", "state of the server's optimizer"),
            )
        ),
        Item(
            f"{stage}/round-*/metrics.json", "who answered in a round, losses and times where sites tell them", "no",
            "losses and times are measured on patients, without noise",
        ),
        Item(f"{stage}/pending-*/", "a secure sum that is not finished", "no", "of use to this run alone"),
    )
)  # fmt: skip

CATALOGUE: tuple[Item, ...] = (
    Item(CONTENTS, "this list", "yes", "says nothing of patients"),
    Item(_DATA_SET + "/", "the synthetic data set", "under the claim", "drawn from the generators alone"),
    Item("generators/", "the generators", "under the claim", "made of the sites' updates alone"),
    Item("start/", "public generators that training starts from", "yes", "trained on public data alone"),
    Item(
        "relabelled/", "public patients under the labels of the segmenter, and generators that learned from them",
        "under the claim", "made of the released segmenter and of public images alone",
    ),
    Item("audit.json", "the audit of each private step", "yes", "measured on made-up gradients, without patients"),
    Item("recipe.yaml", "the recipe of a deployed run", "yes", "settings"),
    Item("submission.json", "when a deployed run was started, and with which code", "yes", "written before training"),
    *_STAGE_ITEMS,
    Item(
        "run.json", "settings, sites, versions, seconds of each step", "no",
        "counts patients and diagnoses of simulated sites, and tells how long training on them took",
    ),
    Item(
        "ledgers.json", "what the sites' privacy ledgers stated over the run", "no",
        "tells of all runs on the sites' patients, and the claim has the largest of it",
    ),
    Item("split.json", "identifiers of training and hold-out patients", "no", "names patients"),
    Item("data/", "cohorts of the run: images and masks of patients", "no", "real images, masks and identifiers"),
    Item(
        "sites/", "simulated sites: patients, policy, ledger, updates and optimizer states", "no",
        "names patients; updates and optimizer states belong to their site",
    ),
    Item("paired/", "images drawn for real masks of hold-out patients", "no", "the masks are real"),
    Item("reconstructed/", "real hold-out images through the autoencoder", "no", "images and masks are real"),
    Item(
        "evaluation/", "numbers, pictures, features, segmenters", "no",
        "computed from real patients without noise, and shows some of them",
    ),
    Item("report.html", "the report", "no", "numbers and pictures of real patients, without noise"),
    Item(NOTICE, "why the folder is not for release", "yes", "says nothing of single patients"),
    Item(f"*/{NOTICE}", "why the folder is not for release", "yes", "says nothing of patients"),
    Item("owner.*", "which process uses the folder", "no", "of use to this run alone"),
    Item(".*", "locks and unfinished files of a running process", "no", "of use to this run alone"),
    Item(".*/", "unfinished files of a running process", "no", "of use to this run alone"),
)  # fmt: skip
"""The first item that names a file decides."""


def item_of(path: str) -> Item | None:
    """The kind of a file, by its path relative to the run folder; None: the catalogue does not name it."""
    return next((item for item in CATALOGUE if item.names(path)), None)


def may_leave(path: str, claim: PrivacyStatement | None) -> bool:
    """Whether a file may leave under what is claimed for the run; a file that is not in the catalogue may not."""
    item = item_of(path)
    return item is not None and _leaves(item, claim)


def _drawn(run_dir: Path, claim: PrivacyStatement | None) -> PrivacyStatement | None:
    """The claim of the run's data set: another than the run's where the phantom drew it."""
    manifest = run_dir / _DATA_SET / MANIFEST
    own = read_manifest(manifest.parent).privacy if manifest.is_file() else None
    return own if own and own.no_patients else claim


def _leaves(item: Item, claim: PrivacyStatement | None) -> bool:
    if item.leaves == "under the claim":
        return claim is not None and (claim.differentially_private or claim.no_patients)
    return item.leaves == "yes"


def write_contents(run_dir: Path, claim: PrivacyStatement | None) -> None:
    """Write CONTENTS.md, and a notice into each folder that may not leave.

    Args:
        run_dir: The run folder.
        claim: What may be said of the run; None: it is not finished.
    """
    write_text(run_dir / CONTENTS, "\n".join(_lines(claim, _drawn(run_dir, claim))) + "\n")
    for item in CATALOGUE:
        folder = run_dir / item.pattern
        single = item.pattern.endswith("/") and "*" not in item.pattern
        if item.leaves == "no" and single and folder.is_dir() and not (folder / NOTICE).exists():
            write_text(folder / NOTICE, f"NOT FOR RELEASE\n\n{item.what}: {item.why}.\n")


def _lines(claim: PrivacyStatement | None, drawn: PrivacyStatement | None) -> Iterator[str]:
    yield "# What is in this folder, and what may leave\n"
    yield (
        "NOT FOR RELEASE as a whole: it holds data of patients, or numbers that were computed from them without noise. "
        "What may leave is marked.\n"
    )
    if claim is None:
        yield "The run is not finished, so nothing is claimed yet for what was trained on patients.\n"
    else:
        yield f"The claim, for the generators and all drawn from them; it must go with them. {claim.statement}\n"
    yield "| file | what it is | may leave | why |"
    yield "| --- | --- | --- | --- |"
    for item in CATALOGUE:
        simulated = item.pattern == _DATA_SET + "/" and drawn != claim
        answer = "yes" if _leaves(item, drawn if simulated else claim) else "no"
        why = f"{item.why}; the claim decides" if item.leaves == "under the claim" else item.why
        why = "simulated patients of the phantom: no generator and no patient is behind them" if simulated else why
        yield f"| `{item.pattern}` | {item.what} | {answer} | {why} |"
    yield "\nA file that is not listed may not leave."
