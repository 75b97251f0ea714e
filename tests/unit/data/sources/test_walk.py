import gzip
import os
import shutil
from pathlib import Path

import pytest

from cmrfed.core.errors import DataError
from cmrfed.data.sources.walk import clutter, is_nifti, stem_of, walk

TRASH = [".Trash", ".Trash-1000", ".Trashes", ".trash", "Trash", "trash-0", "$RECYCLE.BIN", "$Recycle.Bin", "RECYCLER"]
TRASH += ["#recycle", "@Recycle", "Recycled", ".recycle", "Recycle Bin", "Network Trash Folder", "files_trashbin"]
SNAPSHOTS = [".snapshot", ".snapshots", ".Snapshot", "~snapshot", "#snapshot", ".zfs", "@Recently-Snapshot", ".snap"]
SNAPSHOTS += ["@GMT-2024.01.31-00.00.00", "Backups.backupdb", ".stversions", "@snapshots"]
VERSIONS = [".git", ".svn", ".hg", ".bzr", "CVS", "_svn", ".dvc", ".datalad", "_darcs"]
SYSTEM = ["@eaDir", "@EADIR", "lost+found", "System Volume Information", "__MACOSX", ".Spotlight-V100", ".fseventsd"]
SYSTEM += [".TemporaryItems", "LOST.DIR", "FOUND.000", ".AppleDouble", ".@__thumb", "@tmp"]
CHECKPOINTS = [".ipynb_checkpoints", "ipynb_checkpoints"]
KINDS = {
    "trash": TRASH,
    "snapshots": SNAPSHOTS,
    "version control": VERSIONS,
    "files of the operating system": SYSTEM,
    "notebook checkpoints": CHECKPOINTS,
    "hidden folder": [".cache", ".hidden"],
}


def put(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def shown(tree):
    return [path.relative_to(tree.root).as_posix() for path in tree.files]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in KINDS.items() for name in names])
def test_folders_of_the_system_are_not_entered_and_are_named(tmp_path, kind, name):
    put(tmp_path / "p1" / "p1_frame01.nii.gz")
    put(tmp_path / "deep" / name / "files" / "p9" / "p9_frame01.nii.gz")
    put(tmp_path / "deep" / name / "info.csv")
    tree = walk(tmp_path)
    assert shown(tree) == ["p1/p1_frame01.nii.gz"]
    assert [(item.path, item.kind, item.lost) for item in tree.left_out] == [(f"deep/{name}", kind, False)]


@pytest.mark.parametrize(
    "name", ["patient001", "training", "site-0", "SC-HF-I-01", "git", "trashy", "snapshot-mri", "#1"]
)
def test_ordinary_folders_are_entered(name):
    assert clutter(name) is None


def test_a_data_set_in_the_trash_is_refused(tmp_path):
    put(tmp_path / ".Trash-0" / "files" / "scans" / "a_frame01.nii.gz")
    with pytest.raises(DataError, match="lies in the trash"):
        walk(tmp_path / ".Trash-0" / "files" / "scans")
    put(tmp_path / ".data" / "scans" / "a_frame01.nii.gz")
    assert shown(walk(tmp_path / ".data" / "scans")) == ["a_frame01.nii.gz"]


def test_hidden_files_and_unfinished_downloads(tmp_path):
    for name in ("._a_frame01.nii.gz", ".DS_Store", "~$info.csv", ".~lock.info.csv#", "a.nii.gz.part", "a.nii.gz~"):
        put(tmp_path / name)
    for name in ("a.nii.gz", "a.nii.gz.md5", "notes.txt", "B.NII.GZ", "c.nii"):
        put(tmp_path / name)
    tree = walk(tmp_path)
    assert [path.name for path in tree.nifti] == ["B.NII.GZ", "a.nii.gz", "c.nii"]
    lost = {item.path for item in tree.left_out if item.lost}
    assert lost == {"a.nii.gz.part", "a.nii.gz~"}
    assert {item.path for item in tree.left_out} - lost == {"._a_frame01.nii.gz", "~$info.csv", ".~lock.info.csv#"}


def test_linked_folders_and_files_are_read(tmp_path):
    put(tmp_path / "store" / "p3" / "p3.nii.gz")
    file = put(tmp_path / "store" / "objects" / "e1f2.nii.gz")
    root = tmp_path / "scans"
    put(root / "p1" / "p1.nii.gz")
    (root / "p3").symlink_to(tmp_path / "store" / "p3")
    (root / "p1" / "p1_gt.nii.gz").symlink_to(file)
    (root / "chain").symlink_to(root / "chain2")
    (root / "chain2").symlink_to(file.parent)
    assert shown(walk(root)) == ["chain/e1f2.nii.gz", "p1/p1.nii.gz", "p1/p1_gt.nii.gz", "p3/p3.nii.gz"]


def test_loops_and_second_ways_are_named(tmp_path):
    root = tmp_path / "scans"
    put(root / "z" / "p1" / "p1.nii.gz")
    put(tmp_path / "other" / "secret.nii.gz")
    (root / "a").symlink_to(root / "z" / "p1")  # sorted before the folder itself
    (root / "z" / "loop").symlink_to(root)
    (root / "above").symlink_to(tmp_path)
    (root / "ring").symlink_to(root / "gnir")
    (root / "gnir").symlink_to(root / "ring")
    tree = walk(root)
    assert shown(tree) == ["z/p1/p1.nii.gz"]
    kinds = {item.path: (item.kind, item.lost) for item in tree.left_out}
    assert kinds == {
        "a": ("second ways to a folder that is read already", False),
        "z/loop": ("links that lead back to a folder above them", False),
        "above": ("links that lead back to a folder above them", False),
        "ring": ("links that lead to themselves", True),
        "gnir": ("links that lead to themselves", True),
    }


def test_a_link_with_a_missing_target_is_named_with_its_target(tmp_path):
    put(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to("/nowhere/.git/annex/objects/x")
    (tmp_path / "c").symlink_to("gone")
    (tmp_path / ".d").symlink_to("gone")
    tree = walk(tmp_path)
    assert "/nowhere/.git/annex/objects/x (its content has not been fetched" in tree.broken[tmp_path / "b.nii.gz"]
    assert tree.broken[tmp_path / "c"] == "is a link whose target is missing: gone"
    assert tmp_path / ".d" not in tree.broken
    with pytest.raises(DataError, match=r"b\.nii\.gz is a link whose target is missing.*fetch or restore"):
        tree.find(tmp_path, "b")


@pytest.mark.parametrize(
    ("target", "followed"),
    [
        (".Trash-1000/files/p2", False),
        (".snapshot/daily/p2", False),
        (".git/annex/objects/p2", True),
        (".dvc/cache/files/p2", True),
        (".git/modules/p2", False),
        (".store/p2", True),
    ],
)
def test_links_into_folders_of_the_system(tmp_path, target, followed):
    for what in ("file", "folder"):
        root, real = tmp_path / what, tmp_path / what / target
        put(root / "p1" / "p1.nii.gz")
        file = put(real / "p2.nii.gz")
        if what == "folder":
            (root / "p2").symlink_to(real)
        else:
            (root / "p2").mkdir()
            (root / "p2" / "p2.nii.gz").symlink_to(file)
        tree = walk(root)
        assert shown(tree) == ["p1/p1.nii.gz", *(["p2/p2.nii.gz"] if followed else [])]
        assert any(item.path.startswith("p2") and item.lost for item in tree.left_out) != followed


def test_what_cannot_be_opened_is_named(tmp_path, monkeypatch):
    put(tmp_path / "p1" / "p1.nii.gz")
    put(tmp_path / "p2" / "p2.nii.gz")
    listdir = os.listdir

    def refuse(folder):
        if Path(folder).name == "p2":
            raise PermissionError(13, "Permission denied")
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    tree = walk(tmp_path)
    assert shown(tree) == ["p1/p1.nii.gz"]
    assert tree.broken == {tmp_path / "p2": "cannot be opened: Permission denied"}
    assert [(item.path, item.lost) for item in tree.left_out] == [("p2", True)]
    with pytest.raises(DataError, match="p2 cannot be opened"):
        walk(tmp_path / "p2")


@pytest.mark.timeout(20)
def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.nii.gz")
    tree = walk(tmp_path)
    assert tree.files == []
    assert tree.broken[tmp_path / "a.nii.gz"] == "is no regular file"


def test_a_name_in_any_letter_case(tmp_path):
    put(tmp_path / "A_frame01.NII.gz")
    tree = walk(tmp_path)
    assert tree.find(tmp_path, "a_FRAME01") == tmp_path / "A_frame01.NII.gz"
    assert tree.find(tmp_path, "b") is None
    assert (stem_of(Path("x.NII.GZ")), stem_of(Path("x.y.nii")), stem_of(Path("x.txt"))) == ("x", "x.y", "x.txt")
    assert is_nifti(Path("x.Nii"))


def test_two_files_of_one_name_must_be_equal(tmp_path):
    put(tmp_path / "a.nii", "the same")
    with gzip.open(tmp_path / "a.nii.gz", "wt") as handle:
        handle.write("the same")
    assert walk(tmp_path).find(tmp_path, "a") == tmp_path / "a.nii.gz"
    put(tmp_path / "a.nii", "another")
    with pytest.raises(DataError, match=r"a\.nii\.gz is there twice.*which differ"):
        walk(tmp_path).find(tmp_path, "a")
    shutil.copy(tmp_path / "a.nii", tmp_path / "a.nii.gz")  # no gzip
    with pytest.raises(DataError, match="is there twice"):
        walk(tmp_path).find(tmp_path, "a")


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        walk(tmp_path / "gone")


def test_names_that_are_not_utf_8_are_pointed_out(tmp_path):
    put(tmp_path / "p1.nii.gz")
    put(tmp_path / os.fsdecode(b"M\xfcller") / "p2.nii.gz")
    (tmp_path / os.fsdecode(b"\xe9")).symlink_to("gone")
    tree = walk(tmp_path)
    assert shown(tree) == ["p1.nii.gz"]
    assert sorted((item.path, item.lost) for item in tree.left_out) == [("M\\xfcller", True), ("\\xe9", True)]
    with pytest.raises(DataError, match=r"M\\xfcller is not in UTF-8"):
        walk(tmp_path / os.fsdecode(b"M\xfcller"))
