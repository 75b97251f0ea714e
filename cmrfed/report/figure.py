"""Figures for print: one look, and files that depend on their numbers alone."""

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cmrfed.core.artifacts import write_bytes

COLOURS = ("#0b6e99", "#b4530a", "#2e7d4f", "#8a3ea8", "#a3262a", "#5b6470")
"""Those of the report."""
INK, SOFT, RULE, ALARM = "#1c2430", "#52606d", "#e2ded6", "#96222a"
STYLE: Any = {
    "svg.hashsalt": "cmrfed",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def write_figure(folder: Path, name: str, figure: Figure) -> None:
    """Write SVG and PDF without a date: the same numbers give the same files."""
    for kind in ("svg", "pdf"):
        out = io.BytesIO()
        dates = {"Date": None} if kind == "svg" else {"CreationDate": None}
        figure.savefig(out, format=kind, metadata=dates, dpi=150)
        write_bytes(folder / f"{name}.{kind}", out.getvalue())
