"""Which files of a folder are read: links are followed, folders of the system are not, and what is left is named.

Never entered, and named: trash, snapshots, notebook checkpoints, version control, thumbnails and metadata of operating
systems and network storage, and any other folder whose name begins with a dot. A patient who was deleted, or whose
file was corrected since, must not come back through one of them. A folder that is reached twice is read once.
"""

import errno
import gzip
import os
import re
import stat
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cmrfed.core.errors import DataError

SUFFIXES = (".nii.gz", ".nii")
DICOM_MARK, DICOM_MARK_AT = b"DICM", 128
"""The mark of a DICOM file and its place (PS3.10, 7.1)."""
_KINDS = {
    "trash": r"\.?trash(es|ed|can|bin)?|\.trash\W.*|\.trash(ed|es)\W.*|trash-\d+|network trash folder|files_trashbin"
    r"|[$#@~._]?recycl(e|ed|er)([ ._-]?bin)?",
    "snapshots": r"[.~#@$]snap(shots?)?|\.snapshots?\W.*|@recently-?snapshots?|@gmt-\d.*|\.?zfs|backups\.backupdb"
    r"|\.mobilebackups.*|\.timeshift.*|\.stversions|files_versions",
    "notebook checkpoints": r"\.?ipynb_checkpoints|\.virtual_documents",
    "version control": r"\.(git|svn|hg|bzr|jj|dvc|datalad|annex|pijul|fossil|gitannex)|cvs|sccs|_svn|_darcs",
    "files of the operating system": r"@eadir|@tmp|@sharebin|@upload_cache|@__thumb|\.@.*|system volume information"
    r"|lost\+found|lost\.dir|found\.\d{3}|__macosx|\.spotlight-v100|\.fseventsd|\.documentrevisions-v100"
    r"|\.?temporary ?items|\.appledouble|\$extend|\$windows\..*|\.ds_store|__pycache__",
}
HIDDEN = "hidden folder"
_STORES = re.compile(r"/\.git/(.*/)?annex/objects/|/\.dvc/cache/")
"""Where git-annex and DVC keep the content that their links lead to."""
_BESIDE = re.compile(r"\.nii(\.gz)?\.(md5|sha\d+|json|txt)$", re.IGNORECASE)
_OF_INTEREST = re.compile(r"\.nii\b|\.(csv|cfg|json)\b", re.IGNORECASE)


def clutter(name: str) -> str | None:
    """Say what kind of system folder a name belongs to; None for a folder that may be entered."""
    plain = unicodedata.normalize("NFC", name).strip().casefold()
    for kind, pattern in _KINDS.items():
        if re.fullmatch(pattern, plain):
            return kind
    return HIDDEN if plain.startswith(".") else None


def printable(name: str) -> str:
    """A name whose bytes that are not UTF-8 are written as hexadecimal numbers, so that it can be printed and saved."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_nifti(path: Path) -> bool:
    """Whether the name ends in .nii or .nii.gz, in any letter case."""
    return path.name.lower().endswith(SUFFIXES)


def is_dicom(path: Path) -> bool:
    """Whether a file has the mark of DICOM."""
    try:
        with path.open("rb") as file:
            file.seek(DICOM_MARK_AT)
            return file.read(len(DICOM_MARK)) == DICOM_MARK
    except OSError:
        return False


def stem_of(path: Path) -> str:
    """The file name without .nii or .nii.gz."""
    return next((path.name[: -len(s)] for s in SUFFIXES if path.name.lower().endswith(s)), path.name)


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that was not read.

    path: Relative to the folder of the data set. kind: What it is, as a plural or a phrase that many can share.
    lost: True where something may be missing because of it; False where it was left out on purpose.
    """

    path: str
    kind: str
    lost: bool = False


@dataclass
class Tree:
    """The files below a folder that may be read, and what is left out.

    files: In order of path. folders: All that were entered. broken: What cannot be followed or opened → the reason.
    """

    root: Path
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    inside: dict[Path, list[Path]] = field(default_factory=dict)
    """Folder → the files, folders and broken links just below it."""
    stems: dict[tuple[Path, str], list[Path]] = field(default_factory=dict)
    """Folder and stem, case-folded → NIfTI files and broken links of that name, .nii.gz before .nii."""

    def leave(self, path: Path, kind: str, *, lost: bool = False) -> None:
        """Note that a path is not read."""
        self.left_out.append(LeftOut(self.shown(path), kind, lost))

    def shown(self, path: Path) -> str:
        """A path as messages name it: relative to the folder of the data set."""
        return printable(path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path))

    @property
    def nifti(self) -> list[Path]:
        """The NIfTI files, in order of path."""
        return [path for path in self.files if is_nifti(path)]

    @property
    def broken_nifti(self) -> list[Path]:
        """Links to NIfTI files that cannot be followed, in order of path."""
        return sorted(path for path in self.broken if is_nifti(path))

    def find(self, folder: Path, stem: str) -> Path | None:
        """The NIfTI file of a stem, in any letter case; None where there is none.

        Raises:
            DataError: It cannot be followed, or there are two that differ.
        """
        found = self.stems.get((folder, stem.casefold()), [])
        for path in found:
            if path in self.broken:
                raise unfollowed(path, self.broken[path])
        return _one_of(found)

    def named(self, folder: Path, *names: str) -> list[Path]:
        """The files of a folder with one of these names (in lower case; any letter case is found).

        Raises:
            DataError: One of them cannot be followed.
        """
        found = [p for p in self.inside.get(folder, ()) if p.name.lower() in names and p not in self.folders]
        for path in found:
            if path in self.broken:
                raise unfollowed(path, self.broken[path])
        return found


def unfollowed(path: Path, reason: str) -> DataError:
    """What to say of a patient one of whose files cannot be followed."""
    return DataError(f"{path} {reason}", expected="a file that can be read", do="fetch or restore it")


def _one_of(found: Sequence[Path]) -> Path | None:
    for other in found[1:]:
        if not _same_content(found[0], other):
            raise DataError(
                f"{found[0]} is there twice",
                got=f"{found[0].name} and {other.name}, which differ",
                expected="one file",
                do="remove the one that is out of date",
            )
    return found[0] if found else None


def _same_content(first: Path, second: Path) -> bool:
    """Whether two NIfTI files are equal once decompressed."""
    try:
        with _unpacked(first) as a, _unpacked(second) as b:
            while (block := a.read(1 << 20)) == b.read(1 << 20):
                if not block:
                    return True
    except (OSError, EOFError, zlib.error):
        pass
    return False


def _unpacked(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


# --- the walk -----------------------------------------------------------------------------------
def walk(root: Path) -> Tree:
    """List the files below ``root``; see the module's docstring for what is entered.

    Links are followed after everything else, so that a folder which is reached in two ways has the name it has by
    itself. A link to a folder above is a loop.

    Raises:
        DataError: ``root`` is not a folder, cannot be opened, or lies in a trash folder.
    """
    if printable(str(root.absolute())) != str(root.absolute()):
        raise DataError(f"{printable(str(root))} is not in UTF-8", do="rename the folder")
    if not os.path.isdir(root):
        raise DataError(f"{root} is not a folder", expected="the folder of the data set", do="check the path")
    if any(clutter(part) == "trash" for part in root.absolute().parts):
        raise DataError(f"{root} lies in the trash", expected="a folder in use", do="move the data out of it first")
    return _Walk(root).tree()


class _Walk:
    def __init__(self, root: Path) -> None:
        self._tree, self._links = Tree(root), list[Path]()
        self._real = root.resolve()
        self._entered = {_identity(above): above for above in (self._real, *self._real.parents)}
        self._above = set(self._entered)

    def tree(self) -> Tree:
        self._enter(self._tree.root)
        if self._tree.root in self._tree.broken:
            raise DataError(f"{self._tree.root} {self._tree.broken[self._tree.root]}", do="check who may read it")
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                self._follow(link)
        tree = self._tree
        tree.files.sort()
        tree.folders.sort()
        for path in sorted([*tree.files, *tree.folders, *tree.broken]):
            tree.inside.setdefault(path.parent, []).append(path)
        for path in sorted([*tree.nifti, *tree.broken_nifti], key=lambda p: (not p.name.lower().endswith(".gz"), p)):
            tree.stems.setdefault((path.parent, stem_of(path).casefold()), []).append(path)
        return tree

    def _enter(self, start: Path) -> None:
        waiting = [start]
        while waiting:
            folder = waiting.pop()
            try:
                entries = sorted(os.listdir(folder))
            except OSError as error:
                self._lose(folder, f"cannot be opened: {error.strerror}", "folders that cannot be opened")
                continue
            for name in entries:
                path = folder / name
                if printable(name) != name:
                    self._tree.leave(path, "names that are not UTF-8 (rename them)", lost=True)
                elif os.path.islink(path):
                    self._links.append(path)
                elif (kind := self._kind(path)) == "folder" and self._may_enter(path):
                    waiting.append(path)
                elif kind == "file":
                    self._add(path)

    def _kind(self, path: Path) -> str | None:
        """Whether a path is a "folder", a "file" or neither."""
        try:
            mode = path.stat().st_mode
        except OSError as error:
            self._lose(path, *_why(path, error))
            return None
        if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
            return "folder" if stat.S_ISDIR(mode) else "file"
        if is_nifti(path):
            self._lose(path, "is no regular file", "no regular files")
        return None

    def _may_enter(self, path: Path) -> bool:
        if kind := clutter(path.name):
            self._tree.leave(path, kind)
            return False
        key = _identity(path)
        if key in self._above:
            kind = "links that lead back to a folder above them"
            self._lose(path, "leads back to a folder above it", kind, lost=False)
            return False
        if key in self._entered:
            self._tree.leave(path, "second ways to a folder that is read already")
            return False
        self._entered[key] = path
        self._tree.folders.append(path)
        return True

    def _follow(self, link: Path) -> None:
        kind = self._kind(link)
        if kind is None:
            return
        if target := self._target_clutter(link):
            self._lose(link, f"leads into {target}", f"links into {target}")
        elif kind == "file":
            self._add(link)
        elif self._may_enter(link):
            self._enter(link)

    def _target_clutter(self, link: Path) -> str | None:
        """The kind of system folder that a link leads into; stores of git-annex and DVC are none."""
        target = Path(os.path.realpath(link))
        if _STORES.search(target.as_posix()):
            return None
        parts = target.relative_to(self._real).parts if target.is_relative_to(self._real) else target.parts
        kinds = (clutter(part) for part in parts)
        return next((kind for kind in kinds if kind and kind != HIDDEN), None)

    def _add(self, path: Path) -> None:
        name = path.name
        if name.startswith((".", "~$")):
            if _OF_INTEREST.search(name):
                self._tree.leave(path, "hidden files (such as ._* of macOS)")
            return
        if re.search(r"\.nii", name, re.IGNORECASE) and not is_nifti(path) and not _BESIDE.search(name):
            self._tree.leave(path, "unfinished downloads and backups", lost=True)
            return
        self._tree.files.append(path)

    def _lose(self, path: Path, reason: str, kind: str, *, lost: bool = True) -> None:
        hidden = clutter(path.name) is not None
        if not hidden:
            self._tree.broken[path] = reason
        self._tree.leave(path, kind, lost=lost and not hidden)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _why(path: Path, error: OSError) -> tuple[str, str]:
    """Why a path cannot be followed, for its patient and as a kind."""
    if not os.path.islink(path):
        return f"cannot be opened: {error.strerror}", "files that cannot be opened"
    if error.errno == errno.ELOOP:
        return "is a link that leads to itself", "links that lead to themselves"
    if error.errno != errno.ENOENT:
        return f"is a link that cannot be followed: {error.strerror}", "links that cannot be followed"
    target = printable(os.readlink(path))
    fetch = " (its content has not been fetched: git annex get)" if "annex/objects" in target else ""
    return f"is a link whose target is missing: {target}{fetch}", "links whose target is missing"
