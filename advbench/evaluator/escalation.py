"""Whether a cheap set of attacks, such as `quick`, was too weak for a model, so that a strong one must follow.

It was where a flag doubts the number, or where a later attack of the set still fells more of the images than the shares
below: where the set has converged its later attacks find next to nothing, and one that reads no gradient finds much
only where gradients mislead the others. On ten nets that are in no table, of MNIST, Fashion-MNIST and CIFAR-10, later
attacks of `quick` felled at most 0.2 % by gradients, and without at most 1.0 %, on robust nets of MNIST.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from advbench.evaluator.plan import Plan
from advbench.record import Fates, Flag
from advbench.record.black_box import felled_alone

LATER = 0.005  # of the images, felled by a later attack that follows gradients alone
SENTINEL = 0.02  # by one that reads answers alone
MIN_IMAGES = 2  # fewer may be chance


def why_escalate(run: Plan, fates: Fates, flags: Iterable[Flag], eps: Sequence[float]) -> list[str]:
    """The reasons, in words, to go on to the escalation of `run`, whose attacks led to `fates` at the sizes `eps`."""
    if run.escalated or not run.escalation:
        return []
    why = [f"{flag.name} is {flag.severity}" for flag in flags if flag.decides()]
    n = len(fates)
    for number, attack in list(enumerate(run.every))[1:]:
        counts = felled_alone([number], fates, eps)
        k, bound = max(counts), LATER if attack.follows_gradient() else SENTINEL
        if k > bound * n and k >= MIN_IMAGES:
            why.append(f"{attack.name} still felled {k / n:.1%} of the images at eps {eps[counts.index(k)]:g}")
    return why
