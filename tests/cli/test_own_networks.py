"""Networks of users that flatten their maps by `view`, as many do; `view` fails on channels-last maps."""

from __future__ import annotations

from typing import Any

import pytest

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
