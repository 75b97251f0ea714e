"""Files that are whole or absent (temporary file, fsync, rename), and digests of what they hold."""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from safetensors import SafetensorError, safe_open

from cmrfed.core.errors import DataError
from cmrfed.core.text import parse_json, read_text

if TYPE_CHECKING:
    import torch


def _fsync_dir(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


OWNER_ALONE = 0o600
"""Mode of a file that its owner alone may read."""


@contextmanager
def _new_file(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Yield a file to write beside ``path``: a crash at any moment leaves the old content or the new, never a part.

    Args:
        path: Its name when it is whole.
        mode: Permissions from the first byte on; None: as the umask has them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        if mode is not None:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        yield part
        with part.open("rb+") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _fsync_dir(path.parent)


def write_bytes(path: Path, data: bytes, mode: int | None = None) -> Path:
    """Write a file atomically; ``mode`` are its permissions, None those of the umask."""
    with _new_file(path, mode) as part:
        part.write_bytes(data)
    return path


def write_text(path: Path, text: str, mode: int | None = None) -> Path:
    """Write UTF-8 text atomically."""
    return write_bytes(path, text.encode(), mode)


def canonical_json(value: Any) -> str:
    """Serialise with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_json(path: Path, value: Any, mode: int | None = None) -> Path:
    """Write indented JSON atomically; NaN and infinity are refused."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", mode)


def read_json(path: Path) -> Any:
    """Read JSON, or say which file is missing, torn, not in UTF-8, or has a key twice or NaN."""
    try:
        return parse_json(read_text(path))
    except FileNotFoundError:
        raise DataError(f"{path} is missing", do="check the folder, or make it again") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON", got=error, do="restore the file or make it again") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, or say what is wrong with the file."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged", got=type(found).__name__, expected="an object", do="make it again")
    return found


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its name only when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    part.mkdir()
    try:
        yield part
        if path.exists():
            old = path.with_name(f".{path.name}.{uuid.uuid4().hex}.old")
            path.rename(old)
            part.rename(path)
            shutil.rmtree(old)
        else:
            part.rename(path)
        _fsync_dir(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process makes ``path``; the kernel frees the lock when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def digest_bytes(data: bytes) -> str:
    """SHA-256 as hex."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of the canonical JSON."""
    return digest_bytes(canonical_json(value).encode())


def digest_state(state: "Mapping[str, torch.Tensor]") -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in order of name."""
    import torch  # who reads settings alone does not wait for it

    from cmrfed.core.device import to_host

    total = hashlib.sha256()
    for name in sorted(state):
        tensor = to_host(state[name]).contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return total.hexdigest()


def digest_folder(folder: Path) -> str:
    """SHA-256 over the relative names and contents of all files of a folder."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()}|".encode())
        with path.open("rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()


def save_state(
    path: Path,
    state: "Mapping[str, torch.Tensor]",
    metadata: Mapping[str, str] | None = None,
    permissions: int | None = None,
) -> Path:
    """Write tensors as safetensors, atomically."""
    from safetensors.torch import save_file  # which imports torch

    from cmrfed.core.device import to_host

    tensors = {name: to_host(tensor).contiguous() for name, tensor in state.items()}
    with _new_file(path, permissions) as part:
        part.touch()
        mode = part.stat().st_mode
        try:
            save_file(tensors, part, dict(metadata) if metadata else None)
        except SafetensorError as error:  # how safetensors tells of a full disk
            raise OSError(errno.EIO, str(error), str(path)) from error
        part.chmod(mode)  # safetensors lets the owner alone read
    return path


def load_state(path: Path) -> "tuple[dict[str, torch.Tensor], dict[str, str]]":
    """Read tensors and metadata of a safetensors file, or say what is wrong with it."""
    try:
        with safe_open(path, framework="pt") as handle:
            return {k: handle.get_tensor(k) for k in handle.keys()}, dict(handle.metadata() or {})  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(f"{path} is missing", do="check the folder, or make it again") from None
    except SafetensorError as error:
        raise DataError(
            f"{path} is damaged",
            got=error,
            expected="a safetensors file",
            do="restore it or delete it and run again",
        ) from None


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file without its tensors; empty where the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as handle:
            return dict(handle.metadata() or {})
    except (OSError, SafetensorError):
        return {}
