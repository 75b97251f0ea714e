"""Recipes and sweeps that come with the package, by name: ``demo`` is ``configs/recipes/demo.yaml``."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from cmrfed.core.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]
_PLACES = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
"""Where they lie in an installed package, and in the source tree."""


@dataclass(frozen=True)
class Shipped:
    """A recipe or sweep of the package."""

    name: str
    """Its path below its folder, without the suffix."""
    path: Path

    @property
    def summary(self) -> str:
        """The beginning of its comment, up to the first colon or full stop; "" where it has none."""
        lines = takewhile(lambda line: line.strip("# \n"), self.path.read_text(encoding="utf-8").splitlines())
        comment = " ".join(line.strip("# ") for line in lines if line.startswith("#"))
        return re.split(r"[:.](?:\s|$)", comment, maxsplit=1)[0]


def configs_folder() -> Path:
    """The folder that holds ``recipes/``, ``sweeps/``, ``sites/`` and ``federation.yaml``.

    Raises:
        ConfigError: The package was installed without them.
    """
    for place in _PLACES:
        if (place / "recipes").is_dir():
            return place
    raise ConfigError(
        "the recipes of the package are missing",
        got=f"none of {', '.join(map(str, _PLACES))}",
        expected="a folder with recipes/ in it",
        do="install CMRFed again, or name a file of your own",
    )


def shipped(kind: str = "recipes") -> Iterator[Shipped]:
    """All recipes of the package ("recipes") or all its sweeps ("sweeps"), in order of name."""
    root = configs_folder() / kind
    for path in sorted(root.rglob("*.yaml")):
        yield Shipped(path.relative_to(root).with_suffix("").as_posix(), path)


def find_shipped(name: str, *kinds: str) -> Path:
    """The file of a recipe or sweep of the package.

    Args:
        name: As `shipped` gives it.
        kinds: "recipes", "sweeps"; both by default.

    Raises:
        ConfigError: There is none of that name.
    """
    known = {each.name: each.path for kind in kinds or ("recipes", "sweeps") for each in shipped(kind)}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise ConfigError(
            f"there is no file {name}, and nothing of that name comes with CMRFed",
            got=name,
            expected=f"a file, or one of {', '.join(known)}",
            do=f"did you mean {near[0]}?" if near else "see `cmrfed recipes`",
        )
    return known[name]


def find_recipe(text: str | Path) -> Path:
    """The recipe that a user means: a file, or else the name of a recipe of the package.

    A file that exists goes first, so one's own is never hidden by a name; what has a suffix is always a file.

    Raises:
        ConfigError: It is neither.
    """
    path = Path(text)
    return path if path.is_file() or path.suffix else find_shipped(str(text), "recipes")


def find_sweep(text: str | Path) -> Path:
    """The sweep that a user means; see `find_recipe`."""
    path = Path(text)
    return path if path.is_file() or path.suffix else find_shipped(str(text), "sweeps")
