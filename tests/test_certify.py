"""Certified bounds: against closed forms, exact minima by integer programming, and sampled points."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds as Box
from scipy.optimize import LinearConstraint, milp
from torch import Tensor, nn
from torch.nn import functional as F

from advbench import evaluate
from advbench.certify import NoBound, certify, traced
from advbench.certify.alpha import climbed
from advbench.certify.bounds import Ball, backward, bounds
from advbench.models import architectures, build
from advbench.models.normalized import Normalized
from advbench.threat import around

CLEAR = 1e-4  # a margin that neither rounding nor a solver's tolerance can turn


def images(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def made(build_net, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_net()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.norm, self.linear = nn.BatchNorm2d(2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv1((x - 0.5) / 0.25))
        h = F.relu(self.norm(self.conv2(h)) + x + x)
        h = torch.cat([h - x, 2 * h], 1)[:, 1:]
        return self.linear(torch.cat([h, -x[:, :1]], 1).mean((2, 3)))


def after(*layers: nn.Module, features: int = 72) -> nn.Module:
    """A convolution, `layers`, and a linear layer."""
    return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), *layers, nn.Flatten(), nn.Linear(features, 3))


NETS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3)),
    "relu": lambda: after(nn.ReLU()),
    "relu in place": lambda: after(nn.BatchNorm2d(2), nn.ReLU(inplace=True)),
    "leaky relu": lambda: after(nn.LeakyReLU(0.3), nn.BatchNorm2d(2), nn.LeakyReLU()),
    "sigmoid": lambda: after(nn.Sigmoid(), nn.Conv2d(2, 2, 1), nn.Sigmoid()),
    "tanh": lambda: after(nn.Tanh(), nn.Conv2d(2, 2, 1), nn.Tanh()),
    "softplus": lambda: after(nn.Softplus(), nn.Conv2d(2, 2, 1), nn.Softplus()),
    "max pool": lambda: after(nn.ReLU(), nn.MaxPool2d(2), features=18),
    "max pool first": lambda: after(nn.MaxPool2d(3, 1, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU()),
    "dilated max pool": lambda: after(nn.ReLU(), nn.Conv2d(2, 2, 1), nn.MaxPool2d(2, 2, dilation=2), features=8),
    "average pool": lambda: after(nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), features=8),
    "strided groups": lambda: after(nn.ReLU(), nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.ReLU(), features=36),
    "reflected": lambda: after(nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
    "same": lambda: after(nn.ReLU(), nn.Conv2d(2, 2, 3, padding="same"), nn.Dropout(), nn.Identity(), nn.ReLU()),
    "batch norm 1d": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)),  # noqa: E501
    "residual": Residual,
    "normalised": lambda: Normalized(after(nn.ReLU()), (0.4, 0.5), (0.2, 0.3)),
}  # fmt: skip


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", NETS)
def test_bounds_of_every_layer_contain_what_points_of_the_ball_give(name: str, norm: str) -> None:
    net, x, eps = made(NETS[name]), images(3, 2, 6, 6), {"linf": 0.1, "l2": 0.5, "l1": 1.0}[norm]
    graph = traced(net, x)
    ball, region = Ball.around(x, eps, norm), around(norm, x, torch.full((3,), eps, dtype=torch.float64))
    rows = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    image = torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        loose, tight = (bounds(graph, ball, by) for by in (None, backward))
        finer = bounds(graph, ball, lambda *given: climbed(*given, steps=5).bound, tight)
        least = backward(tight, graph.logits, rows, image)
        best = climbed(tight, graph.logits, rows, image, steps=5).bound
    assert bool((best >= least).all())
    seen = torch.full_like(least, torch.inf)
    for draw in range(60):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(draw)) * (1 if draw % 2 else 10)
        points = region.project(x + eps * noise) if draw else x
        assert bool(region.contains(points).all())
        with torch.no_grad():
            values = graph.values(points.double())
            logits = net(points).double()
        for found in (loose, tight, finer):
            for low, value, high in zip(found.low, values, found.high, strict=True):
                assert bool(((low <= value) & (value <= high)).all())
            assert bool(((found.low[-1] <= logits) & (logits <= found.high[-1])).all())
        seen = torch.minimum(seen, (rows * logits[image]).sum(1))
    assert bool((best <= seen).all())
    for wide, found in ((loose, tight), (tight, finer)):
        narrower = [
            float((d - c).sum() / (b - a).sum())
            for a, b, c, d in zip(wide.low, wide.high, found.low, found.high, strict=True)
        ]
        assert max(narrower) <= 1 + 1e-12
        # By CROWN behind any activation, by better slopes behind a ReLU.
        if name == "residual" or (found is tight and name in ("sigmoid", "tanh", "softplus")):
            assert min(narrower) < 0.999


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_linear_nets_are_certified_up_to_their_margins(norm: str) -> None:
    """In a ball that [0, 1] does not cut, the least margin is z_y - z_k - eps ||w_y - w_k||, in the dual norm."""
    net = made(NETS["linear"])
    x = 0.5 + 0.1 * images(20, 2, 6, 6)
    graph, (weight, bias) = traced(net, x), (part.detach().double() for part in net[1].parameters())
    with torch.no_grad():
        y = net(x).argmax(1)
    difference = weight[y][:, None] - weight
    margin = (x.double().flatten(1)[:, None] * difference).sum(2) + bias[y][:, None] - bias
    order = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    radius = margin / torch.linalg.vector_norm(difference, ord=order, dim=2)
    radius[torch.arange(20), y] = torch.inf
    largest = radius.amin(1)
    for image in range(20):
        for share, proved in ((0.999, True), (1.001, False)):
            one = slice(image, image + 1)
            eps = float(largest[image]) * share
            if 1e-3 < eps < 0.35:
                assert bool(certify(graph, x[one], y[one], eps, norm)) is proved


def test_the_box_of_images_cuts_the_ball() -> None:
    """Of pixels that are 1, a step upwards is outside of the images: only steps downwards count."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 1, 1, 1], [2, 2, 2, 2]]))
        net[1].bias.copy_(torch.tensor([4.1, 0]))
    x, y = torch.ones(1, 1, 2, 2), torch.tensor([0])
    assert bool(certify(traced(net, x), x, y, 1.0, "linf")) and bool(certify(traced(net, x), x, y, 3.0, "l2"))
    below = torch.full_like(x, 0.9)
    assert not bool(certify(traced(net, below), below, y, 0.2, "linf")) or float(4.1 - below.sum() - 0.4) > 0


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 3))


def least_margin(
    net: nn.Sequential, low: np.ndarray, high: np.ndarray, difference: np.ndarray, signs: Tensor | None = None
) -> float:
    """The least <difference, logits> of Linear, ReLU, Linear over a box, by integer programming (Tjeng et al. 2019).

    `signs` (m,): only where inputs of the ReLUs are >= 0 (1) or <= 0 (-1), or any (0); inf where there is none.
    """
    (w, b), (v, c) = ([part.detach().double().numpy() for part in net[place].parameters()] for place in (1, 3))
    n, m = w.shape[1], w.shape[0]
    middle, radius = (low + high) / 2, (high - low) / 2
    lows, highs = w @ middle + b - abs(w) @ radius, w @ middle + b + abs(w) @ radius
    zero, eye = np.zeros((m, n)), np.eye(m)
    # Variables: x, h = relu(w x + b), and a in {0, 1}, 1 where w x + b is above 0.
    constraints = [
        LinearConstraint(np.hstack([w, -eye, np.zeros((m, m))]), -np.inf, -b),
        LinearConstraint(np.hstack([-w, eye, np.diag(-np.minimum(lows, 0))]), -np.inf, b - np.minimum(lows, 0)),
        LinearConstraint(np.hstack([zero, eye, -np.diag(np.maximum(highs, 0))]), -np.inf, 0),
    ]
    cost = np.concatenate([np.zeros(n), difference @ v, np.zeros(m)])
    known = np.zeros(m) if signs is None else signs.numpy()
    box = Box(np.concatenate([low, np.zeros(m), known > 0]), np.concatenate([high, np.full(m, np.inf), known >= 0]))
    found = milp(cost, constraints=constraints, bounds=box, integrality=np.repeat([0, 0, 1], [n, m, m]))
    assert found.success or found.status == 2  # infeasible
    return float(found.fun + difference @ c) if found.success else float("inf")


def test_certified_is_below_the_exact_minimum_and_branching_reaches_it() -> None:
    net, x = made(small, seed=3), images(6, 1, 3, 3)
    with torch.no_grad():
        net[1].weight *= 3
        y = net(x).argmax(1)
    graph, verdicts = traced(net, x), []
    for eps in (0.02, 0.05, 0.1, 0.2):
        proved = certify(graph, x, y, eps, "linf", seconds=60)
        ball = Ball.around(x, eps, "linf")
        for image, other in itertools.product(range(6), range(3)):
            if other == y[image]:
                continue
            difference = (torch.eye(3)[y[image]] - torch.eye(3)[other]).double()
            exact = least_margin(
                net, ball.low[image].flatten().numpy(), ball.high[image].flatten().numpy(), difference.numpy()
            )
            with torch.no_grad():
                found = bounds(graph, ball, backward)
                below = backward(found, graph.logits, difference[None], torch.tensor([image]))
                assert float(below) <= exact + 1e-6
                better = climbed(found, graph.logits, difference[None], torch.tensor([image]), steps=30).bound
            assert float(below) <= float(better) <= exact + 1e-6
            if exact < -CLEAR:
                assert not bool(proved[image])
            verdicts.append((image, eps, exact))
        for image in range(6):
            if min(exact for one, at, exact in verdicts if (one, at) == (image, eps)) > CLEAR:
                assert bool(proved[image])
    assert 0 < sum(exact > 0 for _, _, exact in verdicts) < len(verdicts)


def test_bounds_hold_for_float32_where_sums_cancel() -> None:
    """A net whose float32 logits are off by a thousandth of their size: bounds of a single point contain them."""
    net = made(NETS["batch norm 1d"], seed=5)
    with torch.no_grad():
        net[1].weight.mul_(1e4)
        net[1].bias.sub_(net[1](images(1, 72).mul_(0).add_(0.5))[0])
    x = 0.5 + 1e-4 * images(20, 2, 6, 6)
    graph = traced(net, images(5, 2, 6, 6))
    with torch.no_grad():
        found, logits = bounds(graph, Ball.around(x, 0.0, "linf"), backward), net(x).double()
        exact = graph.values(x.double())[-1]
    assert bool(((logits - exact).abs() > 0).any())
    assert bool(((found.low[-1] <= logits) & (logits <= found.high[-1])).all())


def test_nothing_is_proved_where_float32_overflows() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        for module, values in ((net[1], [[1e38] * 4]), (net[3], [[1.0], [0.5]])):
            module.weight.copy_(torch.tensor(values))
            module.bias.zero_()
        x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
        assert not bool(net(x + 0.39).isfinite().any())
    assert not bool(certify(traced(net, x), x, y, 0.39, "linf"))
    with torch.no_grad():
        net[1].weight.mul_(1e-3)
    assert bool(certify(traced(net, x), x, y, 0.39, "linf"))


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.big = nn.Linear(2, 3), nn.Parameter(torch.tensor(1e8))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)[:, :2]) + ((self.big + 1) - self.big) * 1e-5  # which is 0 in float32


def test_constants_are_those_that_float32_computes() -> None:
    net, x = made(Constant), images(5, 2, 6, 6)
    with torch.no_grad():
        found, logits = bounds(traced(net, x), Ball.around(x, 0.0, "linf")), net(x).double()
    assert bool(((found.low[-1] <= logits) & (logits <= found.high[-1])).all())


def test_multipliers_bound_what_has_the_assumed_signs() -> None:
    net, x = made(small, seed=3), images(1, 1, 3, 3)
    graph, ball = traced(net, x), Ball.around(x, 0.2, "linf")
    with torch.no_grad():
        found, logits = bounds(graph, ball, backward), net(x)[0]
    row = torch.eye(3, dtype=torch.float64)[logits.argmin()] - torch.eye(3, dtype=torch.float64)[logits.argmax()]
    (number,) = (number for number, lines in enumerate(found.lines) if lines is not None)
    before = graph.nodes[number].inputs[0]
    open_ = ((found.low[before] < 0) & (found.high[before] > 0))[0].nonzero()[:, 0].tolist()
    signs = torch.stack([sign * torch.eye(12, dtype=torch.float64)[unit] for unit in open_ for sign in (1, -1)])
    rows, image = row.expand(len(signs), -1), torch.zeros(len(signs), dtype=torch.long)
    best = climbed(found, graph.logits, rows, image, steps=60, signs={number: signs}).bound
    box = ball.low.flatten().numpy(), ball.high.flatten().numpy()
    exact = torch.tensor([least_margin(net, *box, row.numpy(), one) for one in signs], dtype=torch.float64)
    assert len(open_) >= 4 and bool((best <= exact + 1e-6).all())
    assert float((best - climbed(found, graph.logits, rows, image, steps=60).bound).max()) > 1e-3  # they help


def test_images_together_and_one_by_one_are_proved_alike() -> None:
    net, x = made(NETS["max pool"]), images(5, 2, 6, 6)
    graph = traced(net, x)
    with torch.no_grad():
        y = net(x).argmax(1)
        whole = bounds(graph, Ball.around(x, 0.05, "linf"), backward)
        for one in range(5):
            alone = bounds(graph, Ball.around(x[one : one + 1], 0.05, "linf"), backward)
            for a, b in zip(whole.low, alone.low, strict=True):
                torch.testing.assert_close(a[one : one + 1], b, rtol=1e-9, atol=1e-12)
    for eps in (0.003, 0.01, 0.03):
        together = certify(graph, x, y, eps, "linf", seconds=30)
        apart = [bool(certify(graph, x[one : one + 1], y[one : one + 1], eps, "linf", seconds=30)) for one in range(5)]
        assert together.tolist() == apart


def test_images_that_need_branching_are_proved_alike_beside_others_that_do_not() -> None:
    net, x = made(small, seed=0), images(20, 1, 3, 3)
    graph = traced(net, x)
    with torch.no_grad():
        y = net(x).argmax(1)
    easily = certify(graph, x, y, 0.12, "linf", thorough=False)
    together = certify(graph, x, y, 0.12, "linf", seconds=30)
    apart = torch.cat(
        [certify(graph, *one, 0.12, "linf", seconds=30) for one in zip(x.split(1), y.split(1), strict=True)]
    )
    assert together.tolist() == apart.tolist()
    assert bool(easily.any()) and bool((together & ~easily).any()) and not bool(together.all())


def test_no_image_that_the_model_gets_wrong_is_proved() -> None:
    net, x = made(NETS["relu"]), images(30, 2, 6, 6)
    with torch.no_grad():
        y = net(x).argmin(1)
    assert not bool(certify(traced(net, x), x, y, 0.0, "linf").any())


@pytest.mark.parametrize("arch", sorted(architectures()))
def test_the_zoo_has_bounds(arch: str) -> None:
    if arch.startswith("wrn"):
        pytest.skip("the same layers as preact_resnet18, on many more weights")
    small = {"width": 2} if "resnet" in arch else {}
    net = made(lambda: build(arch, num_classes=4, in_channels=1, image_size=8, normalize="half", **small))
    x = images(2, 1, 8, 8)
    if arch == "conv_linear":  # by a Fourier transform, whose rounding has no bound here
        with pytest.raises(NoBound, match="fft_rfft2 gives complex numbers"):
            traced(net, x)
        return
    graph = traced(net, x)
    with torch.no_grad():
        found, logits = bounds(graph, Ball.around(x, 0.001, "linf")), net(x).double()
    assert bool(((found.low[-1] <= logits) & (logits <= found.high[-1])).all())
    frozen = copy.deepcopy(net.state_dict())
    assert all(torch.equal(frozen[name], value) for name, value in net.state_dict().items()) and not net.training


class Gate(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.linear, self.act = how, nn.Linear(72, 3), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x.flatten(1))
        if self.how == "branch" and z.sum() > 0:
            return -z
        return {
            "silu": lambda: self.act(z),
            "function": lambda: torch.exp(z),
            "product": lambda: z * z,
            "batch": lambda: z - z.mean(0, keepdim=True),
            "random": lambda: z + torch.rand(3),
            "branch": lambda: z,
            "hook": lambda: z,
            "double": lambda: z,
            "several": lambda: torch.cat(z.chunk(3, 1), 1),
            "scalar": lambda: z * z.mean(),
            "slope": lambda: F.leaky_relu(z, z.shape[1] * 0.1),
        }[self.how]()


class InPlace(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b, self.relu = how, nn.Linear(72, 5), nn.Linear(5, 3), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.flatten(1))
        match self.how:
            case "function":
                F.relu(h, inplace=True)
            case "module":
                self.relu(h)
            case "method":
                h.relu_()
            case "view":
                h[:, :2].relu_()
            case "images":
                torch.relu_(x)
                return self.b(h + self.a(x.flatten(1)))  # type: ignore[no-any-return]
            case "augmented":
                before = h
                h -= 0.1
                return self.b(h + before)  # type: ignore[no-any-return]
            case "output":
                z = self.b(h)
                F.relu(z, inplace=True)
                return z  # type: ignore[no-any-return]
            case "read once":
                x -= 0.5
                h = self.relu(self.a(x.flatten(1)))
                h += 1
                h = self.relu(h)
            case "cloned":
                before = h.clone()
                return self.b(self.relu(h) - before)  # type: ignore[no-any-return]
        return self.b(h)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["function", "module", "method", "view", "images", "augmented", "output"])
def test_what_is_overwritten_is_not_read_as_it_was(how: str) -> None:
    """On these images no ReLU need cut anything off, so that equal logits would not show it."""
    net, x = made(lambda: InPlace(how)), images(2, 2, 6, 6)
    with pytest.raises(NoBound, match="overwritten"):
        traced(net, x)


@pytest.mark.parametrize("how", ["read once", "cloned"])
def test_what_is_overwritten_and_not_read_again_has_bounds(how: str) -> None:
    net, x = made(lambda: InPlace(how)), images(20, 2, 6, 6)
    assert traced(net, x[:2]).agrees(net, x) and torch.equal(x, images(20, 2, 6, 6))


@pytest.mark.parametrize("where", ["net", "layer"])
@pytest.mark.parametrize("how", ["hook", "pre-hook", "forward"])
def test_a_module_that_does_other_than_its_class_has_no_bound(where: str, how: str) -> None:
    net, x = made(NETS["relu"]), images(2, 2, 6, 6)
    module = net if where == "net" else next(one for one in net.modules() if isinstance(one, nn.ReLU))
    if how == "hook":
        module.register_forward_hook(lambda module, inputs, output: output.clamp(max=9))
    elif how == "pre-hook":
        module.register_forward_pre_hook(lambda module, inputs: None)
    else:
        module.forward = module.forward
    with pytest.raises(NoBound, match=r"hook|forward of its own"):
        traced(net, x)


def test_logits_are_compared_on_every_image_that_is_proved() -> None:
    """The trace has the branch of the first images."""
    dark = torch.zeros(40, 1, 4, 4)
    dark[:2] = 1.0

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 2)
            nn.init.zeros_(self.head.weight)
            with torch.no_grad():
                self.head.bias.copy_(torch.tensor([1.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            z = self.head(x.flatten(1))
            traced_or_bright = isinstance(x, torch.fx.Proxy) or bool(x.amax() > 0.5)
            return z if traced_or_bright else z.flip(1)  # type: ignore

    net = Branches().eval()
    assert traced(net, dark[:2]).agrees(net, dark[:2])
    result = evaluate(net, (dark, torch.zeros(40, dtype=torch.long)), attack="fgsm", eps=[0, 0.1], certify="after")
    assert result.fates.proved is None
    assert any(flag.name == "not-certified" and "other logits" in flag.detail for flag in result.record.flags)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("silu", "act"), ("function", "exp"), ("product", "mul"), ("batch", "mean"), ("random", "logits"),
        ("several", "chunk|cat"), ("scalar", "mean"), ("slope", "trace fails"), ("branch", "traced"),
        ("hook", "linear"), ("double", "float32"),
    ],
)  # fmt: skip
def test_a_net_without_bounds_names_the_layer(how: str, named: str) -> None:
    net, x = made(lambda: Gate(how)), images(2, 2, 6, 6)
    if how == "hook":
        net.linear.register_forward_hook(lambda module, inputs, output: output + 1)
    if how == "double":
        net = net.double()
    with pytest.raises(NoBound, match=named):
        traced(net, x)
