"""Defences around a net for digits, dishonest and honest, and what the flags have to say of each.

`DEFENCES` maps a name to a `Defence`: `make(net, images, labels)` wraps the net; `images` and `labels` are those that
the evaluation uses. The verdict says what an evaluation with AutoAttack must find:

- "flagged": at least one flag that is suspect or broken;
- "honest": none, because the number is deserved;
- "note": at least a note, because the logits are clipped;
- "scale": the accuracy of the bare net, because the set has losses that do not mind the scale of the logits; "flagged"
  under attacks that have none;
- "open": flagged or not, both can be defended;
- "unseen": nothing, though the number is false: no black-box probe can see it. README says so.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from advbench.data import load

Function = Callable[[Tensor], Tensor]
Make = Callable[[nn.Module, Tensor, Tensor], nn.Module]
Verdict = Literal["flagged", "honest", "note", "scale", "open", "unseen"]
CLASSES, SIDE = 10, 8


class Defence(NamedTuple):
    make: Make
    verdict: Verdict
    about: str


# Building blocks


class Around(nn.Module):
    """`net` between a function of its input and a function of its logits."""

    def __init__(self, net: nn.Module, before: Function | None = None, after: Function | None = None) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x if self.before is None else self.before(x))
        return logits if self.after is None else self.after(logits)  # type: ignore[no-any-return]


def before(function: Function) -> Make:
    return lambda net, _x, _y: Around(net, before=function)


def after(function: Function) -> Make:
    return lambda net, _x, _y: Around(net, after=function)


def around(kind: Callable[[nn.Module], nn.Module]) -> Make:
    return lambda net, _x, _y: kind(net)


def knowing(kind: Callable[[nn.Module, Tensor, Tensor], nn.Module]) -> Make:
    return lambda net, x, y: kind(net, x, y)


def one_hot(classes: Tensor) -> Tensor:
    return functional.one_hot(classes, CLASSES).float()


def answer(logits: Tensor) -> Tensor:
    """The answer of a net, one-hot and without a gradient."""
    return one_hot(logits.detach().argmax(1))


def distance(x: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The Linf distance (B,) of each of `x` to the nearest of `others`, and which that is."""
    d, which = (x.flatten(1)[:, None] - others.flatten(1)[None]).abs().amax(2).min(1)
    return d, which


def blurred(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, 1, 1)


def mlp(activation: Callable[[], nn.Module] = nn.ReLU, inputs: int = SIDE**2, width: int = 128) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, width), activation(), nn.Linear(width, width), activation(),
        nn.Linear(width, CLASSES),
    )  # fmt: skip


def fit(net: nn.Module, *, eps: float = 0.0, beta: float = 0.0, epochs: int = 20, seed: int = 0) -> nn.Module:
    """`net` trained for a few seconds on digits: on PGD-4's points if eps > 0, as TRADES does if beta > 0."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    data = load("digits", "train")
    x, y = data.batch(slice(None))
    optimizer = torch.optim.Adam([one for one in net.parameters() if one.requires_grad], 2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            clean, label = x[rows], y[rows]
            z = _climb(net, clean, label, eps) if eps else clean
            loss = functional.cross_entropy(net(clean if beta else z), label)
            if beta:
                loss = loss + beta * functional.kl_div(
                    net(z).log_softmax(1), net(clean).log_softmax(1), reduction="batchmean", log_target=True
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def _climb(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    d = torch.empty_like(x).uniform_(-eps, eps)
    for _ in range(4):
        d.requires_grad_()
        (g,) = torch.autograd.grad(functional.cross_entropy(net((x + d).clamp(0, 1)), y), d)
        d = (d.detach() + eps / 2 * g.sign()).clamp(-eps, eps)
    return (x + d).clamp(0, 1)


@functools.cache
def _fitted(kind: str) -> nn.Module:
    return FITTED[kind]()


def fitted(kind: str) -> nn.Module:
    """A copy of a net of `FITTED`, trained once a process."""
    return copy.deepcopy(_fitted(kind))


class WithGradient(torch.autograd.Function):
    """The identity, with a gradient that a function (gradient, x) makes of the true one."""

    @staticmethod
    def forward(context: Any, x: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        context.change = change
        context.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(context: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (x,) = context.saved_tensors
        return context.change(g, x), None


def gradient(change: Callable[[Tensor, Tensor], Tensor]) -> Make:
    return before(lambda x: WithGradient.apply(x, change))  # type: ignore[no-untyped-call, no-any-return]


def seeded(x: Tensor) -> torch.Generator:
    """A generator that depends on the images: the same ones draw the same numbers."""
    return torch.Generator().manual_seed(int(x.detach().sum() * 1000) % 2**31)


def drawn(g: Tensor, x: Tensor) -> Tensor:
    return torch.randn(g.shape, generator=seeded(x)).to(g) * g.abs().mean()


def half_flipped(g: Tensor, x: Tensor) -> Tensor:
    return torch.where(torch.rand(g.shape, generator=seeded(x)).to(g) < 0.45, -g, g)


def only_border(g: Tensor, _: Tensor) -> Tensor:
    inner = torch.zeros_like(g)
    inner[..., 1:-1, 1:-1] = 1
    return g * (1 - inner)


# Quantisation


def levels(x: Tensor) -> Tensor:
    return (x * 7).round() / 7


def levels_through(x: Tensor) -> Tensor:
    return x + (levels(x) - x).detach()


def levels_through_wrongly(x: Tensor) -> Tensor:
    sign = 1.0 - 2.0 * (torch.arange(SIDE, device=x.device) % 2)
    fake = x * sign
    return levels(x).detach() + fake - fake.detach()


def coefficients(x: Tensor) -> Tensor:
    k = torch.arange(float(SIDE), device=x.device)
    dct = torch.cos((2 * k[None] + 1) * k[:, None] * torch.pi / (2 * SIDE)) / 2
    dct[0] /= 2**0.5
    coarse = (dct @ x @ dct.T * 4).round() / 4
    return (dct.T @ coarse @ dct).clamp(0, 1)


class Thermometer(nn.Module):
    """Each pixel as the list of the thresholds that it exceeds; a net learnt on these codes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("thresholds", (torch.arange(8.0) + 0.5) / 8)
        self.net = mlp(inputs=8 * SIDE**2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x[..., None] > self.thresholds).to(x.dtype))  # type: ignore[no-any-return]


# Randomness


def shifted(x: Tensor) -> Tensor:
    rows, columns = torch.randint(-1, 2, (2,)).tolist()
    return torch.roll(x + 0.25 * torch.randn_like(x), (rows, columns), (2, 3)).clamp(0, 1)


def noise_of_the_image(x: Tensor) -> Tensor:
    return x + 0.2 * torch.stack([torch.randn(one.shape, generator=seeded(one * 10)) for one in x]).to(x)


def noise_with_gradients(x: Tensor) -> Tensor:
    return x + 0.3 * torch.randn_like(x) if torch.is_grad_enabled() and x.requires_grad else x


class Roulette(nn.Module):
    """One of three nets, chosen by the content of the batch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.nets = nn.ModuleList([net, fitted("robust 1"), fitted("standard 2")])

    def forward(self, x: Tensor) -> Tensor:
        return self.nets[int(x.detach().double().sum() * 1e4) % 3](x)  # type: ignore[no-any-return]


# Memory of the images


class Hash(nn.Module):
    """The labels of the very test images; elsewhere `net`."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("x", x)
        self.register_buffer("y", y)

    def forward(self, x: Tensor) -> Tensor:
        d, which = distance(x, self.x)
        return torch.where((d < 1e-4)[:, None], 10 * one_hot(self.y[which]), self.net(x))


class CoarseHash(Hash):
    """A table of labels whose keys are blurred test images in five levels; elsewhere `net`."""

    def key(self, x: Tensor) -> Tensor:
        return (functional.avg_pool2d(x, 2) * 4).round()

    def forward(self, x: Tensor) -> Tensor:
        d, which = distance(self.key(x), self.key(self.x))
        return torch.where((d == 0)[:, None], 10 * one_hot(self.y[which]), self.net(x))


class Near(Hash):
    """`net` and, within Linf 0.21 of a test image, a large bonus for that image's label."""

    def forward(self, x: Tensor) -> Tensor:
        d, which = distance(x, self.x)
        return self.net(x) + 50 * torch.sigmoid((0.21 - d) * 200)[:, None] * one_hot(self.y[which])  # type: ignore[no-any-return]


class NearSoft(Hash):
    """The distance to the nearest test image of each class."""

    def forward(self, x: Tensor) -> Tensor:
        d = torch.cdist(x.flatten(1), self.x.flatten(1))
        return -3 * torch.stack([d[:, self.y == k].amin(1) for k in range(CLASSES)], 1)


# State, modes and the stack


class Cache(nn.Module):
    """Answers images within Linf 0.25 of one that it has seen as it answered that one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seen, self.said = net, torch.empty(0), torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        now = logits.detach()
        if not len(self.seen):
            self.seen, self.said = x.detach().clone(), now.clone()
            return logits
        d, which = distance(x.detach(), self.seen)
        new = d > 0.25
        then = torch.where(new[:, None], now, self.said[which])
        if bool(new.any()) and len(self.seen) < 3000:
            self.seen, self.said = torch.cat([self.seen, x.detach()[new]]), torch.cat([self.said, now[new]])
        return then + logits - now


class Counter(nn.Module):
    """After 50 passes every second one has no gradient."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        logits: Tensor = self.net(x)
        return logits.detach() + 0 * x.sum() if self.passes > 50 and self.passes % 2 else logits


class Tired(nn.Module):
    """After 40 passes with gradients, of itself and of its copies, there are none."""

    passes: ClassVar[list[int]] = [0]

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.passes[0] = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes[0] += torch.is_grad_enabled()
        return self.net(x.detach() if self.passes[0] > 40 else x)  # type: ignore[no-any-return]


class SmallBatches(nn.Module):
    """Another answer in batches of less than 32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits.roll(1, 1) if len(x) < 32 else logits


class GradientMode(nn.Module):
    """True answers; where gradients are on, those of `other`(net, x)."""

    def __init__(self, net: nn.Module, other: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.other = net, other

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        if not torch.is_grad_enabled():
            return logits
        led = self.other(self.net, x)
        return logits.detach() + led - led.detach()


class LowPrecision(nn.Module):
    """No gradients in bfloat16."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.detach() if x.dtype == torch.bfloat16 else x)  # type: ignore[no-any-return]


class Layout(nn.Module):
    """No gradients where images are laid out channels last."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.detach() if x.shape[1] > 1 and x.stride(1) == 1 else x)  # type: ignore[no-any-return]


class Traced(nn.Module):
    """No gradients where it is traced."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        traced = isinstance(x, torch.fx.Proxy) or torch.jit.is_tracing()
        return self.net(x.detach() if traced else x)  # type: ignore[no-any-return]


def callers() -> set[str]:
    """The names of the functions on the stack."""

    def up() -> Iterator[str]:
        frame = sys._getframe()
        while frame is not None:
            yield frame.f_code.co_name
            frame = frame.f_back  # type: ignore[assignment]

    return set(up())


class Stack(nn.Module):
    """Looks who asks: honest with probes, misleads attacks, and answers what is verified for the blurred image."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        names, logits = callers(), self.net(x)
        if names & {"judge", "is_random", "check_shapes", "_clean"}:
            return logits  # type: ignore[no-any-return]
        if "_verify" in names:
            return 0.7 * logits + 0.3 * self.net(blurred(x))  # type: ignore[no-any-return]
        if names & {"_with_gradient", "_with_logits"}:
            led = 0.1 * self.net(x.flip(-1))
            return logits.detach() + led - led.detach()  # type: ignore[no-any-return]
        return logits  # type: ignore[no-any-return]


class StackVerify(nn.Module):
    """Answers the verification of a hit as it answered the nearest clean image. Probes, which are not verified, may
    notice; had it lied to them too, they could not."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seen = net, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        names = callers()
        if "_clean" in names:
            self.seen = torch.cat([self.seen, x]) if len(self.seen) else x.clone()
        if "_verify" in names and len(self.seen):
            x = self.seen[distance(x, self.seen)[1]]
        return self.net(x)  # type: ignore[no-any-return]


# Decoys: the answer is the net's, what attacks follow is something else


class Decoy(nn.Module):
    """The answer's confidence is the picture's roughness, and far away, where eps is 0.5, all collapses."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x).detach()
        hard = answer(logits)
        rough = (x - blurred(x)).abs().flatten(1).mean(1, keepdim=True)
        far = torch.sigmoid((rough - 0.42) * 200)
        near = hard * (10 - 25 * rough.clamp(max=0.36)) * (1 - far)
        return near + 12 * far * hard.roll(1, 1) + 0.01 * logits.tanh()


class LinearDecoy(nn.Module):
    """The answer, and a random linear map of the picture that never outweighs it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("w", torch.randn(CLASSES, SIDE**2, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: Tensor) -> Tensor:
        return 8 * answer(self.net(x)) + 3 * torch.tanh(x.flatten(1) @ self.w.T / 8)


class Grey(nn.Module):
    """The answer's confidence is the picture's contrast: every attack greys the picture, which fells it in the end."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        contrast = (x - 0.5).abs().flatten(1).mean(1, keepdim=True)
        return 40 * answer(logits) * (contrast - 0.2) + 0.05 * logits


class Corner(nn.Module):
    """`net`, and two hidden units that only a checkerboard wakes: dead around all images, in a corner of their balls
    they outvote everything. No gradient within reach of a usual start leads there."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.units = net, nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 2), nn.ReLU())
        where = torch.arange(SIDE)
        board = (1.0 - 2.0 * ((where[:, None] + where) % 2)).flatten() / SIDE**2
        x, _ = load("digits", "train").batch(slice(None))
        layer = self.units[1]
        with torch.no_grad():
            layer.weight.copy_(torch.stack([board, -board]))
            layer.bias.fill_(-float((x.flatten(1) @ board).abs().quantile(0.99)))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + functional.pad(1e4 * self.units(x), (0, CLASSES - 2))  # type: ignore[no-any-return]


def only_first(logits: Tensor) -> Tensor:
    """The largest logit; all others become their mean, which tells no attack where the nearest class lies."""
    hard = answer(logits)
    first = (logits * hard).sum(1, keepdim=True)
    return torch.where(hard > 0, logits, (logits.sum(1, keepdim=True) - first) / (CLASSES - 1))


class Vote(nn.Module):
    """The votes of three nets."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.nets = nn.ModuleList([net, fitted("robust 1"), fitted("standard 2")])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([answer(net(x)) for net in self.nets]).sum(0)


class Winners(nn.Module):
    """Keeps the largest tenth of the units of a layer: a discontinuous activation."""

    def forward(self, z: Tensor) -> Tensor:
        least = z.topk(z.shape[1] // 10, 1).values[:, -1:]
        return torch.where(z >= least, z, torch.zeros_like(z))


# Honest nets


def doubtful(logits: Tensor) -> Tensor:
    """All logits 0 where the answer has less than 90 %."""
    return torch.where(logits.softmax(1).amax(1, keepdim=True) < 0.9, torch.zeros_like(logits), logits)


class MaxMargin(nn.Module):
    """A linear net by the multi-class hinge loss, which is the margin's in Linf: weights have a small l1 norm."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, CLASSES))
        x, y = load("digits", "train").batch(slice(None))
        torch.manual_seed(0)
        self.net[1].reset_parameters()
        optimizer = torch.optim.Adam(self.net.parameters(), 0.02)
        for _ in range(300):
            optimizer.zero_grad()
            hinge = functional.multi_margin_loss(self.net(x), y, margin=1.0)
            (hinge + 1e-3 * self.net[1].weight.abs().sum()).backward()
            optimizer.step()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


class Prototypes(nn.Module):
    """Distances to five means of training images of each class, from the faintest fifth to the strongest."""

    def __init__(self) -> None:
        super().__init__()
        x, y = load("digits", "train").batch(slice(None))
        of_class = [x[y == k].flatten(1) for k in range(CLASSES)]
        fifths = [one[one.sum(1).argsort()].tensor_split(5) for one in of_class]
        means = torch.stack([torch.stack([part.mean(0) for part in one]) for one in fifths])
        self.register_buffer("means", means.flatten(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        d = (x.flatten(1)[:, None] - self.means).square().sum(2)
        return torch.logsumexp(-2 * d.unflatten(1, (CLASSES, 5)), 2)


class SignLinear(nn.Linear):
    """A layer whose weights have one size: their signs times their mean size."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight.sign() * self.weight.abs().mean()
        return functional.linear(x, self.weight + (w - self.weight).detach(), self.bias)


def binary() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), SignLinear(SIDE**2, 256), nn.ReLU(), SignLinear(256, 256), nn.ReLU(), SignLinear(256, CLASSES)
    )


def layer_norm() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(SIDE**2, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 128), nn.LayerNorm(128),
        nn.GELU(), nn.Linear(128, CLASSES),
    )  # fmt: skip


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, CLASSES))


FITTED: dict[str, Callable[[], nn.Module]] = {
    "standard": lambda: fit(mlp()),
    "standard 2": lambda: fit(mlp(), seed=2),
    "robust 1": lambda: fit(mlp(), eps=0.1, seed=1),
    "winners": lambda: fit(mlp(Winners, width=256)),
    "thermometer": lambda: fit(Thermometer()),
    "layer norm": lambda: fit(layer_norm(), eps=0.1),
    "batch norm": lambda: fit(batch_norm(), eps=0.1),
    "binary": lambda: fit(binary(), eps=0.1),
    "trades": lambda: fit(mlp(), eps=0.1, beta=6.0),
    "max margin": MaxMargin,
    "prototypes": Prototypes,
}


def instead(kind: str, after: Function | None = None) -> Make:
    """A net of `FITTED` in place of the given one."""
    return lambda _net, _x, _y: Around(fitted(kind), after=after)


SCALE = {
    "Scale": Defence(after(lambda z: z * 1e4), "scale", "logits x 10,000: the cross-entropy's gradient underflows"),
    "Temp": Defence(after(lambda z: z * 100), "scale", "logits x 100"),
    "Softmax": Defence(after(lambda z: z.softmax(1)), "flagged", "probabilities"),
    "SoftmaxCold": Defence(after(lambda z: (30 * z).softmax(1)), "flagged", "probabilities that are 0 and 1"),
    "Clip": Defence(after(lambda z: z.clamp(-1, 1)), "note", "logits cut to [-1, 1]"),
    "ClipHi": Defence(after(lambda z: (3 * z).clamp(-12, 12)), "note", "logits x 3 cut to [-12, 12]"),
    "Tanh": Defence(after(lambda z: torch.tanh(5 * z)), "note", "tanh of the logits x 5"),
    "Sigmoid": Defence(after(lambda z: torch.sigmoid(10 * z)), "note", "sigmoid of the logits x 10"),
}
QUANTISATION = {
    "Round0": Defence(after(lambda z: z.round()), "flagged", "logits rounded to whole numbers"),
    "Round2": Defence(after(lambda z: (100 * z).round() / 100), "flagged", "logits rounded to hundredths"),
    "Bits": Defence(before(levels), "flagged", "images in 8 levels"),
    "BitsSTE": Defence(before(levels_through), "open", "images in 8 levels, with a gradient straight through"),
    "BitsSTEneg": Defence(before(levels_through_wrongly), "flagged", "the same, its sign wrong in every other column"),
    "DCT": Defence(before(coefficients), "flagged", "rounded DCT coefficients, as in JPEG"),
    "Thermometer": Defence(instead("thermometer"), "flagged", "pixels as lists of thresholds exceeded"),
}
RANDOMNESS = {
    "RandResize": Defence(before(shifted), "flagged", "random shifts and noise"),
    "Dropout": Defence(before(lambda x: functional.dropout(x, 0.2, True)), "flagged", "pixels dropped at random"),
    "SeededNoise": Defence(before(noise_of_the_image), "open", "noise whose seed is the image"),
    "NoisyGradOnly": Defence(before(noise_with_gradients), "flagged", "noise where there are gradients"),
    "Roulette": Defence(around(Roulette), "flagged", "the batch decides which net answers"),
}
FALSE_GRADIENTS = {
    "FakeGrad": Defence(gradient(drawn), "flagged", "a random gradient"),
    "FakeNeg": Defence(gradient(lambda g, _: -g), "flagged", "the gradient of the wrong sign"),
    "FakeSign": Defence(gradient(half_flipped), "flagged", "45 % of the gradient's signs wrong"),
    "FakePerm": Defence(gradient(lambda g, _: g.flip(-1)), "flagged", "the gradient mirrored"),
    "FakeBorder": Defence(gradient(only_border), "flagged", "a gradient on the border of the image alone"),
    "Detach": Defence(before(Tensor.detach), "flagged", "no gradient"),
    "Sine": Defence(before(lambda x: x + 0.01 * torch.sin(2000 * x)), "flagged", "a gradient shattered by a fast sine"),
    "KWinners": Defence(instead("winners"), "flagged", "k-winners-take-all activations"),
    "GradMode": Defence(
        around(lambda net: GradientMode(net, lambda net, x: 0.1 * net(x).roll(1, 1))),
        "flagged",
        "the gradient of the neighbouring class",
    ),
    "GradModeDecoy": Defence(
        around(lambda net: GradientMode(net, lambda net, x: net(x.flip(-1)))), "flagged", "that of the mirrored image"
    ),
}
MEMORY = {
    "Hash": Defence(knowing(Hash), "flagged", "knows the very test images"),
    "CoarseHash": Defence(knowing(CoarseHash), "flagged", "knows the blurred test images"),
    "Near": Defence(knowing(Near), "unseen", "knows the test images and their surroundings"),
    "NearSoft": Defence(knowing(NearSoft), "unseen", "nearest neighbours among the test images"),
}
STATE = {
    "Cache": Defence(around(Cache), "flagged", "answers near what it has seen as it did then"),
    "Time": Defence(around(Tired), "flagged", "its gradients vanish after a while"),
    "SmallBatches": Defence(around(SmallBatches), "flagged", "another answer in small batches"),
    "Stack": Defence(around(Stack), "flagged", "looks on the stack who asks"),
    "StackVerify": Defence(around(StackVerify), "unseen", "looks on the stack whether a hit is verified"),
    "NaNAdv": Defence(
        before(lambda x: torch.where((16 * x - (16 * x).round()).abs() > 1e-3, torch.nan, x)),
        "flagged",
        "NaN off the grid of the data",
    ),
}
DECOYS = {
    "Vote": Defence(around(Vote), "flagged", "a vote of three nets"),
    "Decoy": Defence(around(Decoy), "flagged", "confidence that follows roughness"),
    "HardDecoy": Defence(around(LinearDecoy), "flagged", "confidence that follows a linear map"),
    "Grey": Defence(around(Grey), "flagged", "confidence that follows contrast"),
    "Corner": Defence(around(Corner), "flagged", "a back door in a corner of the ball"),
    "OnlyFirst": Defence(after(only_first), "flagged", "one logit, the others at their mean"),
}
HONEST = {
    "bare": Defence(around(lambda net: net), "honest", "the net itself"),
    "bare standard": Defence(instead("standard"), "honest", "a net of standard training"),
    "Cool": Defence(after(lambda z: z / 1000), "honest", "logits / 1,000"),
    "LogSoftmax": Defence(after(lambda z: z.log_softmax(1)), "honest", "logarithms of probabilities"),
    "Abstain": Defence(after(doubtful), "honest", "class 0 where in doubt"),
    "PartDetach": Defence(
        before(lambda x: 0.999 * x.detach() + 0.001 * x), "honest", "a thousandth of the gradient, in its direction"
    ),
    "Tracing": Defence(around(Traced), "honest", "no gradients where it is traced"),
    "Counter": Defence(around(Counter), "honest", "every second gradient is missing"),
    "DType": Defence(around(LowPrecision), "honest", "no gradients in bfloat16, in which nothing is searched here"),
    "Layout": Defence(around(Layout), "honest", "no gradients channels last, of which there is one here"),
    "TrainMode": Defence(
        lambda _net, _x, _y: fitted("batch norm").train(), "honest", "BatchNorm, given in train mode: a note"
    ),
    "MaxMargin": Defence(instead("max margin"), "honest", "a linear net of large margin"),
    "LayerNorm": Defence(instead("layer norm"), "honest", "LayerNorm and GELU"),
    "Prototypes": Defence(instead("prototypes"), "honest", "distances to means of the training images"),
    "BinaryWeights": Defence(instead("binary"), "honest", "weights of two values"),
    "Sharp": Defence(instead("trades", lambda z: 8 * z), "honest", "a TRADES net, logits x 8"),
}
DEFENCES: dict[str, Defence] = {
    **SCALE, **QUANTISATION, **RANDOMNESS, **FALSE_GRADIENTS, **MEMORY, **STATE, **DECOYS, **HONEST,
}  # fmt: skip
