"""Every broken defence is flagged suspect or broken, and no honest model is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from advbench import rng
from advbench.attacks.apgd import APGD
from advbench.attacks.autoattack import standard as autoattack
from advbench.attacks.fab import FABT
from advbench.attacks.pgd import PGD
from advbench.attacks.square import Square
from advbench.attacks.transfer import Transfer
from advbench.checkpoint import load_model
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.attack import Problem, solve
from advbench.errors import UserError
from advbench.evaluator import Settings, evaluate, flags, probes
from advbench.models.quantize import Quantize
from advbench.record import Fates, Flag
from advbench.threat import around

whole = pytest.mark.usefixtures("whole_probes")  # where no probe may say anything, or where its length counts

N = 64
EPS = ["0", "0.05", "0.1", "0.2"]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(N))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def trained(eps: float, name: str = "digits", make: Callable[[], nn.Module] = convolutions) -> nn.Module:
    """A small net trained for a few seconds, adversarially if eps > 0."""
    torch.manual_seed(0)
    net, data = make(), load(name, "train")
    optim = torch.optim.Adam(net.parameters(), 2e-3)
    attack = PGD(name="pgd", steps=5)
    for step in range(300):
        rows = torch.randint(len(data), (64,))
        x, y = data.batch(rows)
        if eps:
            sizes = torch.full((64,), eps, dtype=torch.float64)
            p = Problem(around("linf", x, sizes), y, torch.full_like(y, -1), rng.keys(step, "train", rows))
            x = solve(attack, lambda z, y=y: functional.cross_entropy(net(z), y, reduction="none"), p)  # type: ignore[misc]
        optim.zero_grad()
        functional.cross_entropy(net(x), y).backward()
        optim.step()
    return net.eval()


@pytest.fixture(scope="module")
def standard() -> nn.Module:
    return trained(0)


@pytest.fixture(scope="module")
def robust() -> nn.Module:
    return trained(0.1)


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x, y = load("digits", "train").batch(slice(None))
    optim = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(200):
        optim.zero_grad()
        functional.cross_entropy(net(x), y).backward()
        optim.step()
    return net.eval()


def raised(net: nn.Module, data: Dataset, attack: Any = ("apgd-ce",), **more: Any) -> dict[str, Flag]:
    how: dict[str, Any] = {"eps": EPS, "attack_settings": {"steps": 5}, **more}
    record = evaluate(net, data, Settings(attack=list(attack), **how)).record
    assert len({flag.name for flag in record.flags}) == len(record.flags)
    return {flag.name: flag for flag in record.flags}


def bad(found: dict[str, Flag]) -> dict[str, str]:
    return {name: flag.severity for name, flag in found.items() if flag.severity != "note"}


class Defence(nn.Module):
    """`net` with a function applied to its input and another to its logits."""

    def __init__(
        self,
        net: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


class Staircase(nn.Module):
    """Floor of a hidden layer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net[5:](torch.floor(4 * self.net[:5](x)) / 4)  # type: ignore[index, no-any-return]


class Memory(nn.Module):
    """Knows the labels of the test images; on all other images it is `net`."""

    def __init__(self, net: nn.Module, data: Dataset) -> None:
        super().__init__()
        self.net = net
        self.x, self.y = data.batch(slice(None))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        distance = torch.cdist(x.flatten(1), self.x.flatten(1))
        known = functional.one_hot(self.y[distance.argmin(1)], 10) * 30.0
        return torch.where(distance.amin(1, keepdim=True) < 1e-6, known, logits)


class MemoryAndNet(Memory):
    """Adds the labels of the test images to the logits of `net`, and keeps the gradients of `net` everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        distance = torch.cdist(x.flatten(1), self.x.flatten(1))
        known = functional.one_hot(self.y[distance.argmin(1)], 10) * 30.0
        return self.net(x) + torch.where(distance.amin(1, keepdim=True) < 1e-6, known, 0.0)  # type: ignore[no-any-return]


class Wide(Memory):
    """Gives every image the label of the nearest test image."""

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.flatten(1), self.x.flatten(1)).argmin(1)
        return functional.one_hot(self.y[nearest], 10) * 30.0


class Dropout(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net[6:](functional.dropout(self.net[:6](x), 0.5, training=True))  # type: ignore[index, no-any-return]


class StuckInTraining(nn.Module):
    """BatchNorm with the statistics of the batch, which eval() does not change."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.norm = net, nn.BatchNorm1d(10)

    def train(self, mode: bool = True) -> StuckInTraining:
        return super().train(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.net(x))  # type: ignore[no-any-return]


class WithoutStatistics(StuckInTraining):
    def train(self, mode: bool = True) -> StuckInTraining:
        nn.Module.train(self, mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(self.net(x), None, None, training=True)


class _NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * torch.nan


class _Misled(torch.autograd.Function):
    """The gradient with the wrong sign."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return -grad


class _Sparse(torch.autograd.Function):
    """Keeps a random 1 / 32 of the gradient in each pass, so that attacks need many steps."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * (torch.rand_like(grad) < 1 / 32)


def overflow(z: Tensor) -> Tensor:
    e = torch.exp(z * 20)
    return e / e.sum(1, keepdim=True) * z


def overflow_outside(x: Tensor) -> Tensor:
    return torch.where((x * 16 - (x * 16).round()).abs() < 1e-4, x, torch.nan)  # images of digits are multiples of 1/16


BROKEN: dict[str, tuple[Callable[[nn.Module, Dataset], nn.Module], str]] = {
    "softmax x 1000": (lambda net, _: Defence(net, after=lambda z: 1000 * z.softmax(1)), "probabilities"),
    "softmax": (lambda net, _: Defence(net, after=lambda z: z.softmax(1)), "probabilities"),
    "logits x 1000": (lambda net, _: Defence(net, after=lambda z: 1000 * z), "saturated"),
    "logits + 1e8": (lambda net, _: Defence(net, after=lambda z: z + 1e8), "rounding"),
    "zero gradient": (lambda net, _: Defence(net, after=lambda z: z.detach() + 0 * z), "zero-gradient"),
    "quantised input": (lambda net, _: Defence(net, before=lambda x: (x * 4).round() / 4), "zero-gradient"),
    "random noise": (lambda net, _: Defence(net, before=lambda x: x + 0.3 * torch.randn_like(x)), "random"),
    "dropout left on": (lambda net, _: Dropout(net), "random"),
    "detached graph": (lambda net, _: Defence(net, before=lambda x: x.detach()), "zero-gradient"),
    "overflow to NaN": (lambda net, _: Defence(net, after=overflow), "non-finite"),
    "NaN off the grid": (lambda net, _: Defence(net, before=overflow_outside), "non-finite"),
    "memorised test points": (Memory, "memorised"),
    "memorised surroundings": (Wide, "zero-gradient"),
    "floor": (lambda net, _: Staircase(net), "zero-gradient"),
    "declared floor": (lambda net, _: Quantize(net=net, layer="4", levels=4), "straight-through"),
    "NaN gradient": (lambda net, _: Defence(net, before=_NaNGradient.apply), "nan-gradient"),
    "gradient of the wrong sign": (lambda net, _: Defence(net, before=_Misled.apply), "loss-not-rising"),
    "sparse gradient": (lambda net, _: Defence(net, before=_Sparse.apply), "more-steps"),
    "train mode": (lambda net, _: StuckInTraining(net), "train-mode"),
    "statistics of the batch": (lambda net, _: WithoutStatistics(net), "batch"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_defences_are_flagged(
    name: str, standard: nn.Module, digits: Dataset, request: pytest.FixtureRequest
) -> None:
    make, flag = BROKEN[name]
    if flag == "more-steps":
        request.getfixturevalue("whole_probes")
    net = standard
    if name.startswith("memorised test"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert flag in bad(raised(make(net, digits), digits))


def test_black_boxes_and_grey_images_reveal_masked_gradients(standard: nn.Module, digits: Dataset) -> None:
    masked = Defence(standard, before=lambda x: x.detach())
    attacks = [PGD(name="pgd", steps=2, random_start=False), Square(name="square", n_queries=100)]
    found = bad(raised(masked, digits, attacks, attack_settings={}))
    assert found["zero-gradient"] == "broken" and found["square-wins"] == "suspect"
    assert "noise-wins" not in found and found["loss-not-rising"] in ("suspect", "broken")
    assert "above-chance" in bad(raised(Defence(standard, before=_Misled.apply), digits))


def test_random_noise_beats_an_attack_that_does_not_move(digits: Dataset) -> None:
    torch.manual_seed(0)
    net = Memory(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits)
    found = bad(raised(net, digits, [PGD(name="pgd", steps=2, random_start=False)], attack_settings={}))
    assert found["noise-wins"] == found["memorised"] == "broken"


def test_every_member_of_autoattack_runs_without_gradients(standard: nn.Module, digits: Dataset) -> None:
    short = [replace(one, n_queries=20) if isinstance(one, Square) else replace(one, steps=2) for one in autoattack()]
    assert any(isinstance(one, FABT) for one in short)
    net = Defence(standard, before=lambda x: x.detach())
    assert "zero-gradient" in bad(raised(net, digits.subset(range(20)), short, attack_settings={}, eps=["0.1"]))


def test_a_net_that_knows_the_images_is_distinguished_from_an_honest_one(standard: nn.Module) -> None:
    """Noise fells few of its images, and it has gradients: only the jump right beside the images reveals it."""
    data = load("digits", "test").subset(range(400, 500))
    x, y = data.batch(slice(None))
    assert (standard(x).argmax(1) == y).double().mean() > 0.9
    found = raised(MemoryAndNet(standard, data), data)
    assert bad(found) == {"discontinuous": "broken"} and "100.0% of the images jump" in found["discontinuous"].detail
    assert found["discontinuous"].k == found["discontinuous"].n and found["discontinuous"].eps is None
    assert "discontinuous" not in raised(standard, data)


@whole
def test_straight_through_is_a_note_where_the_attack_uses_it(standard: nn.Module, digits: Dataset) -> None:
    net = Quantize(net=standard, layer="4", levels=4)
    found = raised(net, digits, attack_settings={"steps": 5, "straight_through": True})
    assert bad(found) == {} and found["straight-through"].severity == "note"


@whole
@pytest.mark.parametrize(("steps", "eps", "severity"), [(1, "0.1", "suspect"), (1, "0.03", "note"), (40, "0.1", None)])
def test_an_attack_weaker_than_pgd_is_no_measure(
    steps: int, eps: str, severity: str | None, standard: nn.Module, digits: Dataset
) -> None:
    attack = PGD(name="pgd", steps=steps, rel_step=0.1 if steps > 1 else 0.01, random_start=False)
    found = {flag.name: flag for flag in evaluate(standard, digits, Settings(attack=attack, eps=[eps])).record.flags}
    weak = found.get("weak-attack")
    assert (weak.severity if weak else None) == severity, found


@pytest.mark.parametrize(
    ("count", "beside", "severity"),
    [(2, "small-n", None), (3, "small-n", "note"), (100, "small-n", "note"), (101, "small-n", "suspect"),
     (20, "zero-gradient", "note"), (21, "zero-gradient", "suspect")],
)  # fmt: skip
def test_black_box_by_share(count: int, beside: str, severity: str | None) -> None:
    fell = np.full(1000, -1, dtype=np.int16)
    by = fell.copy()
    fell[:100], by[:100] = 1, 0
    fell[100 : 100 + count], by[100 : 100 + count] = 1, 1
    attacks = [PGD(name="pgd", steps=2), Square(name="square")]
    fates, others = Fates(fell, by), [Flag(name=beside, severity="note")]
    expected = [(severity, 0.2, count, 1000)] if severity else []
    found = flags.black_box(fates, attacks, [0.1, 0.2], others)
    assert [(flag.severity, flag.eps, flag.k, flag.n) for flag in found] == expected
    transfer = Transfer(name="transfer", steps=2, source="runs/other")
    moved = flags.black_box(fates, [attacks[0], transfer], [0.1, 0.2], others)
    assert [(flag.name, flag.severity) for flag in moved] == ([("transfer-wins", severity)] if severity else [])
    # An attack that runs first is compared with none.
    assert flags.black_box(fates, attacks[::-1], [0.1, 0.2], others) == []


def test_facts(standard: nn.Module, digits: Dataset) -> None:
    torch.manual_seed(0)
    two = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).train()
    part = replace(digits, labels=digits.labels % 2, num_classes=2)
    found = raised(two, part)
    assert found["few-classes"].severity == found["train-mode"].severity == "note"
    assert bad(found) == {"at-chance": "suspect"}
    assert raised(standard, replace(digits, scale=8.0))["outside"].severity == "broken"
    assert "+-11.9 points" in raised(standard, digits, eps=["0"])["small-n"].detail


HONEST = ("linear", "standard", "robust")


@whole
@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", ["0", "0.3", "1"]), ("l1", ["1", "3"])])
@pytest.mark.parametrize("name", HONEST)
def test_honest_models_are_not_flagged(
    name: str, norm: str, eps: list[str], digits: Dataset, request: pytest.FixtureRequest
) -> None:
    net = request.getfixturevalue(name)
    short = [Square(name="square", n_queries=100)] if norm == "linf" else []
    # As in AutoAttack: one restart in l1 is weaker than PGD-100, by as much as the net happens to allow.
    how: dict[str, Any] = {"steps": 50, "restarts": 5, "larger_eps": True} if norm == "l1" else {"steps": 20}
    attacks = [APGD(name="apgd-ce", **how), *short]
    if norm == "l1":
        attacks.append(APGD(name="apgd-t", loss="dlr", n_targets=5, steps=50, larger_eps=True))
    found = raised(net, digits, attacks, norm=norm, eps=eps, attack_settings={})
    assert bad(found) == {}
    assert found["small-n"].detail.startswith("64 images")


def first(dataset: str, n: int) -> Dataset:
    try:
        return load(dataset, "test").subset(range(n))
    except UserError as error:
        pytest.skip(f"{dataset} cannot be had: {error}")


@whole
@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "eps"),
    [
        pytest.param("clntrained", ["0", "0.1", "0.15"], marks=pytest.mark.long),
        ("advtrained", ["0", "0.2", "0.3", "0.35"]),
    ],
)
def test_honest_networks_of_others(name: str, eps: list[str], advertorch: Path) -> None:
    data = first("mnist", 128)
    net = load_model(str(advertorch / f"mnist_lenet5_{name}.pt"), arch="lenet5", dataset=data).net
    attacks = [APGD(name="apgd-ce", steps=20), Square(name="square", n_queries=200)]
    assert bad(raised(net, data, attacks, attack_settings={}, eps=eps)) == {}


@whole
@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "eps", "grid"),
    [
        ("mnist", 0.1, ["0", "0.1", "0.2"]),
        ("cifar10", 0.0, ["0", "1/255", "2/255"]),
        pytest.param("mnist", 0.0, ["0", "0.05", "0.1"], marks=pytest.mark.long),
        pytest.param("cifar10", 4 / 255, ["0", "4/255", "8/255"], marks=pytest.mark.long),
    ],
)
def test_honest_networks_of_ours(dataset: str, eps: float, grid: list[str]) -> None:
    """Standard and robust ones on MNIST and CIFAR-10; with those of others, seven."""
    data = first(dataset, 128)
    inputs = data.images[0].numel()
    net = trained(
        eps, dataset, lambda: nn.Sequential(nn.Flatten(), nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 10))
    )
    attacks = [APGD(name="apgd-ce", steps=10), Square(name="square", n_queries=100)]
    assert bad(raised(net, data, attacks, attack_settings={}, eps=grid)) == {}


@whole
@pytest.mark.network
@pytest.mark.long
def test_honest_network_on_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "MIN_PROBED_IMAGES", 8)  # a minute on a CPU, not two
    data = first("cifar10", 24)
    net = load_model("pyautoattack:model_test", dataset=data).net
    assert bad(raised(net, data, attack_settings={"steps": 3}, eps=["0.5/255"])) == {}


@whole
def test_a_record_without_probes_is_suspect_and_another_record(
    standard: nn.Module, digits: Dataset, tmp_path: Path
) -> None:
    settings = Settings(attack="pgd", attack_settings={"steps": 40}, eps=["0", "0.1"])  # which PGD-100 hardly beats
    whole = evaluate(standard, digits, settings)
    quick = evaluate(standard, digits, replace(settings, probes=False))
    assert [flag.name for flag in quick.record.doubts()] == ["not-probed"] and whole.record.doubts() == ()
    assert np.array_equal(whole.fates.fell, quick.fates.fell) and whole.record.id != quick.record.id
    costs = [one.record.environment.probes["forwards"] for one in (whole, quick)]  # type: ignore[attr-defined]
    assert costs[0] > 64 * 100 and costs[1] == 0
    paths = [one.record.save(tmp_path, one.fates) for one in (quick, whole)]
    assert paths[0] != paths[1]


def test_noise_is_booked_at_the_smallest_ball_that_holds_it(standard: nn.Module, digits: Dataset) -> None:
    """A model that is wrong off the images: noise of a quarter of the largest eps shows it for smaller ones too."""
    net = Memory(Defence(standard, after=lambda z: -z), digits)
    still = PGD(name="pgd", steps=1, rel_step=1e-9, random_start=False)
    found = raised(net, digits, [still], attack_settings={}, eps=["0", "0.05", "0.1", "0.2"])
    assert found["noise-wins"].severity == "broken" and found["noise-wins"].eps == 0.05


class OfNumPy(nn.Module):
    """A black box: an error, not a zero, is what asking for its gradient gives."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.from_numpy(self.net(torch.from_numpy(x.numpy())).numpy())


@whole
def test_a_black_box_is_judged_by_its_answers_alone(standard: nn.Module, digits: Dataset) -> None:
    square = Square(name="square", n_queries=5000)
    found = raised(OfNumPy(standard), digits, [square], attack_settings={}, eps=["0", "0.1"])
    assert bad(found) == {} and "zero-gradient" not in found
