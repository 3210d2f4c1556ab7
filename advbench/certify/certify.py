"""Which images are proved to be robust: by intervals, then by what costs more, each on what is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from advbench.certify.alpha import climbed
from advbench.certify.bounds import ROWS, Ball, Bounds, backward, bounds, parts
from advbench.certify.branching import branched
from advbench.certify.graph import Graph
from advbench.certify.relaxations import Activation

NORMS = ("linf", "l2", "l1")
SIZE = 2**21  # values of the nodes of images that are taken at once
STEPS = 40  # of the climb of the slopes


def certify(
    graph: Graph,
    x: Tensor,
    y: Tensor,
    eps: float,
    norm: str,
    *,
    seconds: float = 1.0,
    thorough: bool = True,
    poll: Callable[[], None] = lambda: None,
) -> Tensor:
    """Whether no point of the ball of size `eps` around each image has logits of which another class has the largest.

    x (S, C, H, W) float32 in [0, 1] and classes y (S,), on the device of the graph; `norm`: one of NORMS. (S,) bool.
    False says nothing. The bounds hold for float32 passes of the network. `seconds`: for each image, about. `thorough`:
    else without slopes that are optimised and without branching. `poll` is called now and then, and may raise.
    """
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    with torch.no_grad():
        for some in torch.arange(len(x), device=x.device).split(max(1, SIZE // graph.size)):
            found[some] = _certify(graph, x[some], y[some], eps, norm, seconds, thorough, poll)
    return found


def _certify(
    graph: Graph,
    x: Tensor,
    y: Tensor,
    eps: float,
    norm: str,
    seconds: float,
    thorough: bool,
    poll: Callable[[], None],
) -> Tensor:
    deadline = time.monotonic() + seconds * len(x)
    last = graph.nodes[-1].shape[0]
    unproved = torch.arange(last, device=x.device) != y[:, None]  # (S, K): classes that may have a larger logit

    def rows(pairs: Tensor) -> Tensor:
        """z_y - z_k for pairs (P, 2) of an image and a class k."""
        ones = torch.eye(last, dtype=torch.float64, device=x.device)
        return ones[y[pairs[:, 0]]] - ones[pairs[:, 1]]

    def prove(bound: Callable[[Bounds, Tensor, Tensor], Tensor], pairs: Tensor, count: int) -> Tensor:
        """The lower bounds (P,) of the pairs, in so many parts; those above 0 are proved."""
        values = [
            bound(found, rows(some), place[some[:, 0]]) for some in pairs.tensor_split(max(1, count)) if len(some)
        ]
        whole = torch.cat(values) if values else x.new_zeros(0, dtype=torch.float64)
        unproved[pairs[whole > 0].unbind(1)] = False
        return whole

    for tight in (False, True):
        left = unproved.any(1).nonzero()[:, 0]
        if not len(left):
            break
        place = torch.zeros(len(x), dtype=torch.long, device=x.device)
        place[left] = torch.arange(len(left), device=x.device)
        found = bounds(graph, Ball.around(x[left], eps, norm), tight=tight, deadline=deadline)
        pairs = unproved.nonzero()
        prove(lambda *given: backward(given[0], len(graph.nodes) - 1, *given[1:]), pairs, parts(graph, len(pairs)))
    if not thorough:
        return ~unproved.any(1)
    pairs = unproved.nonzero()
    whole = -(-len(pairs) * graph.size // ROWS)  # because gradients keep all nodes in memory
    bound = prove(partial(climbed, steps=STEPS, deadline=deadline), pairs, whole)
    if all(node.op.piecewise for node in graph.nodes if isinstance(node.op, Activation)):
        left = unproved.any(1).nonzero()[:, 0]
        for done, image in enumerate(left):
            now = time.monotonic()
            own = (pairs[:, 0] == image) & ~(bound > 0)  # nan, as of what overflows, is unproved too
            until = now + (deadline - now) / (len(left) - done)
            given = found, int(place[image]), rows(pairs[own]), bound[own]
            if now < deadline and branched(*given, deadline=until, poll=poll):
                unproved[image] = False
    return ~unproved.any(1)
