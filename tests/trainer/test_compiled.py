"""torch.compile changes the time of a run, not its numbers; where it fails, the run goes on and says why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.profiler import ProfilerActivity, profile

from advbench.checkpoint import read_card
from advbench.recipe import Recipe
from advbench.trainer import train
from advbench.trainer.modes import fixed_weights
from advbench.trainer.session import Session
from advbench.trainer.validation import score

Make = Callable[..., Recipe]
LIMIT = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"  # till 2.6
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's, as it traces


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own, while it traces
@pytest.mark.parametrize("method", [pytest.param("pgd-at", marks=pytest.mark.long), "act"])
def test_compiling_gives_the_same_run(recipe: Make, tmp_path: Path, method: str) -> None:
    for name in ("off", "aot_eager"):
        train(recipe(method, f"compile={name}", "epochs=1", "awp.gamma=0.01"), tmp_path / name, device="cpu")
    a, b = (load_file(tmp_path / name / "last.safetensors") for name in ("off", "aot_eager"))
    for key, weight in a.items():
        torch.testing.assert_close(b[key], weight, rtol=1e-4, atol=1e-4)
    plain, made = (read_card(tmp_path / name).cost for name in ("off", "aot_eager"))
    assert (plain["compile"], made["compile"]) == ("off", "aot_eager")
    assert [made[key] for key in ("forwards", "backwards")] == [plain[key] for key in ("forwards", "backwards")]


def no_forward(graph: object, inputs: object) -> Any:
    raise RuntimeError("no compiler here")


def no_backward(graph: Any, inputs: Any) -> Any:
    return aot_autograd(fw_compiler=lambda graph, inputs: graph.forward, bw_compiler=no_forward)(graph, inputs)


def no_run(graph: object, inputs: object) -> Any:
    def run(*args: object) -> Any:
        raise RuntimeError("no compiler here")

    return run


def other_numbers(graph: Any, inputs: object) -> Any:
    return lambda *args: tuple(1.5 * one for one in graph.forward(*args))


@pytest.mark.parametrize(
    ("backend", "words"),
    [(no_forward, "no compiler here"), (no_backward, "no compiler here"), (no_run, "no compiler here"),
     (other_numbers, "compiled outputs or gradients differ from plain ones by 50%")],
)  # fmt: skip
def test_what_cannot_be_compiled_goes_on_without(recipe: Make, backend: Any, words: str) -> None:
    """And as if it had never been compiled: the same numbers, passes, statistics and random numbers."""
    sessions = [Session(recipe("pgd-at", f"compile={name}"), torch.device("cpu")) for name in ("off", "aot_eager")]
    plain, session = sessions
    (net,) = session.compiled
    net.compile_with(backend)
    with pytest.warns(UserWarning, match=f"continues without torch.compile.*{words}"):
        session.step(session.order())
    assert words in session.compile_status and session.compile_status.startswith("off")
    plain.step(plain.order())
    for one in sessions:
        one.step(one.order())
    assert session.means() == plain.means()
    assert (session.counter.forwards, session.counter.backwards) == (plain.counter.forwards, plain.counter.backwards)
    for name, value in plain.nets.f.state_dict().items():
        assert torch.equal(session.nets.f.state_dict()[name], value), name


def other_draws(graph: Any, inputs: object) -> Any:
    """As inductor does, whose dropout draws by a generator of its own."""

    def run(*args: Any) -> Any:
        torch.rand(1)
        return graph.forward(*args)

    return run


def test_dropout_may_draw_other_numbers(recipe: Make) -> None:
    session = Session(recipe("pgd-at", "compile=aot_eager", "model.dropout=0.5"), torch.device("cpu"))
    session.compiled[0].compile_with(other_draws)
    session.step(session.order())
    assert session.compile_status == "aot_eager"


def test_calls_that_the_compiler_gave_up_are_counted_and_told(recipe: Make) -> None:
    """PyTorch compiles a few graphs of one function and then runs it plainly, with no more than a line in the log."""
    session = Session(recipe("pgd-at", "compile=aot_eager"), torch.device("cpu"))
    plain = Session(recipe("pgd-at", "compile=off"), torch.device("cpu"))
    with torch._dynamo.config.patch({LIMIT: 1}):
        for one in (session, plain):
            one.step(one.order())
    (net,) = session.compiled
    assert 0 < net.served < net.calls
    assert session.compile_status == f"aot_eager ({net.served / net.calls:.0%} of calls)"
    assert (session.counter.forwards, session.counter.backwards) == (plain.counter.forwards, plain.counter.backwards)


def test_every_run_of_a_process_is_compiled(recipe: Make) -> None:
    """A sweep, a notebook and a Ray worker train many: none takes the compiler's few graphs from the next."""
    for arch, method in (("small_cnn", "pgd-at"), ("mlp", "pgd-at"), ("small_cnn", "trades"), ("small_cnn", "mart"),
                         ("mlp", "mart"), ("small_cnn", "pgd-at")):  # fmt: skip
        session = Session(recipe(method, "compile=aot_eager", arch=arch), torch.device("cpu"))
        for _ in range(2):
            session.step(session.order())
        assert session.compile_status == "aot_eager", (arch, method)
        assert all(net.calls and net.served == net.calls for net in session.compiled)


def test_copies_and_second_derivatives_are_not_compiled(recipe: Make) -> None:
    session = Session(recipe("pgd-at", "compile=aot_eager", "average.name=ema"), torch.device("cpu"))
    assert session.nets.f._compiled_call_impl is session.compiled[0]
    assert session.deployed._compiled_call_impl is None
    assert copy.deepcopy(session.nets.f)._compiled_call_impl is None
    assert Session(recipe("great", "compile=aot_eager", arch="mlp"), torch.device("cpu")).compile_status == "off"


def test_attacks_ask_weights_for_no_gradient(recipe: Make) -> None:
    session = Session(recipe("pgd-at", "compile=aot_eager"), torch.device("cpu"))
    seen: list[bool] = []
    f = session.nets.f
    x = torch.rand(2, 1, 8, 8)

    def objective(z: torch.Tensor) -> torch.Tensor:
        seen.append(any(weight.requires_grad for weight in f.parameters()))
        return z.flatten(1).sum(1)

    session.nets.key = torch.zeros(2, dtype=torch.int64)
    session.tools.attack(objective, x, torch.zeros(2, dtype=torch.int64))
    assert seen == [False, False] and all(weight.requires_grad for weight in f.parameters())


def casts_of_weights(session: Session, work: Callable[[], object]) -> int:
    """How often `work` casts a tensor of the shape of the largest weight, which no other tensor has."""
    shape = list(max(session.nets.f.parameters(), key=lambda weight: weight.numel()).shape)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        work()
    return sum(event.name == "aten::_to_copy" and event.input_shapes[0] == shape for event in seen.events())


@pytest.mark.parametrize("backend", ["off", "aot_eager"])
def test_an_attack_casts_a_weight_once_however_many_steps_it_makes(recipe: Make, backend: str) -> None:
    """Autocast keeps its casts from pass to pass, but not inside compiled code."""
    counts = []
    for steps in (1, 5):
        sets = (f"compile={backend}", "precision=bf16", f"inner.steps={steps}", f"validation.steps={steps}")
        session = Session(recipe("pgd-at", *sets, arch="small_cnn_16_32_100"), torch.device("cpu"))
        assert session.held_out is not None
        step = partial(session.step, session.order())
        test = partial(
            score, session.nets.f, session.held_out, session.recipe, batch_size=24, attacking=session.attacking
        )
        step(), test()  # compiles
        counts.append((casts_of_weights(session, step), casts_of_weights(session, test)))
        assert session.compile_status == backend
        assert all(weight.dtype == torch.float32 for weight in session.nets.f.parameters())
    assert counts[0] == counts[1] and min(counts[0]) >= 1


def test_only_weights_that_autocast_casts_are_cast_and_all_come_back() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(2, 2))
    before = {name: (weight, weight.data_ptr()) for name, weight in net.named_parameters()}
    for autocast in (True, False):
        with (
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
            pytest.raises(KeyError),
            fixed_weights([net]),
        ):
            found = {name for name, weight in net.named_parameters() if weight.dtype == torch.bfloat16}
            assert found == ({"0.weight", "0.bias", "4.weight", "4.bias"} if autocast else set())
            assert not any(weight.requires_grad for weight in net.parameters())
            net(torch.rand(2, 1, 3, 3))
            raise KeyError
        for name, weight in net.named_parameters():
            assert (weight, weight.data_ptr()) == before[name] and weight.requires_grad
