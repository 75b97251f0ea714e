"""What a machine is found to have, on made-up systems."""

from pathlib import Path

import pytest

from cmrfed.core import machine
from cmrfed.core.machine import GIB, Extra, findings


def by_name(folder: Path) -> dict[str, machine.Finding]:
    return {finding.name: finding for finding in findings(folder)}


def test_every_finding_that_needs_something_says_what_to_do(tmp_path: Path) -> None:
    found = by_name(tmp_path / "not" / "there" / "yet")
    assert {"software", "processor", "memory", "disk", "nginx", "lpips"} <= set(found)
    assert found["disk"].text.endswith(f"free at {tmp_path}")
    assert all(finding.advice for finding in found.values() if finding.state == "absent")


@pytest.mark.parametrize(
    ("quota", "expected"), [("150000 100000", 1), ("50000 100000", 1), ("200000 100000", 2), ("max 100000", 64)]
)
def test_the_quota_of_a_container_counts(quota: str, expected: int, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cpu.max").write_text(quota, encoding="utf-8")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert machine.cores() == expected


def test_the_memory_limit_of_a_container_counts(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "memory.max").write_text(f"{2 * GIB}\n", encoding="utf-8")
    (tmp_path / "memory.current").write_text(f"{GIB}\n", encoding="utf-8")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    total, free = machine.memory()
    assert (total, free) == (2 * GIB, min(free, GIB))
    memory = by_name(tmp_path)["memory"]
    assert (memory.state, memory.text.split(",")[0]) == ("warning", "2.0 GiB")
    assert memory.advice == "end other programs: the demo takes about 1 GB, larger recipes more"


def test_a_system_without_proc_is_no_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda _: "")
    assert machine.memory() == (0, 0)
    assert by_name(tmp_path)["memory"].text == "the system does not say how much there is"


def test_an_extra_that_is_not_there_names_its_installation(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(machine, "EXTRAS", (Extra("no-such-package", "cmrfed[lpips]", "LPIPS"),))
    found = by_name(tmp_path)["no-such-package"]
    assert (found.state, found.text) == ("absent", "not installed: no LPIPS")
    assert found.advice == "pip install 'cmrfed[lpips]'"
