import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from advbench.data.augment import crop_flip, cutout


def images(n: int, channels: int = 3, height: int = 6, width: int = 5) -> Tensor:
    """Every pixel of an image has a value of its own, none of them 0."""
    size = channels * height * width
    return (torch.arange(n * size).view(n, channels, height, width) % size + 1).to(torch.uint8)


@given(st.integers(1, 6), st.integers(0, 2**40), st.integers(0, 100))
def test_without_a_shift_nothing_changes(n: int, seed: int, epoch: int) -> None:
    x = images(n)
    assert torch.equal(crop_flip(x, torch.arange(n), seed=seed, epoch=epoch, pad=0, flip=False), x)


@given(st.integers(0, 1000), st.integers(0, 9), st.integers(0, 4), st.booleans(), st.sampled_from([0.0, 7.0]))
def test_the_result_is_a_window_of_the_padded_image(index: int, seed: int, pad: int, flip: bool, fill: float) -> None:
    x = images(1)
    out = crop_flip(x, torch.tensor([index]), seed=seed, epoch=0, pad=pad, flip=flip, fill=fill)
    padded = F.pad(x, (pad, pad, pad, pad), value=fill)
    windows = [
        padded[:, :, top : top + 6, left : left + 5] for top in range(2 * pad + 1) for left in range(2 * pad + 1)
    ]
    if flip:
        windows += [window.flip(3) for window in windows]
    assert out.dtype == x.dtype
    assert any(torch.equal(out, window) for window in windows)


@settings(max_examples=settings.default.max_examples // 4)
@given(st.lists(st.integers(0, 49), min_size=1, max_size=20), st.integers(0, 5), st.integers(0, 3))
def test_the_augmentation_of_a_sample_does_not_depend_on_its_batch(rows: list[int], seed: int, epoch: int) -> None:
    x, indices, chosen = images(50), torch.arange(1000, 1050), torch.tensor(rows)
    for change in (crop_flip, cutout):
        whole = change(x, indices, seed=seed, epoch=epoch)
        assert torch.equal(change(x[chosen], indices[chosen], seed=seed, epoch=epoch), whole[chosen])


def test_every_shift_comes_equally_often() -> None:
    n = 40500
    x = torch.zeros(n, 1, 9, 9, dtype=torch.uint8)
    x[:, :, 4, 4] = 1
    out = crop_flip(x, torch.arange(n), seed=3, epoch=0, flip=False)
    counts = out.sum(0)[0].double()
    assert counts.sum() == n
    assert ((counts - n / 81) ** 2 / (n / 81)).sum() < 140  # chi-square of 80 degrees: p < 1e-4 above 138


def test_half_are_mirrored_whatever_the_shift() -> None:
    n = 36000
    x = torch.zeros(n, 1, 5, 6, dtype=torch.uint8)
    x[:, :, 2, 2], x[:, :, 2, 3] = 1, 2
    out = crop_flip(x, torch.arange(n), seed=0, epoch=0, pad=1).flatten(1)
    one, two = (out == 1).int().argmax(1), (out == 2).int().argmax(1)
    assert ((two - one).abs() == 1).all()
    counts = torch.stack([one, two]).unique(dim=1, return_counts=True)[1].double()
    assert len(counts) == 18
    assert ((counts - n / 18) ** 2 / (n / 18)).sum() < 46  # chi-square of 17 degrees: p < 2e-4 above


def test_epochs_seeds_and_views_differ() -> None:
    x, indices = images(30), torch.arange(30)
    outs = [
        crop_flip(x, indices, seed=seed, epoch=epoch, view=view)
        for seed, epoch, view in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert all(not torch.equal(outs[a], outs[b]) for a in range(4) for b in range(a))


def test_floats_and_bytes_are_moved_alike() -> None:
    x, indices = images(40), torch.arange(40)
    moved = crop_flip(x, indices, seed=0, epoch=0)
    assert torch.equal(crop_flip(x / 255, indices, seed=0, epoch=0), moved / 255)


def test_cutout_removes_one_square_about_a_pixel() -> None:
    n = 5000
    x = torch.full((n, 2, 8, 8), 9, dtype=torch.uint8)
    out = cutout(x, torch.arange(n), seed=0, epoch=0, size=4)
    gone = out[:, 0] == 0
    assert torch.equal(out[:, 0], out[:, 1])
    rows, columns = gone.any(2), gone.any(1)
    assert torch.equal(gone, rows[:, :, None] & columns[:, None, :])
    heights = rows.sum(1)
    assert heights.min() == 2
    assert heights.max() == 4
    # Centres 0 to 7 leave 2, 3, 4, 4, 4, 4, 4, 3 rows.
    assert abs(heights.double().mean() - 28 / 8) < 0.05
    assert abs((rows & columns).double().mean() - (28 / 64) ** 2) < 0.1
