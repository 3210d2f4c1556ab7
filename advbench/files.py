"""Writing files so that a crash never leaves half a file, and locking files that several processes share."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from advbench.errors import UserError, reading

_SUFFIX = ".advbench.tmp"
_UNSUPPORTED = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)
_REMOVED = (errno.ENOENT, errno.ESTALE)  # ESTALE: by another machine, on NFS
_TEMPORARY = re.compile(rf"\..+\.\w+{re.escape(_SUFFIX)}")


def plain_path(text: str) -> str:
    """One spelling for each place: the path below the current folder where it lies there, else the absolute path."""
    path = os.path.abspath(os.path.expanduser(text))
    real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))  # a link itself keeps its name
    here = os.path.realpath(os.getcwd())
    return os.path.relpath(real, here) if os.path.commonpath([real, here]) == here else real


def read_list(path: Path) -> list[Any]:
    """The values in a text file: a JSON list, or numbers separated by commas, spaces or line ends. May raise anything.

    For numbers written by hand, with `errors.reading` around it.
    """
    text = path.read_text(encoding="utf-8-sig")
    found = json.loads(text if text.lstrip().startswith("[") else f"[{','.join(text.replace(',', ' ').split())}]")
    return list(found)


def sha256_file(path: Path) -> str:
    """The sha256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to. On success it is synced to disk and replaces `path`.

    Raises UserError when the folder cannot be written or the disk is full; `path` is then unchanged.
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
    """Replace `path` as a whole. Raises UserError when that fails; `path` is then unchanged."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def replace_file(new: Path, old: Path) -> None:
    """Put `new` in the place of `old`, in the same folder. Raises UserError."""
    try:
        new.replace(old)
        _sync_folder(old.parent)
    except OSError as error:
        raise UserError(f"cannot write {old}: {error.strerror or error}") from error


def write_new(path: Path, content: bytes | str) -> bool:
    """Create `path` as a whole. Returns False, and changes nothing, when it exists. Raises UserError.

    On a file system without hard links, two writers at once may both succeed: the callers hold a lock.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        with _beside(path) as (handle, temporary):
            temporary.write_bytes(data)
            os.fsync(handle)
            try:
                os.link(temporary, path)  # like mode "x", but never half written
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                if path.exists():
                    return False
                temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return True


def write_sealed(path: Path, payload: bytes) -> None:
    """Replace `path` with the sha256 of `payload` and `payload`, so that `read_sealed` detects damage. UserError."""
    write_atomic(path, hashlib.sha256(payload).hexdigest().encode() + payload)


def read_sealed(path: Path) -> bytes:
    """The payload that `write_sealed` wrote. Raises UserError when the file cannot be read or is damaged."""
    with reading(path):
        content = path.read_bytes()
    seal, payload = content[:64], content[64:]
    if hashlib.sha256(payload).hexdigest().encode() != seal:
        raise UserError(f"{path} is damaged: its sha256 does not match; remove it to start over")
    return payload


class Held(UserError):
    """Another process holds a lock."""


@contextmanager
def locked(path: Path, timeout: float = 60.0) -> Iterator[None]:
    """Inside, hold the lock file `path`. It is removed at the end: no lock is ever listed, copied or committed.

    Raises Held when another process holds it for longer than `timeout` seconds, and UserError when it cannot be made.
    """
    end = time.monotonic() + timeout
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while (handle := _hold(path)) is None:
            if time.monotonic() >= end:
                held = f"has held {path} for {timeout:g} s" if timeout else f"holds {path}"
                raise Held(f"another process {held}: wait for it, or stop it")
            time.sleep(0.05)
    except OSError as error:  # no room, no permission, a file system without locks
        raise UserError(f"cannot lock {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # on a disk that has become read-only
            path.unlink()
        os.close(handle)


def _hold(path: Path) -> int | None:
    """The handle of the lock file `path`, locked; None while another process holds it."""
    for _ in range(3):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except OSError as error:
            if error.errno not in _REMOVED:
                os.close(handle)
                if isinstance(error, BlockingIOError):
                    return None
                raise
        os.close(handle)  # its last holder removed it after it was opened here
    return None


def is_temporary(path: Path) -> bool:
    """Whether `path` is named like a file that is being written, or whose writer was killed."""
    return _TEMPORARY.fullmatch(path.name) is not None


def clear_leftovers(folder: Path) -> None:
    """Remove temporary files of killed writers from `folder`. Those of running writers are locked, and stay."""
    for entry in os.scandir(folder) if folder.is_dir() else ():
        if not (is_temporary(Path(entry)) and entry.is_file(follow_symlinks=False)):
            continue
        with suppress(OSError):  # locked, already gone or not removable: all harmless
            handle = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(entry.path)
            finally:
                os.close(handle)


def check_writable(folder: Path) -> None:
    """Raise UserError where `folder` is a file or cannot be written, before hours are spent. Creates nothing."""
    place = _nearest(folder)
    if not place.is_dir():
        raise UserError(f"cannot write {folder}: {place} is a file: choose another folder")
    if not writable(folder):
        raise UserError(f"cannot write {folder}: no permission to write in {place}: choose another folder")


def writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or the folder itself can be made."""
    return os.access(_nearest(folder), os.W_OK | os.X_OK)


def _nearest(folder: Path) -> Path:
    """`folder`, or the nearest parent of it that exists."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return place


@contextmanager
def _beside(path: Path) -> Iterator[tuple[int, Path]]:
    """A new file beside `path`, open and locked, and its name. On leaving it is removed, unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent)
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
        with suppress(OSError):  # a file system without locks, on which nothing is cleared either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # else another process cleared it before it was locked
            break
        os.close(handle)
    try:
        with _if_supported():
            os.fchmod(handle, 0o666 & ~_umask())
        yield handle, Path(name)
    finally:
        with suppress(OSError):  # renamed, or on a disk that has become read-only
            os.unlink(name)
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    with _if_supported():
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _if_supported() -> Iterator[None]:
    """Inside, the errors of file systems without permissions, or that do not sync folders, are no errors."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
