"""Who was seen in a folder beside those whose images are there: nobody vanishes without a word, nobody counts twice."""

import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from cmrfed.core.errors import DataError
from cmrfed.data.sources.raw import RawPatient
from cmrfed.data.sources.walk import Tree

K = TypeVar("K", bound=Hashable)


def pattern_of(name: str) -> str:
    """A name without its numbers and lone letters: patient007 is like patient12, and A0S9V9 like B1H2C3."""
    return re.sub(r"(?<![^\W\d_])[^\W\d_](?![^\W\d_])", "a", re.sub(r"\d+", "0", name.casefold()))


def folders_without_images(
    tree: Tree, used: Iterable[Path], names: Iterable[str], holds: Callable[[list[Path]], bool] = lambda inside: False
) -> list[Path]:
    """Folders, and links that cannot be followed, which are those of a patient but hold no image.

    Args:
        tree: What lies below the folder of the data set.
        used: Folders with images, and those of what cannot be followed.
        names: Names of patients: a folder is that of a patient when its name has the pattern of one of them.
        holds: Says of the files in a folder whether it is that of a patient in any case.
    """
    used = set(used)
    above = {parent for folder in used for parent in folder.parents}
    patterns = {pattern_of(name) for name in names}
    found = []
    for folder in sorted({*tree.folders, *tree.broken}):
        if folder in used or folder in above or not used.isdisjoint(folder.parents):
            continue
        if pattern_of(folder.name) in patterns or holds(tree.inside.get(folder, [])):
            found.append(folder)
    outermost = set(found)
    return [folder for folder in found if outermost.isdisjoint(folder.parents)]


def without_images(tree: Tree, folder: Path, expected: str) -> RawPatient:
    """A patient of whom there is a folder alone."""
    if folder in tree.broken:
        problem = DataError(f"{folder} {tree.broken[folder]}", do="fetch or restore it")
    else:
        there = [path.name for path in tree.inside.get(folder, [])]
        problem = DataError(
            f"{folder} holds no image of the patient",
            got=", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "") or "nothing",
            expected=expected,
            do="add the images, or remove the folder",
        )
    return RawPatient(folder.name, (), path=folder, problem=problem)


def once(tree: Tree, files: Mapping[K, tuple[str, list[Path]]]) -> list[K]:
    """Leave out patients whose files are those of another patient of the same name, reached in another way.

    Args:
        tree: Takes a note of what is left out.
        files: Key of a patient → the name and all files. Under two names the same files stay two patients.

    Returns:
        The keys that remain, in their order. Of several ways the one without links remains.
    """
    real = os.path.realpath(tree.root)

    def is_linked(path: Path) -> bool:
        return os.path.realpath(path) != os.path.join(real, os.path.relpath(path, tree.root))

    seen: dict[tuple[str, frozenset[tuple[str, int, int]]], K] = {}
    left = set()
    for key, (name, paths) in sorted(files.items(), key=lambda item: (any(map(is_linked, item[1][1])), item[1][1])):
        if not paths or any(path in tree.broken for path in paths):
            continue
        stats = [(path.name, path.stat()) for path in paths]
        content = frozenset((file, found.st_dev, found.st_ino) for file, found in stats)
        if seen.setdefault((name, content), key) != key:
            left.add(key)
            tree.leave(paths[0].parent, "second ways to the files of a patient")
    return [key for key in files if key not in left]


def in_table_alone(names: Iterable[str], root: Path) -> Iterator[RawPatient]:
    """Yield patients of a table of whom nothing else is there: a table often covers more than one folder."""
    for name in names:
        problem = DataError(f"{name} is in the CSV, and its images are not below the folder")
        yield RawPatient(name, (), path=root, problem=problem, skipped=True)
