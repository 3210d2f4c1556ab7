"""Files are written as a whole or not at all: full and read-only disks, killed writers, held locks."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advbench import files
from advbench.errors import UserError
from advbench.files import clear_leftovers, locked, read_sealed, write_atomic, write_new, write_sealed

WRITERS: dict[str, Callable[[Path], Any]] = {
    "atomic": lambda path: write_atomic(path, b"new" * 1000),
    "new": lambda path: write_new(path.with_name("another"), b"new" * 1000),
    "sealed": lambda path: write_sealed(path, b"new" * 1000),
}

DYING = """
import os, signal, sys
from pathlib import Path
from advbench import files

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(os, sys.argv[2], die)
files.{call}(Path(sys.argv[1]), b"half")
"""

HOLDING = """
import sys, time
from pathlib import Path
from advbench.files import atomic_path

with atomic_path(Path(sys.argv[1])) as path:
    path.write_bytes(b"by the other")
    print("holding", flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"filler"}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_takes_nothing(disk: Any, kind: str, trouble: str) -> None:
    path = disk.folder / "file"
    path.write_bytes(b"old")
    disk.fill() if trouble == "full" else disk.read_only(True)
    reason = "No space left" if trouble == "full" else "Read-only"
    with pytest.raises(UserError, match=reason) as caught:
        WRITERS[kind](path)
    assert "\n" not in str(caught.value) and str(disk.folder) in str(caught.value)
    if trouble == "read-only":
        with pytest.raises(UserError, match=r"cannot lock .*: Read-only"), locked(disk.folder / ".lock"):
            pass
    disk.read_only(False)
    assert path.read_bytes() == b"old" and names(disk.folder) == {"file"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "fchmod"])
def test_any_failure_of_the_system_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    """Simulates a full disk at every call, where no small disk can be mounted."""

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, call, fail)
    for kind in ("atomic", "new", "sealed"):
        with pytest.raises(UserError, match=os.strerror(code)):
            WRITERS[kind](tmp_path / "file")
    assert names(tmp_path) == {"file"} and (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.ENOLCK])
def test_a_lock_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.fcntl, "flock", fail)
    with pytest.raises(UserError, match=f"cannot lock .*: {os.strerror(code)}"), locked(tmp_path / ".lock"):
        pass


def test_an_error_under_a_lock_is_not_the_locks(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="other"), locked(tmp_path / ".lock"):
        raise PermissionError("other")
    with locked(tmp_path / ".lock", timeout=0):  # and it was let go
        pass


def test_a_held_lock_is_named(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock"), pytest.raises(UserError, match=r"another process holds .*\.lock"):
        locked(tmp_path / ".lock", timeout=0).__enter__()


COUNTING = """
import sys
from pathlib import Path
from advbench.files import locked

folder = Path(sys.argv[1])
for _ in range(200):
    with locked(folder / ".lock"):
        count = folder / "count"
        count.write_text(str(int(count.read_text()) + 1))
"""


def test_a_removed_lock_still_lets_in_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", COUNTING, str(tmp_path)]
    running = [subprocess.Popen(command) for _ in range(4)]
    assert [one.wait() for one in running] == [0] * 4
    assert (tmp_path / "count").read_text() == "800" and names(tmp_path) == {"count"}


@pytest.mark.parametrize("stale", [False, True])
def test_a_lock_that_was_removed_after_it_was_opened_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: bool
) -> None:
    """At once, without waiting for another process, since there is none. `stale`: it was removed over NFS."""
    path, flock, removed = tmp_path / ".lock", files.fcntl.flock, []

    def late(*rest: Any) -> None:
        if not removed:  # its holder ends between the opening and the locking
            removed.append(path.unlink())
            if stale:
                raise OSError(errno.ESTALE, "Stale file handle")
        flock(*rest)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with locked(path, timeout=0):
        assert removed and path.exists()
        with pytest.raises(UserError, match="another process holds"), locked(path, timeout=0):
            pass
    assert names(tmp_path) == set()


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for write in (write_atomic, write_new):
        with pytest.raises(UserError, match="cannot write"):
            write(tmp_path / "file" / "x", b"y")
    with pytest.raises(UserError, match="cannot lock"), locked(tmp_path / "file" / ".lock"):
        pass


def test_new_never_replaces(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert write_new(path, b"first") and not write_new(path, b"second")
    assert path.read_bytes() == b"first" and names(tmp_path) == {"x"}


@pytest.mark.parametrize(("call", "at"), [("write_atomic", "fsync"), ("write_new", "fsync"), ("write_new", "unlink")])
def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path: Path, call: str, at: str) -> None:
    done = subprocess.run([sys.executable, "-c", DYING.format(call=call), str(tmp_path / "a"), at])
    assert done.returncode == -signal.SIGKILL
    (left,) = (path for path in tmp_path.iterdir() if path.name != "a")
    assert left.name.startswith(".a.") and left.read_bytes() == b"half"
    write_atomic(tmp_path / "b", b"whole")
    assert names(tmp_path) == {"b"} | ({"a"} if at == "unlink" else set())


def test_what_a_living_writer_holds_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(path)], **pipes) as writer:  # type: ignore[call-overload]
        assert writer.stdout.readline() == b"holding\n"
        write_atomic(path, b"by us")
        clear_leftovers(tmp_path)
        assert path.read_bytes() == b"by us" and len(names(tmp_path)) == 2
        writer.communicate(b"")
    assert writer.returncode == 0
    assert path.read_bytes() == b"by the other" and names(tmp_path) == {"x"}


def test_files_of_others_are_no_leftovers(tmp_path: Path) -> None:
    others = {".x.tmp", ".advbench.tmp", "x.abcdefgh.advbench.tmp", ".x.abcdefgh.tmp", ".x.json"}
    for name in others:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".x.abcdefgh.advbench.tmp").mkdir()
    (tmp_path / ".y.abcdefgh.advbench.tmp").symlink_to(tmp_path / "x")
    clear_leftovers(tmp_path)
    assert names(tmp_path) >= others and len(names(tmp_path)) == len(others) + 2
    clear_leftovers(tmp_path / "missing")


def test_a_seal_notices_every_changed_byte(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_sealed(path, b"payload")
    assert read_sealed(path) == b"payload"
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(UserError, match="damaged"):
            read_sealed(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged"):
            read_sealed(path)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_links_permissions_or_folders_to_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    sync = os.fsync
    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(os, "fchmod", fail)
    monkeypatch.setattr(os, "fsync", lambda handle: fail() if stat.S_ISDIR(os.fstat(handle).st_mode) else sync(handle))
    assert write_new(tmp_path / "x", b"first") and not write_new(tmp_path / "x", b"second")
    assert (tmp_path / "x").read_bytes() == b"first"
    write_atomic(tmp_path / "x", b"third")
    assert (tmp_path / "x").read_bytes() == b"third" and names(tmp_path) == {"x"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_links_that_fail_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(UserError, match=os.strerror(code)):
        write_new(tmp_path / "x", b"first")
    assert names(tmp_path) == set()
