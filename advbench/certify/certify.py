"""Which images are proved to be robust: by intervals, then by what costs more, each on what is left."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from advbench.certify.alpha import climbed
from advbench.certify.bounds import ROWS, Ball, Bound, Bounds, backward, bounds, parts
from advbench.certify.branching import branched
from advbench.certify.graph import SIZE, Graph
from advbench.certify.relaxations import Activation, Lines

NORMS = ("linf", "l2", "l1")
STEPS, FEW = 40, 10  # of climbs of the slopes: of all images together, and of one alone


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

    def prove(by: Bound, pairs: Tensor, count: int) -> None:
        """Note the pairs of which lower bounds, in so many parts, are above 0."""
        for some in pairs.tensor_split(max(1, count)):
            if len(some):
                bound = by(found, graph.logits, rows(some), place[some[:, 0]])
                unproved[some[bound > 0].unbind(1)] = False

    for by in (None, backward):
        left = unproved.any(1).nonzero()[:, 0]
        if not len(left):
            break
        place = torch.zeros(len(x), dtype=torch.long, device=x.device)
        place[left] = torch.arange(len(left), device=x.device)
        found = bounds(graph, Ball.around(x[left], eps, norm), by, deadline=deadline)
        pairs = unproved.nonzero()
        prove(backward, pairs, parts(graph, len(pairs)))
    if not thorough:
        return ~unproved.any(1)
    pairs = unproved.nonzero()
    whole = -(-len(pairs) * graph.size // ROWS)  # because gradients keep all nodes in memory
    prove(lambda *given: climbed(*given, steps=STEPS, deadline=deadline).bound, pairs, whole)
    left = unproved.any(1).nonzero()[:, 0]
    for done, image in enumerate(left):
        now = time.monotonic()
        until = now + (deadline - now) / (len(left) - done)
        own = pairs[(pairs[:, 0] == image) & unproved[pairs.unbind(1)]]
        if now < deadline and _alone(found.pick(place[image, None]), rows(own), now, until, poll):
            unproved[image] = False
    return ~unproved.any(1)


def _alone(found: Bounds, rows: Tensor, now: float, until: float, poll: Callable[[], None]) -> bool:
    """Whether all <row, logits> of `rows` are proved to be above 0 for the one image of `found`, before `until`.

    For half of the time, better slopes give better bounds inside of the network; the rest is for branching.
    """
    graph, half = found.graph, (now + until) / 2
    if not any(isinstance(lines, Lines) and lines.free is not None for lines in found.lines):
        return False

    def inside(found: Bounds, start: int, rows: Tensor, image: Tensor) -> Tensor:
        best = rows.new_full((len(rows),), -torch.inf)
        for some in torch.arange(len(rows), device=rows.device).split(max(1, ROWS // graph.size)):
            poll()
            if time.monotonic() < half:
                climb = climbed(found, start, rows[some], image[some], steps=FEW, enough=torch.inf, deadline=half)
                best[some] = climb.bound
        return best

    found = bounds(graph, found.ball, inside, found, deadline=half)
    image = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    climb = climbed(found, graph.logits, rows, image, steps=FEW, deadline=until)
    if all(node.op.piecewise for node in graph.nodes if isinstance(node.op, Activation)):
        return branched(found, rows, climb, deadline=until, poll=poll)
    return bool((climb.bound > 0).all())
