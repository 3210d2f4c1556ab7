"""Writing files so that a crash never leaves half of one, and locking those that several processes share."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from advbench.errors import UserError

_SUFFIX = ".advbench.tmp"
_TEMPORARY = re.compile(rf"\..+\.\w+{re.escape(_SUFFIX)}")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; on success it is synced and takes the place of `path`.

    Raises UserError when the folder cannot be written or the disk is full; `path` is then as it was.
    """
    try:
        with _beside(path) as (handle, temporary):
            yield temporary
            os.fsync(handle)
            temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace `path` whole, or leave it as it was (UserError)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_new(path: Path, content: bytes | str) -> bool:
    """Create `path` whole; False when it exists already, which is left alone. Raises UserError."""
    data = content.encode() if isinstance(content, str) else content
    try:
        with _beside(path) as (handle, temporary):
            temporary.write_bytes(data)
            os.fsync(handle)
            try:
                os.link(temporary, path)  # mode "x", but never half written
            except FileExistsError:
                return False
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
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
    """Hold the lock file `path`; UserError when it cannot be made, or another process keeps it longer than
    `timeout` seconds."""
    lock = filelock.FileLock(path, timeout=timeout)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        held = f"has held {path} for {timeout:g} s" if timeout else f"holds {path}"
        raise UserError(f"another process {held}: wait for it, or stop it") from error
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise UserError(f"cannot lock {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        yield
    finally:
        lock.release()


def clear_leftovers(folder: Path) -> None:
    """Remove what writers that were killed left in `folder`. Those of living writers are locked, and stay."""
    for entry in os.scandir(folder) if folder.is_dir() else ():
        if not (_TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)):
            continue
        with suppress(OSError):  # it is held, gone by now, or may not be removed: no harm either way
            handle = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(entry.path)
            finally:
                os.close(handle)


def check_writable(folder: Path) -> None:
    """UserError, before hours are spent, where `folder` is no folder or could not be written; makes nothing."""
    place = _nearest(folder)
    if not place.is_dir():
        raise UserError(f"cannot write {folder}: {place} is a file: choose another folder")
    if not writable(folder):
        raise UserError(f"cannot write {folder}: no permission to write in {place}: choose another folder")


def writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or it itself."""
    return os.access(_nearest(folder), os.W_OK | os.X_OK)


def _nearest(folder: Path) -> Path:
    """`folder`, or the first above it that exists."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return place


@contextmanager
def _beside(path: Path) -> Iterator[tuple[int, Path]]:
    """A new file beside `path`, open and locked, and its name; at the end it is gone, unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent)
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
        with suppress(OSError):  # a file system without locks: there, nobody clears either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # else it was cleared before the lock was there
            break
        os.close(handle)
    try:
        os.fchmod(handle, 0o666 & ~_umask())
        yield handle, Path(name)
    finally:
        with suppress(OSError):  # renamed, or on a disk that has become read-only
            os.unlink(name)
        os.close(handle)


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
