"""Attacks of other libraries fell what a plain loop of the same steps fells, and what they are is in the record."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import peer_stand_ins as peers
import pytest
import torch
from torch import Tensor, nn

import advbench
from advbench.attacks.external import relative
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.whole_batch import counting
from advbench.errors import UserError
from advbench.evaluator import Evaluation, Settings, evaluate
from advbench.leaderboard.protocol import protocol

EPS = ["0", "0.05", "0.1", "0.2"]


class Means(nn.Module):
    """The nearest of the classes' mean images."""

    def __init__(self) -> None:
        super().__init__()
        train = load("digits", "train")
        x, y = train.batch(slice(None))
        means = torch.stack([x[y == k].flatten(1).mean(0) for k in range(10)])
        self.linear = nn.Linear(64, 10)
        self.linear.weight.data, self.linear.bias.data = 10 * means, -5 * means.square().sum(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return Means().eval()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(60))


@pytest.fixture
def stand_ins() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        peers.install(patch)
        yield


def measured(net: nn.Module, digits: Dataset, attack: Any, **how: Any) -> Evaluation:
    return evaluate(net, digits, Settings(attack=attack, eps=EPS, **how))


def robust(found: Evaluation) -> list[int]:
    return [point.robust for point in found.record.curve]


def function(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return peers.loop(model, x, y, eps)


def torchattacks(model: nn.Module, eps: float) -> Any:
    return peers.PGD(model, eps, eps / 4)


def torchattacks_by_keyword(model: nn.Module, eps: float = 1.0) -> Any:
    return peers.PGD(model, eps=eps, alpha=eps / 4)


def foolbox(model: nn.Module) -> Any:
    return peers.LinfPGD()


def art(model: nn.Module) -> Any:
    estimator = peers.PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0))
    return peers.ProjectedGradientDescent(estimator)


def with_its_estimator(model: nn.Module) -> Any:
    """As ART's AutoAttack: an estimator is one of its parameters."""
    made = art(model)
    made.attack_params = [*made.attack_params, "estimator"]
    return made


def adv_lib(model: nn.Module, eps: float) -> Any:
    return partial(peers.pgd_linf, ε=eps)


def bound_to_a_batch(model: nn.Module, eps: float) -> Any:
    return lambda x, y: peers.loop(model, x, y, eps)


MADE = [torchattacks, torchattacks_by_keyword, foolbox, art, adv_lib, bound_to_a_batch]


@pytest.mark.parametrize("attack", [*MADE, peers.Pair, peers.LinfPGD(), peers.pgd_linf, peers.ProjectedGradientDescent])
def test_each_fells_what_a_plain_loop_fells(stand_ins: None, net: nn.Module, digits: Dataset, attack: Any) -> None:
    plain, found = measured(net, digits, function), measured(net, digits, attack)
    if attack is peers.Pair:  # which is that loop, and one large step before it
        assert all(a <= b for a, b in zip(robust(found), robust(plain), strict=True))
    else:
        assert found.fates.fell.tolist() == plain.fates.fell.tolist()
    assert robust(plain)[0] > robust(plain)[1] > robust(plain)[-1]
    notes = {flag.name for flag in found.record.flags}
    assert not {"not-repeatable", "outside-ball"} & notes
    assert found.record.backwards and found.record.forwards > found.record.backwards


def test_passes_are_those_that_the_model_made(net: nn.Module, digits: Dataset) -> None:
    found = evaluate(net, digits, Settings(attack=function, eps=["0.1"])).record
    struck = int(found.clean * found.n)
    assert found.backwards == peers.STEPS * struck
    verified = found.forwards - peers.STEPS * struck  # in passes of as many rows as there are slots
    assert verified % found.engine.slots == 0 and verified >= struck


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_passes_that_cannot_be_counted_are_not_known(net: nn.Module, digits: Dataset) -> None:
    def by_sample(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        def loss(one: Tensor, label: Tensor) -> Tensor:
            return nn.functional.cross_entropy(model(one[None]), label[None])

        return (x + eps * torch.func.vmap(torch.func.grad(loss))(x, y).sign()).clamp(0, 1)

    def by_parts(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return peers.loop(lambda z: model.linear(z.flatten(1)), x, y, eps)

    for attack in (by_sample, by_parts):
        found = measured(net, digits, attack)
        assert robust(found)[-1] < robust(found)[0]
        assert (found.record.forwards, found.record.backwards) == (None, None)
    scripted = torch.jit.trace(net, digits.batch(slice(0, 2))[0])
    with counting(scripted) as passes:
        function(scripted, *digits.batch(slice(0, 2)), 0.1)
    assert not passes.known


def test_gradients_are_judged_only_where_the_attack_made_backward_passes(digits: Dataset) -> None:
    class Rounded(Means):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((8 * x).round() / 8)

    def noise(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        z = (x + eps * torch.randn_like(x).sign()).clamp(0, 1)
        return torch.where((model(z).argmax(1) != y).view(-1, 1, 1, 1), z, x)

    net = Rounded().eval()
    of_queries, of_gradients = ({f.name for f in measured(net, digits, one).record.flags} for one in (noise, function))
    assert "zero-gradient" in of_gradients - of_queries


def test_objects_are_bound_anew(stand_ins: None, net: nn.Module, digits: Dataset) -> None:
    before = copy.deepcopy(net.state_dict())
    plain, bound = measured(net, digits, function), peers.Pair(net, 0.01)
    assert measured(net, digits, art(net)).fates.fell.tolist() == plain.fates.fell.tolist()
    fgsm = robust(measured(net, digits, "fgsm"))
    assert all(a <= b for a, b in zip(robust(measured(net, digits, bound)), fgsm, strict=True))
    assert bound.model is net and (bound.eps, bound._members[0].eps) == (0.01, 0.01)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(UserError, match=r"is bound to another model: give a function \(model\) -> attack"):
        measured(net, digits, peers.PGD(Means()))


def test_the_record_says_what_it_was(stand_ins: None, net: nn.Module, digits: Dataset) -> None:
    (made,) = measured(net, digits, torchattacks).record.attack
    of = {"library": "torchattacks", "class": "PGD", "steps": 5, "rel_alpha": 0.25}
    assert made.settings.items() >= of.items() and "eps" not in made.settings and made.settings["library_version"]
    assert len(str(made.settings["code_sha256"])) == 64
    (bound,) = measured(net, digits, peers.PGD(net, alpha=0.02)).record.attack
    assert bound.settings["alpha"] == 0.02
    (scaled,) = measured(net, digits, art).record.attack
    assert scaled.settings["rel_eps_step"] == 0.25 and scaled.settings["norm"] == "inf"
    (nearest,) = measured(net, digits, partial(peers.nearest, grid=4)).record.attack
    assert nearest.settings["grid"] == 4 and nearest.settings["class"] == "nearest"
    (of_two,) = measured(net, digits, with_its_estimator).record.attack
    assert of_two.settings["estimator"] == {"class": "PyTorchClassifier"}


def test_boards_keep_them_apart(stand_ins: None, net: nn.Module, digits: Dataset) -> None:
    attacks: list[Any] = ["fgsm", function, torchattacks, foolbox, partial(peers.pgd_linf, steps=4), peers.pgd_linf]
    found = [protocol(measured(net, digits, one).record) for one in attacks]
    assert len({one.key for one in found}) == len(found)
    assert max(found, key=lambda one: one.strength) is found[0]


class Holder:
    """An attack that keeps the network under a name of its own."""

    def __init__(self, net: nn.Module, eps: float, steps: int) -> None:
        self.net, self.logits, self.steps = net, net.forward, steps
        self.eps = eps

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return peers.loop(self.net, x, y, self.eps)


def test_all_models_are_attacked_alike(net: nn.Module, digits: Dataset) -> None:
    other = nn.Sequential(nn.Flatten(), copy.deepcopy(net.linear))  # type: ignore[arg-type]
    one, two = (measured(each, digits, lambda model, eps: Holder(model, eps, 3)).record for each in (net, other))
    assert one.attack == two.attack and one.attack[0].settings["steps"] == 3
    assert protocol(one).key == protocol(two).key


def steps_of(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, steps: int = 4) -> Tensor:
    return x


class Steps:
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return x

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return x


def maker(model: nn.Module, *, steps: int) -> Any:
    return lambda x, y: x


@pytest.mark.parametrize(
    "made",
    [lambda n: partial(steps_of, steps=n), Steps, lambda n: Steps(n).attack, lambda n: partial(maker, steps=n)],
)
def test_what_a_partial_function_or_an_object_holds_is_another_question(
    net: nn.Module, digits: Dataset, made: Any
) -> None:
    one, two = (measured(net, digits, made(number), probes=False).record for number in (3, 30))
    assert (one.attack[0].settings["steps"], two.attack[0].settings["steps"]) == (3, 30)
    assert one.question != two.question and protocol(one).key != protocol(two).key


@pytest.mark.parametrize("attack", [peers.Nearest, peers.nearest])
def test_points_far_away_are_no_fault_of_an_attack_without_eps(
    stand_ins: None, net: nn.Module, digits: Dataset, attack: Any
) -> None:
    found = measured(net, digits, attack)
    assert robust(found)[-1] < robust(found)[0]
    assert "outside-ball" not in {flag.name for flag in found.record.flags}


class Strict(Means):
    """It refuses what is no image."""

    def forward(self, x: Tensor) -> Tensor:
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise ValueError("not in [0, 1]")
        return super().forward(x)


@pytest.mark.parametrize("points", [lambda x: x + 10, lambda x: x * torch.nan])
def test_points_outside_of_the_ball_are_not_put_to_the_model(
    digits: Dataset, points: Callable[[Tensor], Tensor]
) -> None:
    found = measured(Strict(), digits, lambda model, x, y, eps: points(x), probes=False)
    flag = next(flag for flag in found.record.flags if flag.name == "outside-ball")
    assert len(set(robust(found))) == 1 and flag.k == flag.n


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (peers.L2PGD, "is an attack in l2, not linf: choose --norm l2"),
        (lambda model: model, "made a Means: an attack derives from"),
        (lambda model: 1 / 0, "failed: ZeroDivisionError"),
        (lambda model: peers.PGD(nn.Identity())(torch.zeros(1, 1), 0), "failed: "),
        (3, "a int is no attack: an attack derives from"),
        (int, "the class int is no attack"),
    ],
)
def test_what_is_no_attack_is_one_line(
    stand_ins: None, net: nn.Module, digits: Dataset, attack: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        measured(net, digits, attack)
    assert "\n" not in str(raised.value)


def test_normalisation_in_the_attack_is_refused(stand_ins: None, net: nn.Module, digits: Dataset) -> None:
    made = peers.PGD(net)
    made.normalization_used = {"mean": 0.5}
    with pytest.raises(UserError, match="leave set_normalization_used away"):
        measured(net, digits, made)


def test_a_note_says_which_do_not_repeat(net: nn.Module, digits: Dataset) -> None:
    own, calls = torch.Generator().manual_seed(0), []

    def seeded(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return (x + eps * torch.randn_like(x).sign()).clamp(0, 1)

    def unseeded(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        calls.append(len(x))
        return torch.where(torch.rand(len(x), 1, 1, 1, generator=own) < 0.5, function(model, x, y, eps), x)

    def notes(attack: Any, **how: Any) -> list[Any]:
        flags = measured(net, digits, attack, slots=64, **how).record.flags
        return [flag for flag in flags if flag.name == "not-repeatable"]

    assert notes(seeded) == []
    (note,) = notes(unseeded)
    assert note.severity == "note" and 0 < note.k <= note.n and note.eps in (0.05, 0.1, 0.2)
    assert len(calls) == len(EPS)  # a batch for each eps above 0, and one more
    (note,) = notes(seeded, probes=False)
    assert "it was not repeated" in note.detail


def test_points_beside_the_ball_by_rounding_count(net: nn.Module, digits: Dataset) -> None:
    def in_float64(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        towards = (function(model, x, y, eps) - x).double()
        return (x.double() + towards.sign() * (eps + 1e-7)).clamp(0, 1)

    def in_float32(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return (x + (function(model, x, y, eps) - x).sign() * eps).clamp(0, 1)

    far, near = measured(net, digits, in_float64), measured(net, digits, in_float32)
    assert robust(far) == robust(near) and robust(near)[-1] < robust(near)[0]


def test_settings_that_follow_eps_are_written_relative_to_it() -> None:
    low: Any = {"eps": 0.1, "alpha": 0.025, "steps": 5, "parts": [{"eps": 0.1, "decay": 0.1}], "other": 0.01}
    high: Any = {"eps": 0.2, "alpha": 0.05, "steps": 5, "parts": [{"eps": 0.2, "decay": 0.1}], "other": 0.04}
    assert relative(low, high) == {"rel_alpha": 0.25, "steps": 5, "parts": [{"decay": 0.1}]}


def real(library: str) -> Any:
    """PGD of the library itself, with the steps of the plain loop."""
    if library == "torchattacks":
        module = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
        return lambda model, eps: module.PGD(model, eps, eps / 4, peers.STEPS, random_start=False)
    if library == "foolbox":
        module = pytest.importorskip("foolbox", reason="Foolbox is not installed")
        return module.attacks.LinfPGD(rel_stepsize=0.25, steps=peers.STEPS, random_start=False)
    if library == "art":
        module = pytest.importorskip("art.attacks.evasion", reason="ART is not installed")
        classifier = pytest.importorskip("art.estimators.classification").PyTorchClassifier

        def made(model: nn.Module) -> Any:
            estimator = classifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0))
            return module.ProjectedGradientDescent(estimator, eps=0.4, eps_step=0.1, max_iter=peers.STEPS)

        return made
    module = pytest.importorskip("adv_lib.attacks", reason="adversarial-library is not installed")
    # Its last step is not tried, so it has one more.
    return partial(module.pgd_linf, steps=peers.STEPS + 1, random_init=False, relative_step_size=0.25)


@pytest.mark.parametrize("library", ["torchattacks", "foolbox", "art", "adv_lib"])
@pytest.mark.filterwarnings("default")
def test_the_libraries_themselves(net: nn.Module, digits: Dataset, library: str) -> None:
    found = advbench.evaluate(net, digits, attack=real(library), eps=EPS)
    plain = measured(net, digits, function)
    assert all(abs(a - b) <= 1 for a, b in zip(robust(found), robust(plain), strict=True))
    assert not {"not-repeatable", "outside-ball"} & {flag.name for flag in found.record.flags}
    (made,) = found.record.attack
    assert made.settings["library"] == library and json.dumps(made.settings)
