"""A search by compiled code finds what a plain one finds; where it cannot be compiled, it goes on and says so."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.compiled import Compiled
from advbench.engine.search_copy import search_copy
from advbench.evaluator import Evaluation, Settings, evaluate

evaluation = sys.modules["advbench.evaluator.evaluate"]  # the package has a function of that name
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's, as it traces


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(24))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))
        x, y = load("digits", "train").batch(slice(0, 600))
        optimizer = torch.optim.Adam(made.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(made(x), y).backward()
            optimizer.step()
    return made.eval()


Run = Callable[..., Evaluation]


@pytest.fixture
def run(net: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(backend: str, **settings: Any) -> Evaluation:
        monkeypatch.setattr(evaluation, "compiler", lambda *_: backend)
        given = {"attack": ["apgd-ce", "square"], "attack_settings": {"steps": 5, "n_queries": 40}, **settings}
        return evaluate(net, digits, Settings(eps=["0", "0.05", "0.1"], slots=8, processes=1, probes=False, **given))

    return run


def status(done: Evaluation) -> str | None:
    return getattr(done.record.environment, "compile", None)


def test_the_same_images_fall_and_every_call_is_served(run: Run) -> None:
    """Several evaluations of one process: none takes the compiler's few graphs from the next."""
    plain = run("")
    assert status(plain) is None and 0 < np.mean(plain.fates.fell >= 0) < 1
    for _ in range(3):
        compiled = run("aot_eager")
        assert status(compiled) == "aot_eager"
        assert np.array_equal(compiled.fates.fell, plain.fates.fell)
    assert [flag.name for flag in compiled.record.flags] == [flag.name for flag in plain.record.flags]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_what_cannot_be_compiled_is_searched_without(run: Run, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    from torch._dynamo.backends.common import aot_autograd

    failing = (
        fails if where == "forward" else aot_autograd(fw_compiler=lambda graph, _: graph.forward, bw_compiler=fails)
    )
    made = Compiled.compile_with
    monkeypatch.setattr(Compiled, "compile_with", lambda self, backend: made(self, failing))
    with pytest.warns(UserWarning, match="the search continues without torch.compile: .*no compiler here"):
        found = run("aot_eager")
    assert str(status(found)).startswith("off") and np.array_equal(found.fates.fell, run("").fates.fell)
    (note,) = [flag for flag in found.record.flags if flag.name == "eager"]
    assert note.severity == "note" and "no compiler here" in note.detail


def test_one_graph_serves_every_width(net: nn.Module) -> None:
    """Of a search, whose width follows its items. PyTorch compiles a function at most 8 times."""
    copy, _ = search_copy(net, example=torch.rand(2, 1, 8, 8))
    compiled = copy.compile_with("aot_eager")
    for rows in range(2, 40):
        x = torch.rand(rows, 1, 8, 8, requires_grad=True)
        (gradient,) = torch.autograd.grad(copy(x).square().sum(), x)
        (expected,) = torch.autograd.grad(net(x).square().sum(), x)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)
    assert compiled is not None and compiled.served == compiled.calls == 38


def test_models_that_do_not_do_the_same_on_every_input_stay_plain() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    copy, _ = search_copy(Branches(), example=torch.rand(2, 1, 2, 2))
    assert copy.compile_with("aot_eager") is None


def test_only_long_evaluations_on_cuda_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    work = [0.0]
    monkeypatch.setattr(evaluation, "expected_work", lambda *_: work[0])
    for device, much, backend in (("cuda", 1e17, "inductor"), ("cuda", 1e15, ""), ("cpu", 1e17, "")):
        work[0] = much
        assert evaluation.compiler(None, None, SimpleNamespace(device=device), None) == backend  # type: ignore[arg-type]
