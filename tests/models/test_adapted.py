"""Networks as people have them: whatever stands around a network, its verdicts are those of the plain network."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advbench
from advbench.checkpoint import weights_sha256
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.search_copy import search_copy
from advbench.errors import UserError
from advbench.evaluator import Evaluation, bare
from advbench.evaluator.evaluate import check_shapes
from advbench.models.adapted import adapted
from advbench.models.untouched import untouched

Made = Callable[[nn.Module], nn.Module]
N, CLASSES = 24, 10


class Around(nn.Module):
    """`net`, with `before` its input and `after` its output."""

    def __init__(
        self,
        net: nn.Module,
        after: Callable[[Tensor], Any] = lambda z: z,
        before: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        self.net, self.after, self.before = net, after, before

    def forward(self, x: Tensor) -> Any:
        return self.after(self.net(self.before(x)))


class Output(NamedTuple):
    loss: Tensor
    logits: Tensor


def only(size: int) -> Callable[[Tensor], Tensor]:
    def check(x: Tensor) -> Tensor:
        if len(x) != size:
            raise RuntimeError(f"a batch must have {size} images, not {len(x)}")
        return x

    return check


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile()
    return net


def uncopyable(net: nn.Module) -> nn.Module:
    net.lock = threading.Lock()  # type: ignore[assignment]
    return net


def scripted(net: nn.Module, how: str = "script") -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        if how == "trace":
            return torch.jit.trace(net, torch.rand(4, 1, 8, 8))  # type: ignore[no-any-return, no-untyped-call]
        script = torch.jit.script(net)
        return torch.jit.freeze(script) if how == "freeze" else script  # type: ignore[no-any-return, no-untyped-call]


def exported(net: nn.Module) -> nn.Module:
    return torch.export.export(net, (torch.rand(4, 1, 8, 8),)).module()


# What is made of a plain network, and a word of the note that says how it is used ("": there is no note).
KINDS: dict[str, tuple[Made, str]] = {
    "a tuple": (lambda net: Around(net, lambda z: (z.mean(), z)), "element 1 of the tuple"),
    "a tuple with features": (lambda net: Around(net, lambda z: (z[:, :5], z)), "element 1 of the tuple"),
    "a list": (lambda net: Around(net, lambda z: [z]), "element 0 of the list"),
    "a dict": (lambda net: Around(net, lambda z: {"features": z, "logits": z}), "logits of the dict"),
    "a named tuple": (lambda net: Around(net, lambda z: Output(z[:, :2], z)), "logits of the Output"),
    "an object": (lambda net: Around(net, lambda z: SimpleNamespace(logits=z, loss=None)), "logits of the Simple"),
    "in place": (lambda net: Around(net, before=lambda x: x.mul_(2).div_(2)), "changes its input"),
    "one batch size": (lambda net: Around(net, before=only(13)), "batches of 13 only"),
    "no single image": (lambda net: Around(net, before=several), "given it twice"),
    "a squeezed answer": (lambda net: Around(net, torch.squeeze), "given it twice"),
    "float64": (lambda net: net.double(), "float64 images"),
    "float64, one batch size": (lambda net: Around(net.double(), before=only(5)), "batches of 5 only"),
    "casts itself": (lambda net: Around(net.double(), before=Tensor.double), ""),
    "checks the range": (lambda net: Around(net, before=within), ""),
    "TorchScript": (scripted, ""),
    "a trace": (lambda net: scripted(net, "trace"), ""),
    "frozen TorchScript": (lambda net: scripted(net, "freeze"), ""),
    "TorchScript inside": (lambda net: Around(scripted(net)), ""),
    "an exported program": (exported, "batches of 4 only"),
    "DataParallel": (nn.DataParallel, "DataParallel left out"),
    "DataParallel inside": (lambda net: Around(nn.DataParallel(net)), "DataParallel left out"),
    "compiled": (torch.compile, "torch.compile left out"),  # type: ignore[dict-item]
    "compiled in place": (compiled_in_place, "torch.compile left out"),
    "compiled inside": (lambda net: Around(torch.compile(net)), "torch.compile left out"),  # type: ignore[arg-type]
    "cannot be copied": (uncopyable, ""),
}  # fmt: skip


def within(x: Tensor) -> Tensor:
    if not 0 <= float(x.detach().min()) <= float(x.detach().max()) <= 1:
        raise ValueError("images must lie in [0, 1]")
    return x


def several(x: Tensor) -> Tensor:
    if len(x) == 1:
        raise ValueError("no single image")
    return x


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test")


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    """The weights of `plain`, after a short training."""
    x, y = load("digits", "train").batch(slice(0, 700))
    net = plain(None)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.state_dict()


def plain(weights: dict[str, Tensor] | None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, CLASSES)
        )
    if weights is not None:
        net.load_state_dict(weights)
    return net.eval() if weights is not None else net


def evaluated(net: nn.Module, data: Any, **how: Any) -> Evaluation:
    how = {"attack": ["fgsm", "pgd", "square"], "settings": {"n_queries": 40}, "n": N, "probes": False, **how}
    return advbench.evaluate(net, data, eps=["0", "0.05", "0.1"], **how)


@pytest.mark.parametrize("kind", KINDS)
def test_the_verdicts_are_those_of_the_plain_network(kind: str, digits: Dataset, trained: dict[str, Tensor]) -> None:
    make, text = KINDS[kind]
    net = make(plain(trained))
    found, wanted = evaluated(net, digits), evaluated(plain(trained), digits)
    assert found.record.clean == wanted.record.clean > 0.8
    assert len(set(wanted.fates.fell.tolist())) == 3  # some fall at each eps, and some stand
    assert np.mean(found.fates.fell == wanted.fates.fell) >= 0.95  # rounding may change a verdict on the brink
    notes = [flag.detail for flag in found.record.flags if flag.name == "model"]
    assert len(notes) >= bool(text) and text in " ".join(notes)


def test_one_logit_is_that_of_the_second_class(digits: Dataset, trained: dict[str, Tensor]) -> None:
    rows = (digits.labels < 2).nonzero()[:N, 0]
    pair = (digits.pixels(digits.images[rows]).mul(255).byte(), digits.labels[rows])
    found = {}
    for name, after in {
        "(B, 2)": lambda z: torch.stack([torch.zeros_like(z[:, 0]), z[:, 1] - z[:, 0]], 1),
        "(B, 1)": lambda z: z[:, 1:2] - z[:, :1],
        "(B,)": lambda z: z[:, 1] - z[:, 0],
        "in a tuple": lambda z: (z[:, 1:2] - z[:, :1], None),
    }.items():
        found[name] = evaluated(Around(plain(trained), after), pair)
    wanted = found.pop("(B, 2)")
    assert wanted.record.clean > 0.8
    for one in found.values():
        assert one.fates.fell.tolist() == wanted.fates.fell.tolist()
        assert any("logits [0, z] of two classes" in flag.detail for flag in one.record.flags)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: Around(net, lambda z: (z, 2 * z)), r"may be the logits \(0 \(2, 10\), 1 \(2, 10\)\): return"),
        (lambda net: Around(net, lambda z: None), r"does not return logits \(B, K\) for 1x8x8 images"),
        (lambda net: Around(net, lambda z: z[:, :, None]), r"does not return logits \(B, K\)"),
        (lambda net: Around(net, lambda z: z.argmax(1)), r"does not return logits \(B, K\)"),
        (lambda net: Around(net, lambda z: z[:, :9]), "the model has 9 classes, digits has 10"),
        (lambda net: Around(net, before=lambda x: x.expand(-1, 3, -1, -1)), "not take the 1x8x8 .* 3 channels"),
        (lambda net: Around(net, lambda z: {}["logits"]), "does not take the 1x8x8 images of digits: 'logits'"),
    ],
)  # fmt: skip
def test_what_no_adaptation_helps_is_refused_in_one_line(
    make: Made, message: str, digits: Dataset, trained: dict[str, Tensor]
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        evaluated(make(plain(trained)), digits)
    assert "\n" not in str(raised.value)


def test_a_refusal_takes_few_images(digits: Dataset) -> None:
    net, seen = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(400, CLASSES)), []
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    assert adapted(net, digits.batch(slice(0, 2))[0]) == (net, ())
    assert 0 < sum(seen) < 100


@pytest.mark.parametrize("kind", ["no single image", "a squeezed answer"])
@pytest.mark.parametrize(("n", "slots"), [(1, None), (5, 2), (5, 1)])
def test_a_network_without_an_answer_to_one_image_is_attacked_like_any_other(
    kind: str, n: int, slots: int | None, digits: Dataset, trained: dict[str, Tensor]
) -> None:
    how: dict[str, Any] = {"n": n, "slots": slots, "probes": True, "attack": ["pgd", "square"]}
    found, wanted = (evaluated(net, digits, **how) for net in (KINDS[kind][0](plain(trained)), plain(trained)))
    assert found.fates.fell.tolist() == wanted.fates.fell.tolist()


def test_a_network_that_needs_nothing_is_left_as_it_is(digits: Dataset, trained: dict[str, Tensor]) -> None:
    net = plain(trained)
    assert adapted(net, digits.batch(slice(0, 2))[0]) == (net, ())


def test_an_adapted_network_needs_nothing_more(digits: Dataset, trained: dict[str, Tensor]) -> None:
    x = digits.batch(slice(0, 2))[0]
    once, _ = adapted(Around(plain(trained).double(), lambda z: (z,)), x)
    assert adapted(once, x) == (once, ())


class Restless(nn.Module):
    """It counts its calls, in place and by new tensors, goes into train mode in each, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.linear = nn.BatchNorm2d(1), nn.Dropout(), nn.Linear(64, CLASSES)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("again", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.again = self.again + 1
        self.register_buffer("last", x.mean())
        self.train()
        return self.linear(self.drop(self.norm(x)).flatten(1))  # type: ignore[no-any-return]


def test_trials_and_attacks_leave_the_network_as_it_was(digits: Dataset) -> None:
    net = Restless().eval()
    before, state = {key: value.clone() for key, value in net.state_dict().items()}, torch.get_rng_state()
    for work in (lambda: adapted(net, digits.batch(slice(0, 2))[0]), lambda: evaluated(net, digits)):
        work()
        after = net.state_dict()
        assert list(after) == list(before) and all(torch.equal(value, before[key]) for key, value in after.items())
        assert not any(module.training for module in net.modules()) and torch.equal(torch.get_rng_state(), state)


def test_untouched_restores_buffers_after_an_error() -> None:
    net = Restless()
    with pytest.raises(KeyError), untouched(net):
        net(torch.rand(4, 1, 8, 8))
        raise KeyError
    assert (
        net.calls == net.again == 0 and "last" not in net.state_dict() and net.norm.running_mean == 0 and net.training
    )


def test_what_is_left_out_is_no_part_of_the_identity(digits: Dataset, trained: dict[str, Tensor]) -> None:
    wanted = bare(plain(trained), digits)
    for make in (nn.DataParallel, torch.compile, compiled_in_place, scripted, exported):
        assert bare(make(plain(trained)), digits).weights_sha256 == wanted.weights_sha256  # type: ignore[arg-type, operator]
    net = nn.Sequential(nn.DataParallel(plain(trained)))
    loaded = bare(net, digits)
    assert loaded.weights_sha256 == weights_sha256(nn.Sequential(plain(trained)))
    assert isinstance(net[0], nn.DataParallel)  # the user's own module is not changed


def test_frozen_torchscript_of_other_weights_is_another_model(trained: dict[str, Tensor]) -> None:
    other = {key: value * 2 for key, value in trained.items()}
    one, same, another = (weights_sha256(scripted(plain(w), "freeze")) for w in (trained, trained, other))
    assert one == same != another


def test_a_float64_network_is_not_searched_in_bf16(digits: Dataset, trained: dict[str, Tensor]) -> None:
    assert evaluated(plain(trained).double(), digits, precision="auto").record.engine.precision == "fp32"
    with pytest.raises(UserError, match=r"does not work in bf16 .* choose precision fp32"):
        evaluated(plain(trained).double(), digits, precision="bf16")


def test_a_bf16_network_keeps_its_precision(digits: Dataset, trained: dict[str, Tensor]) -> None:
    found = evaluated(Around(plain(trained).bfloat16()), digits)
    wanted = evaluated(Around(plain(trained).bfloat16(), before=Tensor.bfloat16), digits)
    assert found.record.clean == wanted.record.clean > 0.7
    assert np.mean(found.fates.fell == wanted.fates.fell) >= 0.8  # in bf16 many verdicts are on the brink
    assert any("bfloat16 images" in flag.detail for flag in found.record.flags)


def test_a_network_that_cannot_be_copied_is_searched_itself(digits: Dataset, trained: dict[str, Tensor]) -> None:
    net = uncopyable(plain(trained))
    copy, notes = search_copy(net, example=digits.batch(slice(0, 1))[0])
    assert copy.net is net and "cannot pickle" in copy.fault and len(notes) == 1
    assert [flag.severity for flag in evaluated(net, digits).record.flags if flag.name == "search-copy"] == ["note"]


class Numpy(nn.Module):
    """Its images leave PyTorch, so that they take no gradient."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(torch.from_numpy(x.numpy()))


def test_a_network_without_a_backward_pass(digits: Dataset, trained: dict[str, Tensor]) -> None:
    net = Numpy(plain(trained))
    with pytest.raises(UserError, match=r"no gradient for pgd .*numpy.* without gradients, such as attack square"):
        evaluated(net, digits, attack=["square", "pgd"])
    found, wanted = (evaluated(one, digits, attack="square") for one in (net, net.net))
    assert np.mean(found.fates.fell == wanted.fates.fell) >= 0.95


def test_labels_that_name_fewer_classes_than_the_model_has(digits: Dataset, trained: dict[str, Tensor]) -> None:
    some = digits.subset((digits.labels < 7).nonzero()[:N, 0])
    few = Dataset(some.images, some.labels, "own", "test", 7, some.indices, some.scale, num_classes_known=False)
    assert check_shapes(plain(trained), few).num_classes == CLASSES
    with pytest.raises(UserError, match="the model has 5 classes, own has at least 7"):
        check_shapes(Around(plain(trained), lambda z: z[:, :5]), few)
