"""Writing files so that a crash never leaves half of one, and locking those that several processes share."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from advbench.errors import UserError


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; on success it is synced and takes the place of `path`.

    Raises UserError when the folder cannot be written or the disk is full; `path` is then as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace `path` whole, or leave it as it was (UserError)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_new(path: Path, content: bytes | str) -> bool:
    """Create `path` whole; False when it exists already, which is left alone. Raises UserError."""
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.link(name, path)  # fails where `path` exists: mode "x", but never half written
        finally:
            Path(name).unlink(missing_ok=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    _sync_folder(path.parent)
    return True


def write_sealed(path: Path, payload: bytes) -> None:
    """Replace `path` with `payload` behind its sha256, so that `read_sealed` notices any damage. UserError."""
    write_atomic(path, hashlib.sha256(payload).hexdigest().encode() + payload)


def read_sealed(path: Path) -> bytes:
    """What `write_sealed` wrote. UserError when it cannot be read, or is not whole."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    seal, payload = content[:64], content[64:]
    if hashlib.sha256(payload).hexdigest().encode() != seal:
        raise UserError(f"{path} is damaged: its sha256 does not match; remove it to start over")
    return payload


@contextmanager
def locked(path: Path, timeout: float = 60.0) -> Iterator[None]:
    """Hold the lock file `path`; UserError when another process keeps it longer than `timeout` seconds."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path, timeout=timeout):
            yield
    except filelock.Timeout as error:
        raise UserError(f"another process has held {path} for {timeout:g} s: wait for it, or stop it") from error
    except PermissionError as error:
        raise UserError(f"cannot lock {path}: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
