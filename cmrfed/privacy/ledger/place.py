"""Where the ledger of a site lies: beside the cohort whose patients it is about, so that all sites on it share it."""

from pathlib import Path

from cmrfed.core.artifacts import read_json

END = ".ledger"
"""Suffix of the folder beside a cohort: the ledger of /data/cohort is in /data/cohort.ledger."""


def ledger_folder(root: Path) -> Path:
    """The folder that holds the ledger of a site now: its own where an earlier version left one, until that is moved.

    Args:
        root: A site's folder, or the folder of a ledger itself.

    Raises:
        DataError: site.json is not JSON.
    """
    return root if has_files(root) else assigned_folder(root)


def assigned_folder(root: Path) -> Path:
    """The folder where a site's ledger belongs.

    Args:
        root: A site's folder, whose site.json names the cohort, and ``ledger`` where it is not beside it. A simulated
            site keeps its ledger in its own folder. A folder without site.json is that of a ledger itself.

    Raises:
        DataError: site.json is not JSON.
    """
    if not (root / "site.json").is_file():
        return root
    record = read_json(root / "site.json")
    if not isinstance(record, dict) or record.get("simulated"):
        return root
    if record.get("ledger"):
        return (root / str(record["ledger"])).resolve()
    return beside(root / str(record.get("cohort", "cohort")))


def beside(cohort: Path) -> Path:
    """Where the ledger of a cohort is unless a site says otherwise; links are followed, so every path to it agrees."""
    cohort = cohort.resolve()
    return cohort.with_name(cohort.name + END)


def has_files(folder: Path) -> bool:
    """Whether a folder holds a ledger, or the remains of one."""
    return any((folder / name).exists() for name in ("ledger.jsonl", "ledger.head"))
