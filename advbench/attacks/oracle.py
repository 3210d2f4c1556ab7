"""The model as an attack sees it: it answers queries, and counts every pass it makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from advbench.attacks.crew import Crew
from advbench.attacks.engine import Answer, Asks, Attack, Problem, take
from advbench.attacks.losses import wrong
from advbench.models.base import straight_through

_SHORT = (
    "out of memory", "STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory",
    "unable to find an engine to execute this computation",  # of cuDNN, when no workspace fits
)  # fmt: skip
RANDOM_PASSES = 20  # contract.md: the mean of so many passes decides for a model with random outputs


@contextmanager
def untouched(net: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's mode and the global random state are put back at the end."""
    modes = {module: module.training for module in net.modules()}
    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        net.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        torch.set_rng_state(cpu_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def exact_kernels(device: torch.device) -> Iterator[None]:
    """Inside, fp32 means fp32 on CUDA too (convolutions in TF32 keep 10 bits), by kernels that repeat themselves; and
    `device` is the current one, which streams and graphs belong to."""
    with ExitStack() as stack:
        for owner, name, value in _switches():
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        yield


def _switches() -> list[tuple[Any, str, Any]]:
    """What decides how exact and how repeatable fp32 is: owner, attribute, and the value for that. From PyTorch 2.9 on
    each kind of operation has a switch of its own, and the older ones raise once somebody has used these."""
    b = torch.backends
    kernels: list[tuple[Any, str, Any]] = [(b.cudnn, "benchmark", False), (b.cudnn, "deterministic", True)]
    if not hasattr(b.cuda.matmul, "fp32_precision"):
        return [*kernels, (b.cuda.matmul, "allow_tf32", False), (b.cudnn, "allow_tf32", False)]
    owners = (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn)  # type: ignore[attr-defined]
    return [*kernels, *((owner, "fp32_precision", "ieee") for owner in owners)]


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` tells of a lack of memory, on CUDA or CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in _SHORT)


def gradient(value: Tensor, query: Tensor, *, again: bool = False) -> Tensor:
    """The gradient of the sum of `value` by `query`, as it is: zero where no graph leads from one to the other.

    `again`: the graph is kept for another value.
    """
    if not value.requires_grad:
        return torch.zeros_like(query)
    total = value.sum()
    return torch.autograd.grad(total, query, retain_graph=again, allow_unused=True, materialize_grads=True)[0]


def joined(answers: list[Answer]) -> Answer:
    """The rows of several answers, one after the other."""
    if len(answers) == 1:
        return answers[0]
    grads = [answer.grad for answer in answers if answer.grad is not None]
    logits, was_wrong, value = (
        torch.cat([getattr(answer, name) for answer in answers]) for name in ("logits", "wrong", "value")
    )
    return Answer(logits, was_wrong, value, torch.cat(grads) if grads else None)


class Oracle:
    """Answers queries with `search`, a copy of the model made for speed, and verifies with `net` itself.

    `slots` is the number of rows of every pass: verdicts are those of that batch size. `random`: outputs
    vary from pass to pass, so that verification averages 20 of them. `crew`: threads that share the rows of answers.
    """

    def __init__(self, net: nn.Module, search: nn.Module | None = None, *, slots: int, random: bool = False) -> None:
        self.net = net
        self.search = net if search is None else search
        self.slots = slots
        self.random = random
        self.forwards = 0
        self.backwards = 0
        self.crew = Crew()
        self._alone: dict[tuple[int, int, int], bool] = {}

    def answer(self, attack: Attack, p: Problem, query: Tensor, asks: Asks | None = None) -> Answer:
        """The model at `query` (slots, C, H, W): what `asks` says, or else `attack`. Non-finite gradients become 0."""
        asks = asks or attack.asks
        passes = len(query) * attack.eot
        self.forwards += passes
        shares = self.crew.shares(len(query))
        parts = [(take(p, at), query[at]) for at in shares] if len(shares) > 1 else [(p, query)]
        if asks == "logits":
            return joined(self.crew.each(lambda part: self._looked(attack, *part), parts))
        through = straight_through(self.search) if attack.straight_through else nullcontext()
        with through:
            answer = joined(self.crew.each(lambda part: self._derived(attack, *part, asks), parts))
        self.backwards += passes * (answer.gradient.shape[1] if asks == "jacobian" else 1)
        return answer

    def _looked(self, attack: Attack, p: Problem, query: Tensor) -> Answer:
        with torch.no_grad():
            logits, read = self._outputs(attack, p, query)
            return Answer(logits, wrong(logits, p.y), attack.objective(p, read))

    def _derived(self, attack: Attack, p: Problem, query: Tensor, asks: Asks) -> Answer:
        query = query.detach().requires_grad_()
        with torch.enable_grad():
            logits, read = self._outputs(attack, p, query)
            if asks == "jacobian":
                grads = [gradient(read[:, k], query, again=True) for k in range(read.shape[1])]
                grad, value = torch.stack(grads, 1), read
            else:
                value = attack.objective(p, read)
                grad = gradient(value, query)
        logits, value = logits.detach(), value.detach()
        # In the layout of the images, not of the search copy: what mixes two of them is slow.
        return Answer(logits, wrong(logits, p.y), value, grad.nan_to_num(0.0, 0.0, 0.0).contiguous())

    def shrinks(self, attack: Attack, device: torch.device) -> bool:
        """Whether passes for `attack` may have fewer rows than `slots`, if `alone` holds."""
        plain = attack.reads == "logits" and not attack.straight_through
        return plain and device.type == "cpu" and not self.random

    def alone(self, rows: int, shape: torch.Size) -> bool:
        """Whether `rows` images of `shape` (C, H, W) have the numbers, to the bit, that they have among all `slots`.

        Kernels are chosen by shapes, and may add up in another order. Random images tell, once for each number of rows.
        """
        case = self.slots, rows, self.crew.threads
        if case not in self._alone:
            x = torch.rand(self.slots, *shape, generator=torch.Generator().manual_seed(0))
            told = zip(self._probed(x), self._probed(x[:rows]), strict=True)
            self._alone[case] = all(torch.equal(among[:rows], own) for among, own in told)
        return self._alone[case]

    def _probed(self, x: Tensor) -> list[Tensor]:
        """Logits at x by both ways, and a gradient."""

        def work(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            with torch.no_grad():
                looked = self.search(part)
            z = part.clone().requires_grad_()
            with torch.enable_grad():
                logits = self.search(z)
                return looked, logits.detach(), gradient(logits.square().sum(1), z)

        self.forwards += 2 * len(x)
        self.backwards += len(x)
        found = self.crew.each(work, [x[at] for at in self.crew.shares(len(x))])
        return [torch.cat(column) for column in zip(*found, strict=True)]

    def verify(self, z: Tensor, y: Tensor) -> Tensor:
        """Whether `net` gets z (n, C, H, W), n <= slots, wrong, in a pass of its own of `slots` rows: (n,) bool."""
        return wrong(self.logits(z), y)

    def logits(self, z: Tensor) -> Tensor:
        """Logits (n, K) of `net` in float32, in passes of `slots` rows; what is short is filled with zeros."""
        out = []
        for part in z.split(self.slots):
            filled = torch.zeros(self.slots, *part.shape[1:], dtype=part.dtype, device=part.device)
            filled[: len(part)] = part
            with torch.no_grad():
                passes = RANDOM_PASSES if self.random else 1
                self.forwards += self.slots * passes
                out.append(sum(self.net(filled).float() for _ in range(passes))[: len(part)] / passes)  # type: ignore[index]
        return torch.cat(out)

    def _outputs(self, attack: Attack, p: Problem, query: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (S, K), and what the objective reads: these, or what `_read` gives. Means over `eot` passes."""
        if attack.reads == "logits":
            total = self.search(query).float()
            for _ in range(attack.eot - 1):
                total = total + self.search(query).float()
            mean = total / attack.eot if attack.eot > 1 else total
            return mean, mean
        passes = [self._read(attack, p, query) for _ in range(attack.eot)]
        read, logits = (torch.stack(each).float().mean(0) for each in zip(*passes, strict=True))
        return logits, read

    def _read(self, attack: Attack, p: Problem, query: Tensor) -> tuple[Tensor, Tensor]:
        """Features (S, D) and logits (S, K), in one pass."""
        return self.search.features_and_logits(query)  # type: ignore[operator, no-any-return]
