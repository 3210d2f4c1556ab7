"""A hit of the search copy that the model refuses is not the end of an image, in minimum-norm attacks too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.ddn import DDN
from advbench.attacks.fab import FAB
from advbench.attacks.fmn import FMN
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack, Samples
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search
from advbench.engine.verdicts import Verdicts
from advbench.evaluator import Settings, evaluate, runner

N = 40


class Infinite(nn.Module):
    """`net`, with logits that are not finite where the first column, black in these digits, is bright somewhere."""

    def __init__(self, net: nn.Module, own: float, rivals: float) -> None:
        super().__init__()
        self.net, self.own, self.rivals = net, own, rivals

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        own = z == z.amax(1, keepdim=True)
        bright = x[:, 0, :, 0].amax(1, keepdim=True) > 0.02
        return z + torch.where(bright, torch.where(own, self.own, self.rivals), 0.0)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(N))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    x, y = load("digits", "train").batch(slice(None))
    optim = torch.optim.Adam(made.parameters(), 5e-3)
    for _ in range(80):
        optim.zero_grad()
        nn.functional.cross_entropy(made(x), y).backward()
        optim.step()
    return made.eval()


class Doubtful(nn.Module):
    """`net`, that takes some of the logit of the clean answer away: wrong a little before `net` is."""

    def __init__(self, net: nn.Module, less: float) -> None:
        super().__init__()
        self.net, self.less = net, less

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        return z - self.less * (z == z.amax(1, keepdim=True))  # type: ignore[no-any-return]


def nearest(attack: Attack, net: nn.Module, copy: nn.Module, data: Dataset, norm: str) -> tuple[Verdicts, Tensor]:
    x, y = data.batch(slice(None))
    with torch.no_grad():
        logits = net(x)
    samples = Samples(
        x=lambda rows: x[rows], y=y, index=data.indices, eps=torch.full((N,), torch.inf).double(), logits=logits
    )
    found = Search(attack, samples, Oracle(net, copy, slots=16), norm=norm, seed=0).run()
    return found, logits.argmax(1) == y


@pytest.mark.parametrize(
    ("attack", "norm"),
    [
        (FMN(name="fmn", steps=60), "linf"),
        (FMN(name="fmn", steps=60), "l2"),
        (DDN(name="ddn", steps=60), "l2"),
        (FAB(name="fab", steps=20), "linf"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_no_image_is_lost_to_a_copy_that_is_wrong_too_soon(
    attack: Attack, norm: str, net: nn.Module, digits: Dataset
) -> None:
    attack = attack.for_model(norm, 10)
    exact, right = nearest(attack, net, net, digits, norm)
    found, _ = nearest(attack, net, Doubtful(net, 0.02), digits, norm)
    assert exact.fell.all() and exact.refused.isinf().all()
    assert found.fell.all() and found.unverified >= N // 4
    assert found.refused.isfinite().sum() >= N // 4
    slack = 0.01 if norm == "linf" else 0.1  # a hit must exceed what the copy overstates, and its steps differ
    assert (found.distance[right] <= 1.1 * exact.distance[right] + slack).all()
    assert (found.distance[right].median() <= 1.05 * exact.distance[right].median()).all()


def test_a_copy_wrong_at_the_image_itself_loses_none(net: nn.Module, digits: Dataset) -> None:
    """Images on the model's boundary: a hit there has size 0, which no later one could undercut."""
    x, y = digits.batch(slice(None))
    right = (net(x).argmax(1) == y).nonzero()[:, 0]
    low, high = x[right], 1 - x[right]
    low, high = low[net(high).argmax(1) != y[right]], high[net(high).argmax(1) != y[right]]
    y = y[right][net(1 - x[right]).argmax(1) != y[right]]
    for _ in range(25):
        middle = (low + high) / 2
        wrong = (net(middle).argmax(1) != y).view(-1, 1, 1, 1)
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
    with torch.no_grad():
        logits = net(low)
    n = len(y)
    assert n > N // 2 and (logits.argmax(1) == y).all()
    samples = Samples(
        x=lambda rows: low[rows], y=y, index=torch.arange(n), eps=torch.full((n,), torch.inf).double(), logits=logits
    )
    attack = FMN(name="fmn", steps=60).for_model("linf", 10)
    exact = Search(attack, samples, Oracle(net, net, slots=16), norm="linf", seed=0).run()
    found = Search(attack, samples, Oracle(net, Doubtful(net, 0.01), slots=16), norm="linf", seed=0).run()
    assert exact.fell.all() and found.fell.all() and (found.refused == 0).sum() > n // 2
    assert (found.distance < 0.01).all()


@pytest.mark.parametrize("attack", ["pgd", "square"])
@pytest.mark.parametrize(("own", "rivals"), [(np.nan, 0.0), (-np.inf, 0.0), (np.inf, 0.0), (0.0, -np.inf)])
def test_logits_that_are_not_finite_are_wrong_answers(
    net: nn.Module, digits: Dataset, attack: str, own: float, rivals: float
) -> None:
    asked = Settings(attack=attack, eps=["0", "0.05"], slots=16, probes=False)
    fates = evaluate(Infinite(net, own, rivals), digits, asked).fates
    assert (fates.fell >= 0).all()


def test_images_that_stay_unresolved_are_counted_and_doubted(
    net: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On such a copy every image falls, on the model none at these sizes."""

    class Absurd(nn.Module):
        fault = ""

        def forward(self, x: Tensor) -> Tensor:
            return -net(x)  # type: ignore[no-any-return]

    settings = Settings(attack=FMN(name="fmn", steps=5), eps=["0", "0.001"], probes=False)
    honest = evaluate(net, digits, settings)
    assert "unverified" not in {flag.name for flag in honest.record.flags if flag.severity != "note"}
    monkeypatch.setattr(runner, "search_copy", lambda *_, **__: (Absurd(), []))
    found = evaluate(net, digits, settings)
    (flag,) = (one for one in found.record.flags if one.name == "unverified")
    stand = int(found.fates.standing(1).sum())
    assert flag.severity == "suspect" and flag.n == N and flag.k == stand > N // 2
    assert np.array_equal(found.fates.clean, honest.fates.clean)


def test_a_model_that_answers_nothing_but_zeros_ends_the_search(net: nn.Module, digits: Dataset) -> None:
    """Margins of exactly 0 give no amount that the next hit could exceed."""

    class Zeros(nn.Module):
        def __init__(self, more: float) -> None:
            super().__init__()
            self.more = more

        def forward(self, x: Tensor) -> Tensor:
            z = 0 * net(x)
            z[:, 3] += self.more
            return z

    x, _ = digits.batch(slice(None))
    y = torch.zeros(N, dtype=torch.int64)
    samples = Samples(
        x=lambda rows: x[rows], y=y, index=digits.indices, eps=torch.full((N,), torch.inf).double(),
        logits=torch.zeros(N, 10),
    )  # fmt: skip
    attack = FMN(name="fmn", steps=3).for_model("linf", 10)
    found = Search(attack, samples, Oracle(Zeros(0), Zeros(1e-9), slots=16), norm="linf", seed=0).run()
    assert not found.fell.any() and found.unverified == N and (found.refused == 0).all()
