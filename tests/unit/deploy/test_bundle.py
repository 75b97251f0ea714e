import io
import zipfile
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

from cmrfed.deploy.bundle import digest_bundle, write_app


def test_the_same_code_has_the_same_digest_and_a_change_another(tmp_path: Path) -> None:
    first, second = write_app(tmp_path / "a" / "cmrfed"), write_app(tmp_path / "b" / "cmrfed")
    assert digest_bundle(first) == digest_bundle(second)
    source = second / "cmrfed" / "core" / "rng.py"
    source.write_text(source.read_text() + "\n")
    assert digest_bundle(first) != digest_bundle(second)


def test_it_holds_code_alone_and_is_not_compressed(tmp_path: Path) -> None:
    """Compressed bytes would depend on the library that compressed them, and so would the digest."""
    bundle = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(write_app(tmp_path / "cmrfed"))))
    assert all(info.compress_type == zipfile.ZIP_STORED for info in bundle.infolist())
    names = [n for n in bundle.namelist() if not n.startswith(".info/")]
    assert all(n.endswith(".py") or n == "pyproject.toml" for n in names)
    assert {
        "cmrfed/pipeline/server_app.py",
        "cmrfed/federation/client_app.py",
        "cmrfed/federation/site/site.py",
    } <= set(names)
