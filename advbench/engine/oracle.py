"""The oracle: the model as an attack sees it. It answers queries and counts every pass."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from advbench.engine.attack import Answer, Asks, Attack, Problem, Samples
from advbench.engine.losses import wrong
from advbench.engine.rejection import accepted
from advbench.models.base import straight_through

RANDOM_PASSES = 20  # the mean of so many passes judges a model with random outputs


def gradient(value: Tensor, query: Tensor, *, again: bool = False) -> Tensor:
    """The gradient of value.sum() with respect to `query`; zero if `value` does not depend on `query`.

    NaN and infinities are kept. `again` keeps the graph for another call.
    """
    if not value.requires_grad:
        return torch.zeros_like(query)
    total = value.sum()
    return torch.autograd.grad(total, query, retain_graph=again, allow_unused=True, materialize_grads=True)[0]


class Oracle:
    """Answers queries with `search`, the search copy of the model, and verifies hits with the model `net` itself.

    `slots`: number of rows of every pass, so that verdicts are those of one batch size. `random`: the outputs vary from
    pass to pass, so verification averages 20 passes. `rejects`: the model has K + 1 logits, of which attacks see K (see
    `rejection`). `forwards` and `backwards` count the passes of single images.
    """

    def __init__(
        self,
        net: nn.Module,
        search: nn.Module | None = None,
        *,
        slots: int,
        random: bool = False,
        rejects: bool = False,
    ) -> None:
        self.net = net
        self.search = net if search is None else search
        self.slots = slots
        self.random = random
        self.rejects = rejects
        self.forwards = 0
        self.backwards = 0

    def answer(
        self, attack: Attack, p: Problem, query: Tensor, asks: Asks | None = None, handicap: Tensor | None = None
    ) -> Answer:
        """Answer `query` (slots, C, H, W) as `asks` says, or else `attack.asks`. Non-finite gradients become 0.

        `handicap` (slots,) is added to the logit of the label: the search copy is wrong only where it errs by more.
        """
        asks = asks or attack.asks
        passes = len(query) * attack.eot
        self.forwards += passes
        if asks == "logits":
            return self._with_logits(attack, p, query, handicap)
        through = straight_through(self.search) if attack.straight_through else nullcontext()
        with through:
            answer = self._with_gradient(attack, p, query, asks, handicap)
        self.backwards += passes * (answer.gradient.shape[1] if asks == "jacobian" else 1)
        return answer

    def _with_logits(self, attack: Attack, p: Problem, query: Tensor, handicap: Tensor | None) -> Answer:
        with torch.no_grad():
            logits, read = self._outputs(attack, p, query, handicap)
            return Answer(logits, wrong(logits, p.y), attack.objective(p, read))

    def _with_gradient(self, attack: Attack, p: Problem, query: Tensor, asks: Asks, handicap: Tensor | None) -> Answer:
        query = query.detach().requires_grad_()
        with torch.enable_grad():
            logits, read = self._outputs(attack, p, query, handicap)
            if asks == "jacobian":
                grads = [gradient(read[:, k], query, again=True) for k in range(read.shape[1])]
                grad, value = torch.stack(grads, 1), read
            else:
                value = attack.objective(p, read)
                grad = gradient(value, query)
        logits, value = logits.detach(), value.detach()
        # In the memory layout of the images, not of the search copy: operations on mixed layouts are slow.
        return Answer(logits, wrong(logits, p.y), value, grad.nan_to_num(0.0, 0.0, 0.0).contiguous())

    def judged(self, logits: Tensor, y: Tensor) -> Tensor:
        """The logits (S, K) by which points attacked as class y (S,) are judged, from those of the model."""
        return accepted(logits, y) if self.rejects else logits

    def logits(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Logits (n, K) of `net` in float32, in passes of `slots` rows; the last pass is filled up with zeros.

        Without y (n,) they are as the model gives them, as clean images are judged; with it they are `judged`.
        """
        out = []
        for part in z.split(self.slots):
            filled = torch.zeros(self.slots, *part.shape[1:], dtype=part.dtype, device=part.device)
            filled[: len(part)] = part
            with torch.no_grad():
                passes = RANDOM_PASSES if self.random else 1
                self.forwards += self.slots * passes
                out.append(sum(self.net(filled).float() for _ in range(passes))[: len(part)] / passes)  # type: ignore[index]
        return torch.cat(out) if y is None else self.judged(torch.cat(out), y)

    def reference(self, samples: Samples, row: Tensor, target: Tensor) -> Tensor:
        """`Problem.reference` (S, R) of items: `row` (S,) of `samples` and `target` (S,). Here the clean logits."""
        return samples.logits[row]

    def read(self, p: Problem, query: Tensor) -> tuple[Tensor, Tensor]:
        """The search copy's logits, all of them, and the input (S, R) of the objective, both from the same pass.

        Here the input of the objective is the logits; an attack's own oracle may read something else.
        """
        logits = self.search(query).float()
        return logits, logits

    def _outputs(self, attack: Attack, p: Problem, query: Tensor, handicap: Tensor | None) -> tuple[Tensor, Tensor]:
        """The results of `read`, averaged over `eot` passes, with the logits (S, K) `judged` and with the handicap."""
        logits, read = self.read(p, query)
        reads_logits = read is logits
        if attack.eot > 1:
            passes = [(logits, read), *(self.read(p, query) for _ in range(attack.eot - 1))]
            logits, read = (torch.stack(each).mean(0) for each in zip(*passes, strict=True))
        logits = self.judged(logits, p.y)
        if handicap is not None:
            logits = logits.scatter_add(1, p.y[:, None], handicap[:, None])
        return logits, logits if reads_logits else read
