import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from advbench.data import Progress
from advbench.data.cache import cache_folder
from advbench.data.dataset import fingerprint
from advbench.data.sources import Source, Splits, obtain
from advbench.errors import UserError

SPLITS: Splits = {
    part: (torch.randint(0, 256, (5, 1, 3, 3), dtype=torch.uint8), torch.arange(5)) for part in ("train", "test")
}
DIGESTS = {part: fingerprint(*arrays) for part, arrays in SPLITS.items()}


class Fake:
    """A source with an empty file, which counts how often it is asked."""

    def __init__(self, label: str = "fake", splits: Splits = SPLITS, error: Exception | None = None) -> None:
        self.splits, self.error, self.fetched = splits, error, 0
        self.source = Source(label, (f"{label}.bin",), self.fetch, self.decode)

    def fetch(self, folder: Path, progress: Progress | None) -> None:
        self.fetched += 1
        if self.error is not None:
            raise self.error
        (folder / self.source.files[0]).write_text("genuine")

    def decode(self, folder: Path, scratch: Path) -> Splits:
        if (folder / self.source.files[0]).read_text() != "genuine":
            raise ValueError("no such format")
        (scratch / "unpacked").touch()
        return self.splits


def get(*fakes: Fake, split: str = "train", digests: dict[str, str] = DIGESTS) -> tuple[Tensor, Tensor]:
    return obtain("toy", split, lambda: [fake.source for fake in fakes], digests)


def test_cache_folder_follows_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVBENCH_DATA", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("ADVBENCH_DATA")
    assert cache_folder().parts[-2:] == ("advbench", "data")


def test_fetched_once_for_both_splits_and_nothing_left_behind(cache: Path) -> None:
    fake = Fake()
    for split in ("train", "test", "train"):
        images, labels = get(fake, split=split)
        assert fingerprint(images, labels) == DIGESTS[split]
    assert fake.fetched == 1
    assert sorted(file.name for file in (cache / "toy").iterdir()) == ["test.npz", "train.npz"]


def test_sources_are_not_even_listed_when_the_cache_serves(cache: Path) -> None:
    get(Fake())
    obtain("toy", "test", lambda: pytest.fail("asked for its sources"), DIGESTS)


def test_next_source_serves_when_the_first_fails(cache: Path) -> None:
    forged = {**SPLITS, "train": (SPLITS["train"][0] ^ 1, SPLITS["train"][1])}
    last = Fake("good")
    images, _ = get(Fake("gone", error=OSError("no route")), Fake("forged", forged), last)
    assert torch.equal(images, SPLITS["train"][0])
    assert last.fetched == 1


def test_failure_names_everything_tried_in_one_line(cache: Path) -> None:
    forged = {**SPLITS, "test": (SPLITS["test"][0], SPLITS["test"][1].flip(0))}
    with pytest.raises(UserError) as caught:
        get(Fake("origin", error=OSError("name or service\nnot known")), Fake("mirror", forged))
    message = str(caught.value)
    assert "\n" not in message
    assert str(cache / "toy") in message
    assert "origin (name or service not known)" in message
    assert f"mirror (its test arrays have sha256 {fingerprint(*forged['test'])[:12]}" in message
    assert "put origin.bin or mirror.bin into" in message
    assert "ADVBENCH_DATA" in message
    assert not list((cache / "toy").iterdir())


def test_files_placed_by_hand_are_used_and_kept(cache: Path) -> None:
    fake = Fake()
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / "fake.bin").write_text("genuine")
    get(Fake("other"), fake)
    assert fake.fetched == 0
    assert (cache / "toy" / "fake.bin").read_text() == "genuine"


def test_bad_files_placed_by_hand_are_reported_and_kept(cache: Path) -> None:
    fake = Fake()
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / "fake.bin").write_text("something else")
    with pytest.warns(UserWarning, match=r"by hand are not used.*fake.bin: no such format"):
        get(fake)
    assert fake.fetched == 1
    assert (cache / "toy" / "fake.bin").read_text() == "something else"


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(SPLITS["train"][0].numpy().tobytes()) + 20] ^= 4
    file.write_bytes(content)


def swap_labels(file: Path) -> None:
    with np.load(file) as stored:
        arrays = dict(stored)
    np.savez(file, **{**arrays, "labels": arrays["labels"][::-1]})


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def drop_images(file: Path) -> None:
    np.savez(file, labels=np.arange(5))


@pytest.mark.parametrize("harm", [flip_a_byte, swap_labels, truncate, empty, drop_images])
@pytest.mark.parametrize("digests", [DIGESTS, {}], ids=["published", "recorded"])
def test_damaged_cache_is_reported_renamed_and_fetched_again(
    cache: Path, harm: Callable[[Path], None], digests: dict[str, str]
) -> None:
    fake = Fake()
    get(fake, digests=digests)
    file = cache / "toy" / "train.npz"
    for time in (1, 2):
        harm(file)
        harmed = file.read_bytes()
        with pytest.warns(UserWarning, match=rf"train.npz is damaged: .*kept as train.npz.damaged-{time}, "):
            images, labels = get(fake, digests=digests)
        assert fingerprint(images, labels) == DIGESTS["train"]
        assert (cache / "toy" / f"train.npz.damaged-{time}").read_bytes() == harmed
        assert fake.fetched == 1 + time
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get(fake, digests=digests)


def test_another_datasets_arrays_in_the_cache_are_not_used(cache: Path) -> None:
    other = {part: (images ^ 1, labels) for part, (images, labels) in SPLITS.items()}
    get(Fake("other", other), digests={})
    with pytest.warns(UserWarning, match="sha256"):
        images, _ = get(Fake())
    assert torch.equal(images, SPLITS["train"][0])


def test_only_one_of_several_processes_fetches(cache: Path) -> None:
    fake = Fake()
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(get(fake)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fake.fetched == 1
    assert len(found) == 8
    assert all(torch.equal(images, SPLITS["train"][0]) for images in found)


def test_interruption_leaves_nothing_half_done(cache: Path) -> None:
    def stop(folder: Path, progress: Progress | None) -> None:
        (folder / "half").write_text("of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain("toy", "train", lambda: [Source("slow", ("slow.bin",), stop, Fake().decode)], DIGESTS)
    assert not list((cache / "toy").iterdir())
    get(Fake())


def test_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADVBENCH_DATA", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot make .*file/toy: Not a directory; ADVBENCH_DATA can name"):
        get(Fake())
