"""The set quick goes on to AutoAttack by itself where it may be too weak, and only there."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advbench.attacks.base import make
from advbench.cli import run
from advbench.cli.again import asked
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.errors import Interrupted, UserError
from advbench.evaluator import Evaluation, Journal, Settings, evaluate
from advbench.evaluator.escalation import LATER, SENTINEL, why_escalate
from advbench.evaluator.evaluate import planned
from advbench.evaluator.forecast import Forecast
from advbench.evaluator.parallel import processes
from advbench.record import Fates, Flag, load_record, load_records

pytestmark = pytest.mark.usefixtures("started_by_fork")

N = 30
EPS = ["0", "0.05", "0.1", "0.2"]
SHORT = {"steps": 4, "restarts": 2}
SMALL, SMALL_OWN, STRONG = "quick_nets:small", ["pgd", "square"], ["apgd-ce", "square"]
OWN, AUTOATTACK = ["odi-margin", "multi-targeted", "square"], ["apgd-ce", "apgd-t", "fab-t", "square"]
NETS = """
import torch
from torch import nn
from advbench.attacks.apgd import APGD
from advbench.attacks.ddn import DDN
from advbench.attacks.function import Function
from advbench.attacks.pgd import PGD
from advbench.attacks.square import Square
from advbench.data import load

ENTRIES = {
    "small": {"make": "small", "escalates": "quick_nets:strong"},
    "strong": {"make": "strong"},
    "near": {"make": "near", "escalates": "quick_nets:strong"},
    "nearer": {"make": "near", "escalates": "quick_nets:nearest"},
    "nearest": {"make": "nearest"},
    "blind": {"make": "blind", "escalates": "quick_nets:strong"},
    "to-mine": {"make": "small", "escalates": "quick_nets:mine"},
    "from-mine": {"make": "from_mine", "escalates": "quick_nets:strong"},
}

def small():
    return PGD(name="pgd", steps=3), Square(name="square", n_queries=10)

def near():
    return (DDN(name="ddn", steps=1),)

def nearest():
    return (DDN(name="ddn-long", steps=20),)

def strong():
    return APGD(name="apgd-ce", steps=6), Square(name="square", n_queries=300)

def blind():
    return Square(name="square", n_queries=10)

def mine(model, x, y, eps):
    return x + 2 * eps

def from_mine():
    return Function(name="mine", function=mine)

class Backwardless(nn.Module):
    def forward(self, x):
        return Hidden.apply(x.flatten(1)[:, :10])

class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("no way back")

class Nearest(nn.Module):
    "The nearest class mean, a linear model, of which bf16 or all precisions see no gradient."

    def __init__(self, masked, in_bf16=False):
        super().__init__()
        x, y = load("digits", "train").batch(slice(0, 800))
        means = torch.stack([x[y == k].flatten(1).mean(0) for k in range(10)])
        self.linear, self.masked, self.in_bf16 = nn.Linear(64, 10), masked, in_bf16
        self.linear.weight.data, self.linear.bias.data = 20 * means, -10 * (means**2).sum(1)

    def forward(self, x):
        hidden = self.masked or (self.in_bf16 and x.dtype is torch.bfloat16)
        return self.linear((x.detach() if hidden else x).flatten(1))

def honest():
    return Nearest(False).eval()

def masked():
    return Nearest(True).eval()

class Noisy(Nearest):
    "In bf16 half of the gradients point backwards."

    def forward(self, x):
        logits = super().forward(x)
        turned = (torch.rand(len(x), 1) < 0.5) & (x.dtype is torch.bfloat16)
        return torch.where(turned, 2 * logits.detach() - logits, logits) * (1 + torch.randn(len(x), 1) / 1000)

def noisy():
    return Noisy(False).eval()

def masked_in_bf16():
    return Nearest(False, True).eval()
"""


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(N))


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "quick_nets.py").write_text(NETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("quick_nets")
        sys.modules.pop("quick_nets", None)


def measured(
    net: Any, data: Dataset, *, journal: Journal | None = None, resume: bool = False, **more: Any
) -> Evaluation:
    given: dict[str, Any] = {"attack": SMALL, "eps": EPS, "slots": 16, "processes": 1}
    return evaluate(net, data, Settings(**{**given, **more}), journal=journal, resume=resume)


def why(result: Evaluation) -> str | None:
    """What the record says of an escalation, None if there was none."""
    return next((flag.detail for flag in result.record.flags if flag.name == "escalated"), None)


def test_the_set_is_cheap_gradients_and_square_with_early_stopping() -> None:
    odi, apgd, square = (one for one in make("quick", "linf"))
    assert [one.name for one in (odi, apgd, square)] == OWN
    assert (apgd.loss, apgd.settings()["targets"], apgd.items(10)) == ("cw", "malt", 3)
    assert odi.items(10) == 10 and square.settings() == make("square", "linf")[0].settings() | {"early_stop": 0.1}
    assert sum(odi.passes(10)) + sum(apgd.passes(10)) == 1170  # what Square makes depends on the net


def test_an_honest_net_meets_three_attacks(nets: Any, digits: Dataset) -> None:
    result, whole = (
        measured(nets.honest(), digits, attack=name, attack_settings=SHORT | {"n_queries": 50})
        for name in ("quick", "autoattack")
    )
    record = result.record
    assert why(result) is None and (result.fates.by < 3).all()
    assert result.fates.fell.tolist() == whole.fates.fell.tolist()  # of a linear model all find the same
    assert [ref.name for ref in record.attack] == OWN + AUTOATTACK
    assert [ref.escalation for ref in record.attack] == [False] * 3 + [True] * 4
    assert record.attack_name == "quick" and all(ref.settings["set"] == "quick" for ref in record.attack)
    assert record.passes_an_image < whole.record.passes_an_image  # type: ignore[operator]


@pytest.fixture(scope="module")
def escalated(nets: Any, digits: Dataset) -> Evaluation:
    return measured(nets.masked(), digits)


@pytest.mark.parametrize("curve", ["fast", "exact"])
def test_a_masked_net_meets_the_strong_attacks_too(
    nets: Any, digits: Dataset, curve: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(nets.masked(), digits, attack="quick_nets:strong", curve=curve)
    result = measured(nets.masked(), digits, curve=curve)
    monkeypatch.setattr(sys.modules[planned.__module__], "why_escalate", lambda *_: [])
    alone = measured(nets.masked(), digits, curve=curve)
    detail = why(result)
    assert why(alone) is None and detail is not None
    assert "went on to apgd-ce+square: " in detail and "zero-gradient is broken" in detail
    heights = [np.where(one.fates.fell < 0, len(EPS), one.fates.fell) for one in (result, whole, alone)]
    assert (heights[0] == np.minimum(heights[1], heights[2])).all()
    assert (heights[0] < heights[2]).sum() > 3 and (result.fates.by == 3).any()
    assert result.record.question == alone.record.question and result.record.id != alone.record.id


@pytest.mark.parametrize("name", ["near", "nearer"])
def test_a_set_that_searches_for_the_nearest_examples_goes_on_too(
    nets: Any, digits: Dataset, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"attack": f"quick_nets:{name}", "norm": "l2", "eps": ["0", "0.3", "0.6", "1"]}
    monkeypatch.setattr(
        sys.modules[planned.__module__], "why_escalate", lambda run, *_: ["asked"] * (not run.escalated)
    )
    result = measured(nets.honest(), digits, **given)
    assert why(result) is not None and (result.fates.by == 1).sum() > 3
    assert (result.fates.norm is None) is (name == "near")  # the strong set searches at each eps


def test_any_flag_that_doubts_and_late_hits_escalate(nets: Any, digits: Dataset) -> None:
    plan, _ = planned(nets.honest(), digits, Settings(attack="quick", eps=EPS))
    eps, n = [0.0, 0.1], 1000

    def reasons(later: float = 0, sentinel: float = 0, flags: tuple[Flag, ...] = ()) -> list[str]:
        by = np.full(n, -1)
        by[: round(later * n)], by[n - round(sentinel * n) :] = 1, 2
        return why_escalate(plan, Fates(np.where(by < 0, -1, 1), by), flags, eps)

    assert reasons() == reasons(LATER, SENTINEL) == []
    assert reasons(LATER + 0.001) == ["multi-targeted still felled 0.6% of the images at eps 0.1"]
    assert reasons(sentinel=SENTINEL + 0.001) == ["square still felled 2.1% of the images at eps 0.1"]
    assert reasons(flags=(Flag(name="random", severity="suspect"),)) == ["random is suspect"]
    assert reasons(flags=(Flag(name="small-n", severity="note"),)) == []
    assert why_escalate(plan.whole(), Fates(np.ones(n, int), np.ones(n, int)), (), eps) == []


def stopping(path: Path, second: bool) -> Journal:
    """A journal that stops after five rounds of the first or the second stage."""
    left = iter(range(5))
    journal = Journal(path, stop=lambda: bool(journal.why) == second and next(left, None) is None)
    return journal


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_stopped_in_either_stage_it_resumes_to_the_same(
    nets: Any, digits: Dataset, escalated: Evaluation, processes: int, tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    for number, second in enumerate([False, True, True]):  # stopped in the first stage, and twice in the second
        with pytest.raises(Interrupted):
            measured(nets.masked(), digits, journal=stopping(path, second), resume=number > 0, processes=processes)
    journal = Journal(path)
    result = measured(nets.masked(), digits, journal=journal, resume=True, processes=processes)
    assert result.record.id == escalated.record.id
    assert [flag.name for flag in result.record.flags] == [flag.name for flag in escalated.record.flags]
    journal.finish()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_escalate_together(nets: Any, digits: Dataset, escalated: Evaluation) -> None:
    one = measured(nets.masked(), digits, keep_points=True)
    two = measured(nets.masked(), digits, keep_points=True, processes=2)
    assert one.record.id == two.record.id == escalated.record.id and why(two) == why(one)
    assert one.points.keys() == two.points.keys() and one.attempts.keys() == two.attempts.keys()  # type: ignore[union-attr]
    assert two.record.forwards >= one.record.forwards > 0  # type: ignore[operator]


@pytest.mark.slow
def test_where_workers_do_not_start_again_one_process_attacks_all_images(
    nets: Any, digits: Dataset, escalated: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([processes._hand_over])
    monkeypatch.setattr(processes, "_hand_over", lambda *job: next(left, lambda *_: False)(*job))
    assert measured(nets.masked(), digits, processes=2).record.id == escalated.record.id
    assert next(left, None) is None


def test_noise_does_not_change_which_searches_the_journal_tells(nets: Any, digits: Dataset, tmp_path: Path) -> None:
    """In bf16 it decides which images are in doubt."""
    for stop in (False, True):
        journal = stopping(tmp_path / "journal", second=True) if stop else Journal()
        if stop:
            with pytest.raises(Interrupted):
                measured(nets.noisy(), digits, precision="bf16", journal=journal)
            journal = Journal(tmp_path / "journal")
        result = measured(nets.noisy(), digits, precision="bf16", journal=journal, resume=stop)
        assert why(result) is not None


def test_in_bf16_the_escalation_follows_the_recheck(nets: Any, digits: Dataset) -> None:
    net = nets.masked_in_bf16()
    result, whole = (measured(net, digits, precision="bf16", attack=one) for one in (SMALL, "quick_nets:strong"))
    assert [ref.name for ref in result.record.attack] == [*SMALL_OWN, "apgd-ce", "apgd-t", *STRONG]
    assert "apgd-t still felled" in str(why(result))  # with gradients that PGD in bf16 had not
    for point, other in zip(result.record.curve, whole.record.curve, strict=True):
        assert point.robust <= other.robust
    assert asked(result.record, 10) == ([SMALL], {})


def test_functions_may_stand_before_and_after_an_escalation(nets: Any, digits: Dataset) -> None:
    after, before = (measured(nets.masked(), digits, attack=f"quick_nets:{name}") for name in ("to-mine", "from-mine"))
    assert why(after) is not None and why(before) is not None
    flags = {flag.name: flag for flag in before.record.flags}
    assert flags["outside-ball"].n == 3 * round(before.record.clean * N)  # each point of the grid above 0, once


def test_a_model_without_a_backward_pass_is_refused_before_the_first_stage(nets: Any, digits: Dataset) -> None:
    with pytest.raises(UserError, match=r"no gradient for apgd-ce .*no way back"):
        measured(nets.Backwardless(), digits, attack="quick_nets:blind")


def test_the_exact_curve_plans_the_escalation_at_each_eps(nets: Any, digits: Dataset) -> None:
    run_of, _ = planned(nets.masked(), digits, Settings(attack=SMALL, eps=EPS, curve="exact"))
    assert run_of.strikes(3) == [3, 3] and run_of.whole().strikes(3) == [3, 3, 3, 3]
    forecast = Forecast()
    forecast.plan(run_of.whole(), 10, N, 3)
    forecast.strike(1, 20, 1)  # at the second of three eps
    assert [part.images for part in forecast.parts] == [20, 20, 60, 60]
    forecast.strike(2, 10, 1)
    assert [part.images for part in forecast.parts] == [0, 0, 10, 20]


def test_the_cost_of_the_flags_is_that_of_both_judgements(
    nets: Any, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, costs = sys.modules[planned.__module__], []
    judge = module.judge  # type: ignore[attr-defined]

    def noted(*args: Any, **how: Any) -> Any:
        costs.append((judged := judge(*args, **how)).cost["forwards"])
        return judged

    monkeypatch.setattr(module, "judge", noted)
    told = measured(nets.masked(), digits).record.environment.model_extra
    assert len(costs) == 2 and told is not None and told["probes"]["forwards"] == sum(costs) > max(costs)


def test_a_record_is_recognised_and_repeated(nets: Any, digits: Dataset, escalated: Evaluation) -> None:
    run_of, _ = planned(nets.masked(), digits, Settings(attack=SMALL, eps=EPS, slots=16))
    assert [ref.model_dump() for ref in run_of.refs] == [ref.model_dump() for ref in escalated.record.attack]
    assert asked(escalated.record, 10) == ([SMALL], {})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"probes": False}, "quick escalates by what the probes find: leave out --probes off"),
        ({"attack": ["quick", "pgd"]}, "quick decides by itself whether autoattack follows: ask for it alone"),
        ({"norm": "l1"}, "odi-margin has no form for norm l1: choose from linf, l2"),
        ({"engine": "reference"}, "runs one of autoattack, .*, not quick"),
    ],
)
def test_what_it_cannot_do_is_refused(nets: Any, digits: Dataset, more: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        measured(nets.honest(), digits, **{"attack": "quick", **more})


def test_l2_is_as_autoattack_on_a_linear_net(nets: Any, digits: Dataset) -> None:
    given: dict[str, Any] = {
        "norm": "l2",
        "eps": ["0", "0.5"],
        "attack_settings": {"steps": 20, "restarts": 2, "n_queries": 20},
    }
    quick, whole = (measured(nets.honest(), digits, attack=name, **given) for name in ("quick", "autoattack"))
    assert why(quick) is None and quick.fates.fell.tolist() == whole.fates.fell.tolist()


def test_the_command_line_plans_measures_and_repeats(
    nets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(nets.__file__).parent)
    words = ["evaluate", "--model", "quick_nets:masked", "--dataset", "digits", "--attack", "quick", "-n", "16"]
    words += ["--eps", "0,0.1", "--set", "steps=2", "--set", "n_queries=20", "--device", "cpu"]
    words += ["--leaderboard", str(tmp_path)]
    assert run([*words, "--dry-run"]) == 0
    planned_text = capsys.readouterr().out
    assert "stage=escalation" in planned_text and "where the attacks of the stage escalation follow" in planned_text
    assert run(words) == 0
    assert "note: escalated: the evaluation went on to apgd-ce+apgd-t+fab-t+square: " in capsys.readouterr().out
    ((record,), _) = load_records(tmp_path)
    assert run([*words, "--resume"]) == 0
    assert "measured before" in capsys.readouterr().out
    path = next(tmp_path.rglob(f"{record.id}.json"))
    assert run(["evaluate", "--again", str(path), "--trust-code", "--device", "cpu"]) == 0
    assert f"the same: record {record.id}" in capsys.readouterr().out


def test_a_gate_tells_the_set_from_what_it_goes_on_to(
    nets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusal names the sets, and a command that measures as the baseline was, whose attacks differ in settings."""
    monkeypatch.chdir(Path(nets.__file__).parent)
    about = ["--model", "quick_nets:honest", "--dataset", "digits", "-n", "16", "--eps", "0,0.1", "--device", "cpu"]
    for name, attack in (("base", SMALL), ("other", "quick_nets:strong")):
        assert run(["evaluate", *about, "--attack", attack, "--out", str(tmp_path / name)]) == 0
    files = [next((tmp_path / name).rglob("*.json")) for name in ("base", "other")]
    capsys.readouterr()
    gate = ["--baseline", str(files[0]), "--fail-if", "clean < baseline"]
    assert run(["compare", str(files[1]), *gate]) == 2
    told = capsys.readouterr().err
    assert f"different attacks (quick_nets:strong; {SMALL})" in told
    command = shlex.split(told.partition("Measure alike by ")[2].partition(", or compare them with --")[0])
    assert run([*command[1:], "--device", "cpu", "--out", str(tmp_path / "alike")]) == 0
    records = [load_record(next((tmp_path / name).rglob("*.json")))[0] for name in ("base", "alike")]
    assert records[0].attack == records[1].attack
