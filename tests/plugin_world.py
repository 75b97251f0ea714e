"""Distributions that offer parts, put into a folder without any installer."""

from pathlib import Path


def install(root: Path, group: str, distribution: str, entries: dict[str, str], code: str = "") -> None:
    """Put a distribution 1.2 with these entry points and a module of its name into a folder."""
    module = distribution.replace("-", "_")
    info = root / f"{module}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n", encoding="utf-8")
    lines = "\n".join(f"{name} = {target}" for name, target in entries.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}\n", encoding="utf-8")
    (root / f"{module}.py").write_text(code, encoding="utf-8")
