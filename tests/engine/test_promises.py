"""What the engine promises for every attack: verdicts do not depend on order, shards or interruption; the model is not
changed; every counted hit is real."""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import proofs
import pytest
import torch
from linear_classifiers import prepared
from torch import nn

from advbench import rng
from advbench.attacks.transfer import SourceOracle
from advbench.engine import search
from advbench.engine.attack import Answer, Problem, Samples, members
from advbench.engine.losses import margin
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search
from advbench.engine.tensors import take
from advbench.errors import UserError
from advbench.models.quantize import Quantizer
from advbench.models.tasks import Jigsaw, Rotation, make_heads
from advbench.models.untouched import untouched
from advbench.registry import entries, find
from advbench.threat import around

EPS = {"linf": 0.06, "l2": 0.3, "l1": 1.0, "fourier-linf": 0.06}
COUNT, SLOTS = 12, 5


def attacks():
    pairs = []
    for name in entries("attacks"):
        made = proofs.made(name, "quick")
        if isinstance(made, tuple):
            continue
        if name == "multi-task":
            for attacked in ("relative", "wgd", "cyclic", "main", "jigsaw"):
                one = dataclasses.replace(made, attacked=attacked).for_model("linf", 4)
                pairs.append(pytest.param(one, "linf", id=f"{name}-{attacked}"))
        for norm in EPS:
            try:
                pairs.append(pytest.param(made.for_model(norm, 4), norm, id=f"{name}-{norm}"))
            except UserError:
                continue
    return pairs


class Small(nn.Module):
    """A convolution, a BatchNorm, dropout and a linear layer: buffers and modes that an attack could change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.drop, self.out = nn.Dropout(0.5), nn.Linear(4 * 36, 4)

    def forward(self, x):
        return self.out(self.drop(self.norm(self.conv(x)).relu()).flatten(1))

    def features(self, x):
        return self.drop(self.norm(self.conv(x)).relu()).flatten(1)

    def head(self, z):
        return self.out(z)

    def features_and_logits(self, x):
        return self(x), self(x)


@pytest.fixture(autouse=True, scope="module")
def _every_trial_pays() -> Iterator[None]:
    """So that searches become narrower with the few steps of these attacks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "TRIAL", 0)
        yield


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Small()
        made.train()
        for _ in range(3):
            made(torch.rand(64, 1, 6, 6))
        made.out.weight.data *= 4
    return made.eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(COUNT, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def make(net, x, attack, norm, rows=None, eps=None):
    rows = torch.arange(COUNT) if rows is None else rows
    oracle = Oracle(net, slots=SLOTS)
    logits = oracle.logits(x)
    size = torch.inf if attack.minimum_norm and eps is None else EPS[norm]
    samples = Samples(
        lambda some: x[rows[some]],
        logits.argmax(1)[rows],
        rows,
        torch.full((len(rows),), size, dtype=torch.float64),
        logits[rows],
    )
    heads = make_heads({"rotation": Rotation(), "jigsaw": Jigsaw()}, 4 * 36, (1, 6, 6), seed=0)
    ready = prepared(attack, net, 4, heads)
    widths = {"width_step": 2, "exact": True}
    return Search(ready, samples, ready.oracle(oracle, 3), norm=norm, seed=3, keep_points=True, **widths)


def outcome(search, rows):
    verdicts = search.run()
    fell = torch.zeros(COUNT, dtype=torch.bool)
    distance = torch.full((COUNT,), torch.inf, dtype=torch.float64)
    fell[rows], distance[rows] = verdicts.fell, verdicts.distance
    return fell, distance


def said_of(attack):
    """How a failure names an attack and its file."""
    return f"{attack.name} ({proofs.file_of(entries('attacks')[attack.name])})"


def check_alike(attack, when, expected, found):
    """(fell, distance) twice: the same verdicts, and for minimum-norm attacks the same distances."""
    for what, one, other in zip(("verdicts", "distances"), expected, found, strict=True):
        differ = 0 if what == "distances" and not attack.minimum_norm else int((one != other).sum())
        assert not differ, (
            f"{said_of(attack)}: {differ} of {COUNT} {what} differ {when}. What `start` and `step` give for a row may "
            "depend on that row of the problem, the state and the answer alone; random numbers must come from p.key by "
            "advbench/rng.py, and whatever lasts from step to step must be a field of the state"
        )


@pytest.mark.parametrize(("attack", "norm"), attacks())
def test_verdicts_do_not_depend_on_order_shards_or_interruption(net, x, attack, norm):
    all_rows = torch.arange(COUNT)
    expected = outcome(make(net, x, attack, norm), all_rows)

    shuffled = torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))
    check_alike(attack, "in another order", expected, outcome(make(net, x, attack, norm, shuffled), shuffled))

    (fell, distance), (others, farther) = (
        outcome(make(net, x, attack, norm, shard), shard) for shard in (all_rows[::2], all_rows[1::2])
    )
    check_alike(attack, "in two shards", expected, (fell | others, torch.minimum(distance, farther)))

    class Stop(Exception):
        pass

    rounds = 0

    def stop(search):
        nonlocal rounds
        rounds += 1
        if rounds == 5:
            raise Stop

    killed = make(net, x, attack, norm)
    with pytest.raises(Stop):
        killed.run(stop)
    file = io.BytesIO()
    torch.save(killed.snapshot(), file)
    resumed = make(net, x, attack, norm)
    resumed.restore(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    check_alike(attack, "after an interruption", expected, outcome(resumed, all_rows))


@pytest.mark.parametrize(("attack", "norm"), attacks())
def test_every_counted_point_is_inside_and_fools_the_model(net, x, attack, norm):
    search = make(net, x, attack, norm, eps=EPS[norm])
    verdicts = search.run()
    assert set(verdicts.points) == set(verdicts.fell.nonzero()[:, 0].tolist())
    rows = torch.tensor(sorted(verdicts.points), dtype=torch.int64)
    if not len(rows):
        return
    z = torch.stack([verdicts.points[row] for row in rows.tolist()])
    with torch.no_grad():
        logits, y = net(z), net(x[rows]).argmax(1, keepdim=True)
        rivals = logits.scatter(1, y, -torch.inf).amax(1, keepdim=True)
        # A point of a minimum-norm attack may lie where only rounding, another in another batch, decides.
        right = int((logits.gather(1, y) > rivals + 1e-5 * logits.abs().amax()).sum())
    assert not right, f"{said_of(attack)}: {right} counted points do not fool the model: look at Search"
    assert z.min() >= 0 and z.max() <= 1, f"{said_of(attack)}: counted points leave [0, 1]: look at Region.contains"
    d = (z.double() - x[rows].double()).flatten(1)
    if norm == "fourier-linf":
        f = np.fft.fft2((z.double() - x[rows].double()).numpy(), norm="ortho")
        size = torch.from_numpy(np.abs(f)).flatten(1).amax(1)
    else:
        size = d.norm(p={"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)
    # Linf bounds are computed in float32, so they may be off by half a unit in the last place.
    assert (size <= EPS[norm] * (1 + 1e-5) + 1e-6).all(), (
        f"{said_of(attack)}: a counted point has size {float(size.max()):.6g} in {norm}, above eps = {EPS[norm]:g}: "
        "look at Region.contains"
    )


@pytest.mark.parametrize(("attack", "norm"), attacks())
def test_no_row_depends_on_another(x, attack, norm):
    """`start` and `step` on some of the rows give the same as on all rows, up to rounding: tensors of other shapes may
    be computed by other kernels."""
    y = torch.arange(6) % 4
    target = (y + 1) % 4 if attack.target_classes(torch.zeros(1, 4), y[:1])[0, 0] >= 0 else torch.full_like(y, -1)
    eps = torch.linspace(0.5, 2, 6, dtype=torch.float64) * EPS[norm]
    first = torch.rand(6, 4, generator=torch.Generator().manual_seed(6))

    def problem(rows):
        key = rng.keys(0, attack.name, rows, target[rows])
        return Problem(around(norm, x[rows], eps[rows]), y[rows], target[rows], key, rows % 2, first[rows])

    all_rows, some = torch.arange(6), torch.tensor([4, 1])
    whole, part = problem(all_rows), problem(some)
    a, b = attack.start(whole), attack.start(part)
    draw = torch.Generator().manual_seed(5)
    for _ in range(min(attack.steps, 12)):
        same(attack, take(a, some), b)
        logits = torch.randn(6, 4, generator=draw)
        shape = (6, 4, 1, 6, 6) if attack.asks == "jacobian" else (6, 1, 6, 6)
        grad = torch.randn(shape, generator=draw)
        wrong = torch.rand(6, generator=draw) < 0.4
        value = logits if attack.asks == "jacobian" else margin(logits, y)
        a = attack.step(whole, a, Answer(logits, wrong, value, grad))
        b = attack.step(part, b, Answer(logits[some], wrong[some], value[some], grad[some]))
    same(attack, take(a, some), b)


def same(attack, one, other):
    """Equal rows of two states, up to rounding."""
    for f in dataclasses.fields(one):
        a, b = getattr(one, f.name), getattr(other, f.name)
        close = 1e-5 if a.is_floating_point() else 0
        advice = (
            f"{said_of(attack)}: rows of the state's {f.name} depend on the other rows of the batch (answer "
            f"{int(one.i[0])}): reduce over the dimensions of one row only, and draw noise from p.key"
        )
        torch.testing.assert_close(a, b, rtol=close, atol=close, msg=advice)


@pytest.mark.parametrize(("attack", "norm"), attacks())
def test_model_and_global_randomness_are_left_as_they_were(net, x, attack, norm):
    model = copy.deepcopy(net)
    model.train()
    model.norm.eval()  # a mixture of modes
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with untouched(model):
        assert not any(module.training for module in model.modules())
        make(model, x, attack, norm).run()
    rule = "an attack must not touch the model: what it needs of it comes in answers, `prepare` and `oracle`"
    changed = [key for key, value in model.state_dict().items() if not torch.equal(before[key], value)]
    assert not changed, f"{said_of(attack)}: changed {', '.join(changed)}: {rule}"
    assert [module.training for module in model.modules()] == modes, f"{said_of(attack)}: changed modes: {rule}"
    graded = [name for name, one in model.named_parameters() if one.grad is not None or not one.requires_grad]
    assert not graded, f"{said_of(attack)}: changed the gradients of {', '.join(graded)}: {rule}"
    assert torch.equal(torch.get_rng_state(), state), (
        f"{said_of(attack)}: drew from PyTorch's global random numbers: draw from p.key by advbench/rng.py"
    )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_hit_of_the_search_copy_alone_does_not_count(net, x, norm):
    """The search copy misclassifies everything, the model nothing: no sample falls, and refused hits are counted."""

    class Negated(nn.Module):
        def forward(self, z):
            return -net(z)

    oracle = Oracle(net, Negated(), slots=SLOTS)
    logits = oracle.logits(x)
    samples = Samples(
        lambda rows: x[rows],
        logits.argmax(1),
        torch.arange(COUNT),
        torch.full((COUNT,), 1e-6, dtype=torch.float64),
        logits,
    )
    for name in ("pgd", "apgd-t", "fab-t", "square"):
        attack = proofs.made(name, "quick").for_model(norm, 4)
        verdicts = Search(attack, samples, oracle, norm=norm, seed=0).run()
        assert not verdicts.fell.any()
        assert verdicts.unverified > 0


class Biased(nn.Module):
    """`net` with `by` added to the logit of class 1."""

    def __init__(self, net, by):
        super().__init__()
        self.net, self.by = net, by

    def forward(self, z):
        return self.net(z) + self.by * torch.tensor([0.0, 1.0, 0.0, 0.0])


def test_after_a_refusal_hits_must_exceed_what_the_copy_overstates(cases):
    """A search copy that overstates margins crosses its boundary before the model does.

    Its first hit is refused. Between the two boundaries no further hit is, and samples that the model misclassifies
    still fall.
    """
    case = cases["two-sided"](False)
    exact = case.distance("linf")
    own = (case.y == 0).nonzero()[:, 0]
    attack = find("attacks", "pgd").create(steps=60, rel_step=0.02, random_start=False)
    for factor, falls in ((1.1, True), (0.9, False)):
        search = case.search(attack, "linf", exact * factor, rows=own)
        search.oracle.search = Biased(case.net, 2.0)
        verdicts = search.run()
        assert verdicts.fell.tolist() == [falls] * len(own)
        assert verdicts.unverified == len(own)


def test_hits_are_verified_before_the_samples_other_items_run(cases):
    case = cases["several"](False)
    weak = np.arange(COUNT + 4) < 3
    attack = find("attacks", "apgd-t").create(steps=20, n_targets=3)
    found = {}
    for verify_at in (1, 8):
        search = case.search(attack, "linf", np.where(weak, 1.5, 0.1) * case.distance("linf"), slots=8)
        assert search.verify_at == 1
        search.verify_at = verify_at
        found[verify_at] = search.run().fell, search.oracle.forwards
    assert found[1][0].tolist() == found[8][0].tolist() == weak.tolist()
    assert found[1][1] < found[8][1]


def test_slots_change_no_verdict_of_a_deterministic_linear_model(cases):
    case = cases["several"](True)
    exact = case.distance("linf")
    for member in members(find("attacks", "autoattack").create()):
        quick = {key: value for key, value in proofs.settings(member.name, "quick").items() if key != "restarts"}
        made = dataclasses.replace(member, **quick)
        one, two = (case.strike(made, "linf", exact * 1.3, slots=slots).fell for slots in (3, 16))
        assert torch.equal(one, two)


def test_transfer_uses_gradients_of_the_source_and_verdicts_of_the_model(net, x):
    """With the model itself as source, the samples that fall are those of the white-box attack. A source without
    gradients fells fewer."""
    logits = Oracle(net, slots=SLOTS).logits(x)
    samples = Samples(
        lambda rows: x[rows], logits.argmax(1), torch.arange(COUNT), torch.full((COUNT,), 0.06).double(), logits
    )

    class Flat(nn.Module):
        def forward(self, z):
            return 0 * net(z) + torch.tensor([3.0, 2.0, 1.0, 0.0])

    attack = find("attacks", "transfer").create(source="-", steps=8).for_model("linf", 4)
    felled = {}
    for name, source in (("same", net), ("flat", Flat())):
        oracle = SourceOracle(net, source, slots=SLOTS)
        felled[name] = Search(attack, samples, oracle, norm="linf", seed=0).run().fell
    white = dataclasses.replace(find("attacks", "apgd-dlr").create(), name="transfer", steps=8).for_model("linf", 4)
    white_box = Search(white, samples, Oracle(net, slots=SLOTS), norm="linf", seed=0).run().fell
    assert torch.equal(felled["same"], white_box)
    assert felled["same"].sum() > felled["flat"].sum()


def test_transfer_is_judged_by_the_model_and_counts_the_passes_of_both(net, x):
    """The source has the model's logits negated, so it is wrong where the model is right."""

    class Negated(nn.Module):
        def forward(self, z):
            return -net(z)

    oracle = SourceOracle(net, Negated(), slots=SLOTS)
    some = x[:SLOTS]
    y = net(some).argmax(1)
    attack = find("attacks", "transfer").create(source="-", loss="cw").for_model("linf", 4)
    p = Problem(around("linf", some, torch.ones(SLOTS).double()), y, torch.full_like(y, -1), torch.arange(SLOTS))
    answer = oracle.answer(attack, p, some)
    assert (oracle.forwards, oracle.backwards) == (2 * SLOTS, SLOTS)
    assert not answer.wrong.any() and torch.allclose(answer.logits, net(some), atol=1e-6)
    assert torch.allclose(answer.value, margin(-net(some), y), atol=1e-6)
    twin = Oracle(Negated(), slots=SLOTS).answer(attack, p, some)
    assert torch.allclose(answer.gradient, twin.gradient, atol=1e-6) and bool(answer.gradient.any())


def test_straight_through_attacks_through_a_step_function(x):
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quantise, self.out = Quantizer(16), nn.Linear(36, 4)

        def forward(self, z):
            return self.out(self.quantise(z).flatten(1))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden = Steps().eval()
    logits = Oracle(hidden, slots=SLOTS).logits(x)
    samples = Samples(
        lambda rows: x[rows], logits.argmax(1), torch.arange(COUNT), torch.full((COUNT,), 0.1).double(), logits
    )
    fell = {}
    for through in (False, True):
        attack = find("attacks", "pgd").create(straight_through=through, random_start=False).for_model("linf", 4)
        fell[through] = int(Search(attack, samples, Oracle(hidden, slots=SLOTS), norm="linf", seed=0).run().fell.sum())
    assert fell[False] == 0 and fell[True] > 0
    assert hidden.quantise.straight_through is False


class Counting(nn.Module):
    """Its outputs grow by 1 with every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, z):
        self.calls += 1
        return z.flatten(1)[:, :4] + float(self.calls)

    def features_and_logits(self, z):
        logits = self(z)
        return 2 * logits, logits


def problem_of_two(x):
    return Problem(
        around("linf", x[:2], torch.ones(2).double()), torch.zeros(2).long(), -torch.ones(2).long(), torch.arange(2)
    )


def test_expectation_over_transformation_averages_passes(x):
    noisy = Counting()
    oracle = Oracle(noisy, slots=2)
    attack = find("attacks", "pgd").create(eot=5).for_model("linf", 4)
    answer = oracle.answer(attack, problem_of_two(x), x[:2])
    assert noisy.calls == 5 and oracle.forwards == 10
    assert torch.allclose(answer.logits, x[:2].flatten(1)[:, :4] + 3.0)  # the mean of 1 to 5


def test_expectation_over_transformation_averages_features(x):
    noisy = Counting()
    attack = prepared(find("attacks", "feature-pgd").create(eot=5).for_model("linf", 4), noisy, 4)
    oracle = attack.oracle(Oracle(noisy, slots=2), 0)
    p = dataclasses.replace(problem_of_two(x), reference=torch.zeros(2, 4))
    answer = oracle.answer(attack, p, x[:2])
    assert noisy.calls == 5 and oracle.forwards == 10
    logits = x[:2].flatten(1)[:, :4] + 3.0
    assert torch.allclose(answer.logits, logits)
    assert torch.allclose(answer.value, -(2 * logits).square().sum(1))


def test_each_logits_gradient_counts_as_a_backward_pass(x):
    oracle = Oracle(Counting(), slots=2)
    answer = oracle.answer(find("attacks", "fab").create().for_model("linf", 4), problem_of_two(x), x[:2])
    assert (oracle.forwards, oracle.backwards) == (2, 8)
    assert torch.equal(answer.gradient.flatten(2)[:, :, :4], torch.eye(4).expand(2, 4, 4))


def test_a_random_model_is_judged_by_the_mean_of_20_passes(x):
    noisy = Counting()
    oracle = Oracle(noisy, slots=2, random=True)
    assert torch.allclose(oracle.logits(x[:2]), x[:2].flatten(1)[:, :4] + 10.5)  # the mean of 1 to 20
    assert noisy.calls == 20 and oracle.forwards == 40


def test_gradients_that_are_not_finite_are_no_direction(x):
    class Rooted(nn.Module):
        """The root of 0 has no finite gradient."""

        def forward(self, z):
            return (z * torch.tensor([0.0, 1.0])[: len(z), None, None, None]).flatten(1)[:, :4].sqrt()

    attack = find("attacks", "pgd").create(loss="cw").for_model("linf", 4)
    gradient = Oracle(Rooted(), slots=2).answer(attack, problem_of_two(x), x[:2]).gradient
    assert torch.equal(gradient[0], torch.zeros_like(gradient[0])) and gradient[1].isfinite().all()
    assert gradient[1].any()
