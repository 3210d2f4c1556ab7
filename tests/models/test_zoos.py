"""The classifiers of torchvision and timm with random weights: whatever layers they have, an evaluation comes to its
end."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

import advbench

SHORT = {"resnet18", "vgg11_bn", "squeezenet1_1", "shufflenet_v2_x0_5"}
HUGE = {"regnet_y_128gf", "vit_h_14"}  # 2.5 GB of weights, of which an evaluation holds more than one copy
SIDES = {"inception_v3": 75, "maxvit_t": 224}  # which take no 64 x 64 images
TIMM = {  # one of each family, with the side of its images
    "resnet18d": 64, "vit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224, "convnext_atto": 64,
    "mixer_s32_224": 224, "efficientnet_lite0": 64, "mobilenetv3_small_050": 64, "regnetx_002": 64,
    "deit_tiny_distilled_patch16_224": 224, "levit_128s": 224, "poolformer_s12": 64, "xcit_nano_12_p16_224": 224,
}  # fmt: skip


def made(name: str, side: int) -> nn.Module:
    settings: dict[str, object] = {"num_classes": 10, "weights": None}
    if name in ("googlenet", "inception_v3"):
        settings["init_weights"] = False  # which takes a minute
    if name.startswith("vit_"):
        settings["image_size"] = side
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.get_model(name, **settings).eval()  # type: ignore[no-any-return]


def names() -> list[object]:
    classifiers = sorted(set(models.list_models(module=models)) - HUGE)
    return [pytest.param(name, marks=() if name in SHORT else pytest.mark.long) for name in classifiers]


def comes_to_its_end(net: nn.Module, side: int) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8, generator=draw)
    y = torch.tensor([0, 1, 2, 3, 4, 5, 6, 9])  # the last class tells how many there are
    record = advbench.evaluate(net, (x, y), attack="fgsm", eps=["0", "8/255"], n=4).record
    assert [point.eps_text for point in record.curve] == ["0", "8/255"]
    assert 0 <= record.curve[1].accuracy <= record.curve[0].accuracy == record.clean


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_torchvision(name: str) -> None:
    side = SIDES.get(name, 64)
    comes_to_its_end(made(name, side), side)


@pytest.mark.long
@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model(name, pretrained=False, num_classes=10).eval()
    comes_to_its_end(net, TIMM[name])
