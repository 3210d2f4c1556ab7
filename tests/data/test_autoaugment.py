import pytest
import torch
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op

from advbench.data.autoaugment import OPERATIONS, POLICY, autoaugment, operate
from advbench.errors import UserError

PEER = AutoAugment(AutoAugmentPolicy.CIFAR10)
NAMES = {
    "ShearX": "shear-x",
    "ShearY": "shear-y",
    "TranslateX": "translate-x",
    "TranslateY": "translate-y",
    **{name: name.lower() for name in ("Rotate", "Brightness", "Contrast", "Posterize", "Solarize", "Invert")},
    **{name: name.lower() for name in ("AutoContrast", "Equalize", "Color", "Sharpness")},
}
# Nearest neighbours may differ where a point falls between two pixels, blends by one where rounding does.
MOVES, BLENDS = ("ShearX", "ShearY", "Rotate"), ("Brightness", "Color", "Contrast", "Sharpness")


def photographs(n: int, channels: int = 3) -> torch.Tensor:
    """Smooth random pictures of varying contrast, one of them flat."""
    noise = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = F.resize(noise, [32, 32]) * torch.linspace(0.3, 1, n)[:, None, None, None] * 255
    smooth[0] = 77
    return smooth.clamp(0, 255).to(torch.uint8)


def test_policy_is_the_published_one() -> None:
    peer = tuple(tuple((NAMES[name], p, level or 0) for name, p, level in pair) for pair in PEER.policies)
    assert peer == POLICY


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_operations_agree_with_torchvision(name: str, channels: int) -> None:
    x = photographs(8, channels)
    magnitudes, signed = PEER._augmentation_space(10, (32, 32))[name]
    wrong, worst = 0, 0
    for level in range(10):
        for negative in (False, True) if signed else (False,):
            amount = float(magnitudes[level]) if magnitudes.ndim else 0.0
            amount = -amount if negative else amount
            peer = torch.stack([_apply_op(image, name, amount, InterpolationMode.NEAREST, None) for image in x])
            code = torch.full((8,), OPERATIONS.index(NAMES[name]))
            ours = operate(x, code, torch.full((8,), level), torch.full((8,), negative))
            difference = (ours.int() - peer.int()).abs()
            wrong, worst = wrong + int((difference > 0).sum()), max(worst, int(difference.max()))
    share = wrong / (x.numel() * 10 * (2 if signed else 1))
    if name in BLENDS:
        assert share < 0.05
        assert worst <= 1
    elif name in MOVES:
        assert share < 0.001
    else:
        assert wrong == 0


def test_the_augmentation_of_a_sample_does_not_depend_on_its_batch() -> None:
    x, indices = photographs(40), torch.arange(500, 540)
    whole = autoaugment(x, indices, seed=1, epoch=2)
    rows = torch.tensor([31, 4, 17])
    assert torch.equal(autoaugment(x[rows], indices[rows], seed=1, epoch=2), whole[rows])
    assert not torch.equal(autoaugment(x, indices, seed=1, epoch=3), whole)
    assert not torch.equal(autoaugment(x, indices, seed=1, epoch=2, view=1), whole)


def test_operations_come_as_often_as_the_policy_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(images, code, level, negative):  # type: ignore[no-untyped-def]
        seen.append(torch.stack([code, level, negative.long()]))
        return images

    monkeypatch.setattr("advbench.data.autoaugment.operate", note)
    n = 50000
    autoaugment(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.arange(n), seed=0, epoch=0)
    for step in (0, 1):
        counts = seen[step][0].bincount(minlength=len(OPERATIONS)) / n
        for code, name in enumerate(OPERATIONS[1:], 1):
            expected = sum(pair[step][1] for pair in POLICY if pair[step][0] == name) / len(POLICY)
            assert abs(float(counts[code]) - expected) < 0.007
        assert abs(float(seen[step][2].double().mean()) - 0.5) < 0.01


def test_other_images_are_refused() -> None:
    for images in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 4, 8, 8, dtype=torch.uint8)):
        with pytest.raises(UserError, match="uint8 images"):
            autoaugment(images, torch.arange(2), seed=0, epoch=0)
