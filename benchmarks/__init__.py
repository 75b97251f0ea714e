"""Benchmarks: what is measured, how and against what stands in each one's docstring, and its --help says what it takes.

They run from the source tree, `python -m benchmarks.NAME`, with CMRFed installed; `run_benchmark` says what is missing.
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec

RUN_TIME = ("torch", "monai", "diffusers", "opacus", "flwr", "pydantic")
"""Packages that every benchmark imports through the project."""


def missing(packages: tuple[str, ...]) -> list[str]:
    """Those that are not installed."""
    return [name for name in packages if find_spec(name) is None]


def refuse(needed: list[str], extra: str = "") -> None:
    """End with one paragraph where packages are missing, which come with an extra such as ``[dev]`` or without one."""
    if needed:
        sys.exit(
            f"error: the benchmark cannot start. Got: {', '.join(needed)} not installed. "
            f"Expected: the packages of cmrfed{extra}. Do: pip install -e '.{extra}'"
        )


refuse(missing(RUN_TIME))  # before a benchmark imports them


def run_benchmark(main: Callable[[], None], *packages: str) -> None:
    """Run a benchmark, and tell in one paragraph what it lacks.

    Args:
        main: The benchmark.
        packages: What it needs beyond the project's run-time dependencies; they are in the extra ``dev``.
    """
    from cmrfed.core.errors import CmrfedError

    if "-h" not in sys.argv and "--help" not in sys.argv:
        refuse(missing(packages), "[dev]")
    try:
        main()
    except CmrfedError as error:
        sys.exit(f"error: {error}")
    except FileNotFoundError as error:
        sys.exit(f"error: a file is missing. Got: {error.filename}. Do: see --help for what the benchmark takes.")
