"""The benchmarks run to their end; what they measure is no test."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


LINES = {
    "training": r"images/s, federation of 4 sites : plain diffusers loop = [\d.]+",
    "sampling": r"images/s, .+ : .+ = [\d.]+",
    "monai_loop": r"images/s in sampling, ours : MONAI's tutorial loop = [\d.]+",
    "emulated_bf16": r"time of a step of the image stage, forced : float32 = [\d.]+",
    "neighbours": r"time, cdist : blocks = [\d.]+",
    "scale": r"peak memory, 3 : 2 sites = [\d.]+",
    "gpu": r"\| 32 px \| image: training, steps/s \| bf16, channels-last, compiled \| [\d.e+]+ \| [\d.e+]+ \|",
    "growth": r"step +patients +3 +[\d.]+ +-?[\d.]+ ",
    "private_levers": r"recipe +[\d.]+ .* s\nK = 1 +[\d.]+ ",
}
"""Benchmark => the line in which it prints its result."""


@pytest.mark.parametrize("name", LINES)
def test_a_benchmark_prints_its_result(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stderr
    assert re.search(LINES[name], done.stdout)
    assert "the numbers mean nothing" in done.stdout
