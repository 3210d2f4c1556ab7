"""Networks of users: some use `view`, which fails on channels-last maps; some answer, or are wrapped, in other ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

OWN = '''
import torch
from torch import nn
from advbench.models.base import Model

class Viewing(Model):
    def __init__(self, **common):
        super().__init__(**common)
        self.conv = nn.Conv2d(self.in_channels, 16, 3, padding=1)
        self.feature_dim = 16 * self.image_size**2
        self.linear = nn.Linear(self.feature_dim, self.num_classes)

    def features(self, x):
        z = torch.relu(self.conv(x))
        return z.view(z.size(0), -1)

    def head(self, z):
        return self.linear(z)

class Plain(nn.Module):
    """Two linear layers read the flattened maps."""
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.one, self.other = nn.Linear(16 * 64, 10), nn.Linear(16 * 64, 10)

    def forward(self, x):
        z = torch.relu(self.conv(x)).view(x.size(0), -1)
        return self.one(z) + self.other(z)

class Stopped(nn.Module):
    """It gives no gradient, and its maps are flattened by `view`."""
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16 * 64, 10)

    def forward(self, x):
        z = torch.relu(self.conv(x.detach()))
        return self.linear(z.view(z.size(0), -1)).detach()

class Around(nn.Module):
    def __init__(self, after=lambda z: z, before=lambda x: x):
        super().__init__()
        self.net, self.after, self.before = Plain(), after, before

    def forward(self, x):
        return self.after(self.net(self.before(x)))

def only_12(x):
    assert len(x) == 12, "the batch must have 12 images"
    return x

answers_pair = lambda: Around(lambda z: (z, z.mean()))
answers_dict = lambda: Around(lambda z: {"logits": z, "features": z})
answers_two = lambda: Around(lambda z: (z, 2 * z))
in_place = lambda: Around(before=lambda x: x.mul_(2))
fixed = lambda: Around(before=only_12)
double = lambda: Around().double()
bfloat16 = lambda: Around().bfloat16()
parallel = lambda: nn.DataParallel(Around())
traced = lambda: torch.jit.trace(Around(), torch.rand(2, 1, 8, 8))
'''


@pytest.fixture
def own(cli: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    (cli.folder / "nets_that_view.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(cli.folder))
    return cli


def test_a_network_with_view_is_trained_and_attacked(own: Any) -> None:
    arch = ["--arch", "nets_that_view:Viewing"]
    ran = own("train", "--method", "pgd-at", "--dataset", "digits", *arch, "--epochs", "1", "--out", "runs/own")
    assert ran.code == 0 and "Traceback" not in ran.err, ran.err
    ran = own("evaluate", "--model", "runs/own", *arch, "--attack", "apgd-t", "--eps", "0,0.1", "-n", "20")
    assert ran.code == 0 and "Traceback" not in ran.err, ran.err


def test_a_plain_module_with_view_is_attacked(own: Any) -> None:
    ran = own("evaluate", "--model", "nets_that_view:Plain", "--dataset", "digits", "--attack", "pgd", "--eps", "0,0.1",
              "-n", "20")  # fmt: skip
    assert ran.code == 0 and "95 % interval" in ran.out, ran.err


def test_a_maker_without_num_classes_is_trained(own: Any) -> None:
    ran = own("train", "--method", "pgd-at", "--dataset", "digits", "--arch", "nets_that_view:Plain", "--epochs", "1")
    assert ran.code == 0 and "Traceback" not in ran.err, ran.err


def test_a_network_that_stops_gradients(own: Any) -> None:
    ran = own("evaluate", "--model", "nets_that_view:Stopped", "--dataset", "digits", "--attack", "square", "--set",
              "n_queries=5", "--eps", "0,0.1", "-n", "20")  # fmt: skip
    assert ran.code == 0 and "95 % interval" in ran.out, ran.err


EVALUATE = ["--dataset", "digits", "--attack", "fgsm,square", "--set", "n_queries=5", "--eps", "0,0.1", "-n", "20"]


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("answers_pair", "the logits are element 0 of the tuple that the model returns"),
        ("answers_dict", "the logits are logits of the dict that the model returns"),
        ("in_place", "the model changes its input: it is given copies"),
        ("fixed", "the model takes batches of 12 only"),
        ("double", "the model takes float64 images"),
        ("bfloat16", "the model takes bfloat16 images"),
        ("parallel", "DataParallel left out"),
        ("traced", ""),
    ],
)
def test_a_network_of_any_kind_is_attacked(own: Any, name: str, note: str) -> None:
    ran = own("evaluate", "--model", f"nets_that_view:{name}", *EVALUATE)
    assert ran.code == 0 and "95 % interval" in ran.out and "Traceback" not in ran.err, ran.err
    assert note in " ".join((ran.out + ran.err).split())


def test_several_tensors_that_may_be_the_logits(own: Any) -> None:
    ran = own("evaluate", "--model", "nets_that_view:answers_two", *EVALUATE)
    assert ran.code == 2 and not ran.out and "Traceback" not in ran.err
    assert "(0 (2, 10), 1 (2, 10)): return the logits alone" in ran.err.splitlines()[-1]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_file_is_a_model(own: Any) -> None:
    torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))).save("net.pt")
    ran = own("evaluate", "--model", "net.pt", *EVALUATE)
    assert ran.code == 0 and "95 % interval" in ran.out and "Traceback" not in ran.err, ran.err
