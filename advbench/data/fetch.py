"""Fetching archives: a checked download, the npm and Debian clients, and unpacking that stays in its folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError

from advbench.data import FETCHING, Progress

CONNECT_SECONDS = 6.0  # time for an address to answer
_STALL_SECONDS = 30.0  # time without data
_CLIENT_SECONDS = 3600.0  # time for a package client


class ClientMissing(OSError):
    """The program that fetches or unpacks a package is not installed."""


def download(
    urls: Sequence[str],
    target: Path,
    md5: str,
    progress: Progress | None = None,
    *,
    connect_seconds: float = CONNECT_SECONDS,
) -> None:
    """Download to `target` from the first of `urls` that sends a file with this md5.

    Raises ValueError with the reason of each failure. An address is given up if it does not answer within
    `connect_seconds`, name lookup included, or sends nothing for half a minute.
    """
    failures = []
    for url in urls:
        try:
            with _open(url, connect_seconds) as response, target.open("wb") as stream:
                size = response.headers.get("Content-Length")
                total, done, digest = int(size) if size else None, 0, hashlib.md5(usedforsecurity=False)
                while piece := response.read(1 << 18):
                    stream.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(done, total, f"{FETCHING}{target.name}")
        except OSError as error:
            if isinstance(error, HTTPError):
                error.close()  # it keeps the connection open
            failures.append(f"{getattr(error, 'reason', None) or error}")
            continue
        if digest.hexdigest() == md5:
            return
        failures.append(f"{target.name} has md5 {digest.hexdigest()}, not {md5}")
    raise ValueError(f"{target.name}: " + ", ".join(dict.fromkeys(failures)))


def _open(url: str, connect_seconds: float) -> Any:
    """Open `url`, in a separate thread: no timeout of the standard library covers the name lookup."""
    outcome: list[Any] = []
    given_up = threading.Event()

    def connect() -> None:
        try:
            response = urllib.request.urlopen(url, timeout=_STALL_SECONDS)
        except Exception as error:  # raised again below, in the calling thread
            outcome.append(error)
            return
        if given_up.is_set():
            response.close()
        outcome.append(response)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(connect_seconds)
    if not outcome:
        given_up.set()
        raise TimeoutError(f"no answer within {connect_seconds:g} s")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def npm_pack(package: str, folder: Path, progress: Progress | None = None) -> None:
    """Fetch `NAME@VERSION` as NAME-VERSION.tgz into `folder`, without running its scripts.

    Raises OSError if npm is missing or fails.
    """
    # `npm pack` retries for minutes. A quick query first shows whether the registry answers at all.
    _client(["npm", "view", package, "version", "--fetch-retries=0", "--fetch-timeout=10000"], folder)
    _client(["npm", "pack", package, "--ignore-scripts"], folder, progress, package)


def apt_download(package: str, folder: Path, progress: Progress | None = None) -> None:
    """Fetch the Debian package as NAME_VERSION_ARCH.deb into `folder`, without root.

    If that fails, perhaps because the system's package lists are missing or stale, it is tried again with new lists in
    `folder`. Raises OSError if apt-get is missing or fails.
    """
    apt = ["apt-get", *_options("Acquire::Retries=0", "Acquire::http::Timeout=10", "Acquire::https::Timeout=10")]
    try:
        _client([*apt, "download", package], folder, progress, package)
    except ClientMissing:
        raise
    except OSError as error:
        lists, archives = folder / "lists", folder / "archives"
        lists.mkdir()
        archives.mkdir()
        apt += _options(f"Dir::State={lists}", f"Dir::Cache={archives}", "Dir::State::status=/var/lib/dpkg/status")
        try:
            _client([*apt, "update"], folder)
            _client([*apt, "download", package], folder, progress, package)
        except OSError:
            raise OSError(f"{error}; `apt-get update` may help") from error


def _options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("-o", setting)]


def _client(command: Sequence[str], folder: Path, progress: Progress | None = None, what: str | None = None) -> None:
    """Run a package client in `folder`. Raises OSError, with the client's message, if it is missing or fails."""
    if shutil.which(command[0]) is None:
        raise ClientMissing(f"{command[0]} is not installed")
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
        ) as process:
            try:
                while _running(process):
                    if progress is not None and what is not None:
                        progress(_size(folder), None, f"{FETCHING}{what}")
                    if time.monotonic() - start > _CLIENT_SECONDS:
                        raise TimeoutError(f"{command[0]} did not end within {_CLIENT_SECONDS:g} s")
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            output.seek(0)
            raise OSError(f"{command[0]}: {_complaint(output.read())}")
    if progress is not None and what is not None:
        progress(_size(folder), _size(folder), f"{FETCHING}{what}")


def _running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(0.2)
    except subprocess.TimeoutExpired:
        return True
    return False


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file())


def _complaint(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("npm error", "npm ERR!", "E:"))]
    return " ".join((errors or lines[-1:] or ["no message"])[:3])


def unpack(archive: Path, folder: Path, members: Iterable[str]) -> None:
    """Write the regular files `members` of a tar archive to the same paths under `folder`.

    No other file is ever written, so a malicious archive cannot harm. Raises ValueError for an archive with an absolute
    path or one with "..", and for missing members.
    """
    missing = set(members)
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{archive.name} is refused: its member {member.name!r} leaves the folder")
            content = tar.extractfile(member) if str(path) in missing and member.isfile() else None
            if content is None:
                continue
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as stream:
                shutil.copyfileobj(content, stream, 1 << 20)
            missing.remove(str(path))
    if missing:
        raise ValueError(f"{archive.name} lacks {', '.join(sorted(missing))}")


def unpack_deb(archive: Path, folder: Path, members: Iterable[str]) -> None:
    """Unpack files of a Debian package like `unpack`. Raises OSError also if dpkg-deb is missing or fails."""
    if shutil.which("dpkg-deb") is None:
        raise ClientMissing("dpkg-deb is not installed")
    inner = folder / "data.tar"
    with inner.open("wb") as stream:
        done = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=stream, stderr=subprocess.PIPE, check=False
        )
    if done.returncode != 0:
        raise OSError(f"dpkg-deb: {done.stderr.decode(errors='replace').strip()}")
    unpack(inner, folder, members)
