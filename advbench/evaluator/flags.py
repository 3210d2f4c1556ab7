"""Flags: reasons to doubt a measured robust accuracy. Every evaluation raises those that apply.

The severities are "note": a fact to know beside the number; "suspect": attacks on this model may have failed for a
reason other than robustness; "broken": they did. Sources: the checks of AutoAttack, Carlini et al. 2019 (1902.06705),
Pintor et al. 2022 (2106.09947).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from advbench.attacks.rays import RayS
from advbench.checkpoint import Loaded
from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack
from advbench.engine.whole_batch import WholeBatch
from advbench.errors import UserError
from advbench.evaluator import subject
from advbench.evaluator.probes import GREY_EPS, LONG_PGD_STEPS, SHORT_PGD_STEPS, Probe, declared
from advbench.evaluator.runner import Runner
from advbench.evaluator.search_beyond import MIN_QUERIES, Beyond
from advbench.models.black_box import is_black_box
from advbench.record import NOT_PROBED, Fates, Flag, Severity
from advbench.record.black_box import black_box_ahead
from advbench.statistics import wilson
from advbench.threat import FourierLinf, around, leak

# Shares of the images: above the first a flag is raised as a note, above the second it is suspect. Honest models,
# standard and robust, stay well under the second: tests/evaluator/test_honest.py.
BAD_GRADIENT = (0.0, 0.1)
STUCK = (0.02, 0.2)
MORE_STEPS = (0.1, 0.25)
STRAIGHT_THROUGH = (0.02, 0.05)
WEAK_ATTACK = (0.02, 0.1)
FROM_STARTS = (0.0, 0.05)
BY_LABELS = (0.0, 0.02)  # on honest models it found nothing
NOISE = (0.0, 0.02)
JITTER = (0.1, 0.1)
JUMPS = (0.02, 0.25)
REFUSED = 0.01
BROKEN_SHARE = 0.9  # an attack without a gradient on so many images has not taken place
NEVER_BROKEN = 2.0  # above every share: the flag is suspect at most
MIN_SUSPECT_IMAGES = 4  # a flag raised by fewer images is a note
MAX_BATCH_DIFFERENCE = 1e-2  # of the range of the logits: a larger difference is more than rounding
MIN_CLIPPED = 4  # logits


def is_random(net: nn.Module, data: Dataset) -> bool:
    """Whether two passes over the same images give different logits; `net` is in eval mode."""
    x, _ = data.batch(slice(0, 64))
    with torch.no_grad():
        first, second = net(x), net(x)
    return not torch.equal(first.nan_to_num(), second.nan_to_num())


def judge(
    runner: Runner,
    loaded: Loaded,
    fates: Fates,
    attacks: Sequence[Attack],
    eps: Sequence[float],
    *,
    in_train_mode: bool,
    probes: bool = True,
) -> list[Flag]:
    """The flags of a finished evaluation, for which the model is probed on some of the images.

    Gradients are judged only if an attack follows them. Without `probes` only what the evaluation has shown is judged.
    """
    found = [note("model", text) for text in loaded.notes]
    found += facts(runner, loaded, in_train_mode=in_train_mode)
    found += outside_ball(runner, attacks)
    found += refused(runner, fates, eps)
    found += spectrum(runner, fates, attacks, eps)
    found += not_repeatable(runner, fates, attacks, eps, probes=probes)
    if not probes:
        detail = "the model was not probed (--probes off): masked gradients and weak attacks would not be noticed"
        found.append(Flag(name=NOT_PROBED, severity="suspect", detail=detail))
    else:
        found += probed(Probe(runner, attacks), fates, attacks, eps)
    return found + black_box(fates, attacks, eps, found)


def probed(probe: Probe, fates: Fates, attacks: Sequence[Attack], eps: Sequence[float]) -> list[Flag]:
    """The flags of the probes."""
    found = [] if probe.runner.oracle.random else batch_dependence(probe)
    if not len(probe.correct_rows):
        return found
    followed = probe.followed
    if followed:
        found += gradients(probe, followed)
    found += noise(probe, fates, eps)
    place = half_accuracy_point(fates, eps)
    search = cache(lambda at: Beyond(probe, fates, at, eps[at]))
    if not probe.differentiable:
        return found if place is None else found + by_labels(search(place), eps[: place + 1])
    found += at_lowest(place, eps, lambda at: pgd_at(probe, fates, eps, at, followed=bool(followed)))
    if probe.runner.norm == "linf" and followed and not probe.runner.oracle.rejects:  # which may reject what is grey
        seen = {flag.name for flag in found}
        found += [flag for flag in pgd_at_grey(probe) if flag.name not in seen]
    if place is not None and not probe.runner.oracle.random:  # one pass of a random model says little
        found += at_lowest(place, eps, lambda at: from_starts(search(at)))
        found += by_labels(search(place), eps[: place + 1])
    return found


def facts(runner: Runner, loaded: Loaded, *, in_train_mode: bool) -> list[Flag]:
    """Flags on the clean logits, the images and the counts of the search."""
    found = subject.subject(loaded, runner.logits, runner.data)
    n, classes = len(runner.logits), runner.data.num_classes
    low, high = wilson(n // 2, n)
    if n < 1000:
        found.append(note("small-n", f"{n} images: intervals up to +-{50 * (high - low):.1f} points"))
    if any(getattr(module, "training", False) for module in runner.net.modules()):
        found.append(Flag(name="train-mode", severity="suspect", detail="the model stays in train mode"))
    elif in_train_mode:
        found.append(note("train-mode", "the model came in train mode; eval mode was used"))
    if classes < 4:
        found.append(note("few-classes", f"{classes} classes: attacks that aim by DLR aim by the margin instead"))
    lowest, highest = (float(value) / runner.data.scale for value in runner.data.images.aminmax())
    if not 0 <= lowest <= highest <= 1:
        detail = f"images reach {highest if highest > 1 else lowest:g}: they must lie in [0, 1]"
        found.append(Flag(name="outside", severity="broken", detail=detail))
    if runner.oracle.rejects:
        k = int((runner.logits.argmax(1) == classes).sum())
        detail = (
            f"the model may reject: {k / n:.1%} of the clean images are rejected and count as wrong; an attacked image "
            "that is rejected counts as withstood"
        )
        found.append(Flag(name="abstain", severity="note", k=k, n=n, detail=detail))
    share = float((~runner.logits.isfinite()).any(1).double().mean())
    if share or runner.nonfinite:
        detail = f"NaN or infinite logits on {share:.1%} of the clean images and {runner.nonfinite} attacked ones"
        found.append(Flag(name="non-finite", severity="broken", detail=f"{detail}: they count as wrong"))
    if runner.oracle.random:
        detail = "outputs differ from pass to pass: the mean of 20 passes decides"
        found.append(Flag(name="random", severity="suspect", detail=detail))
    size, k = runner.logits.numel(), subject.clipped(runner.logits)
    if k > max(MIN_CLIPPED, subject.CLIPPED * size) and not share:
        detail = (
            f"{k / size:.1%} of the logits are exactly the largest or the smallest of all: labels, or a clip, ReLU or "
            "saturated function after the last layer, where gradients vanish"
        )
        found.append(Flag(name="clipped", severity="note", k=k, n=size, detail=detail))
    return found


def outside_ball(runner: Runner, attacks: Sequence[Attack]) -> list[Flag]:
    """Points that attacks from outside returned beside the ball: suspect where most are, and no other attack ran."""
    k, n = runner.outside, runner.returned
    if not k:
        return []
    detail = (
        f"{k} of the {n} points that attacks from outside returned lay outside of the ball and were ignored: a "
        "point is at most eps from its image, and in [0, 1]"
    )
    alone = all(isinstance(one, WholeBatch) for one in attacks)
    return [Flag(name="outside-ball", severity="suspect" if alone and 2 * k > n else "note", k=k, n=n, detail=detail)]


def refused(runner: Runner, fates: Fates, eps: Sequence[float]) -> list[Flag]:
    """Hits that the model refused, and the images that stand although they fell on the search copy."""
    if not runner.unverified:
        return []
    places, n = runner.unresolved(fates, eps), len(fates)
    k, enough = len(places), math.ceil(REFUSED * n)
    detail = f"the model itself refused {runner.unverified} hits of the search copy; {k} images stand that fell on it"
    if k < enough:
        return [Flag(name="unverified", severity="note", k=k, n=n, detail=detail)]
    return [Flag(name="unverified", severity="suspect", eps=eps[places[enough - 1]], k=k, n=n, detail=detail)]


def black_box(fates: Fates, attacks: Sequence[Attack], eps: Sequence[float], found: Sequence[Flag]) -> list[Flag]:
    """Images that only a black-box attack felled: few on honest models, many where gradients are masked.

    A black-box attack that runs before all others says nothing about their gradients. `found`: the other flags.
    """
    first = next((place for place, attack in enumerate(attacks) if attack.follows_gradient()), len(attacks))
    places = defaultdict[str, list[int]](list)
    for number, attack in enumerate(attacks):
        if number > first and not attack.follows_gradient():
            places[attack.name].append(number)
    return [flag for name, numbers in places.items() for flag in black_box_ahead(name, numbers, fates, eps, found)]


def not_repeatable(
    runner: Runner, fates: Fates, attacks: Sequence[Attack], eps: Sequence[float], *, probes: bool
) -> list[Flag]:
    """Attacks from outside, unless a repetition of one batch, near half the clean accuracy, agrees with the first."""
    place, found = half_accuracy_point(fates, eps), []
    for one in {attack.name: attack for attack in attacks}.values():
        sizes = [size for name, size in runner.first_batches if name == one.name]
        if not isinstance(one, WholeBatch) or not one.from_outside or not sizes or place is None:
            continue
        at = min(sizes, key=lambda size: abs(size - eps[place]))
        k = n = None
        if not probes:
            detail = "it was not repeated (--probes off)"
        elif runner.oracle.random:
            detail = "the model's outputs are random, so it was not repeated"
        else:
            runner.journal.poll()
            try:
                k, n = runner.moved(one, at)
            except UserError as error:
                detail = f"a repetition failed: {error}"
            else:
                if not k:
                    continue
                detail = f"a repetition with the same seed changed the verdicts of {k} of {n} images at eps {at:g}"
        text = f"{one.name}: {detail}, so the accuracy may be another in another run"
        found.append(Flag(name="not-repeatable", severity="note", eps=at if k else None, k=k, n=n, detail=text))
    return found


def spectrum(runner: Runner, fates: Fates, attacks: Sequence[Attack], eps: Sequence[float]) -> list[Flag]:
    """How the clipping to [0, 1] changed the spectrum of perturbations in the fourier-linf norm."""
    felled = {row: point for row, point in runner.points.items() if fates.by[row] >= 0}
    if runner.norm != FourierLinf.norm or not felled:
        return []
    most, shares = 0.0, defaultdict[int, list[Tensor]](list)
    for rows in torch.tensor(list(felled)).split(runner.oracle.slots):
        x, _ = runner.data.batch(rows.to(runner.data.device))
        size = torch.tensor([eps[fates.fell[row]] for row in rows], dtype=torch.float64, device=x.device)
        d = torch.stack([felled[row] for row in rows.tolist()]).to(x).double() - x.double()
        most = max(most, float((around(runner.norm, x, size).size(d) / size).max()))
        by = torch.from_numpy(fates.by[rows.numpy()])
        for number in by.unique().tolist():
            if (band := getattr(attacks[number], "band", None)) is not None:
                shares[number].append(leak(d[(by == number).to(d.device)], band).cpu())
    detail = f"max |F d| is at most {most:.3f} eps on the {len(felled)} adversarial examples, clipped to [0, 1]"
    found = [note("spectrum", detail)]
    for number, parts in sorted(shares.items()):
        share, band = torch.cat(parts), attacks[number].band  # type: ignore[attr-defined]
        detail = (
            f"{attacks[number].name}: after clipping to [0, 1], {float(share.median()):.1%} of the energy (median; at "
            f"most {float(share.max()):.1%}) lies outside of the band {band[0]:g},{band[1]:g}"
        )
        found.append(note("band-leak", detail))
    return found


def batch_dependence(probe: Probe) -> list[Flag]:
    """Whether the logits of an image depend on the rest of its batch."""
    s = probe.stability()
    detail = f"in other batches logits differ by {s.difference:.1e} of their range, {s.flips} of {s.n} verdicts change"
    if s.difference > MAX_BATCH_DIFFERENCE or s.flips > 1:
        detail = f"{detail}: they must not depend on the batch"
        return [Flag(name="batch", severity="suspect", k=s.flips, n=s.n, detail=detail)]
    return [note("batch", detail)] if s.by_order or s.flips else []


def gradients(probe: Probe, attacks: Sequence[Attack]) -> list[Flag]:
    """Gradients that are zero, NaN or infinite, margins lost in rounding, and answers that flatten the loss.

    The cross-entropy's gradient counts only where all `attacks`, those that follow a gradient, climb it: other losses
    do not depend on the scale of the logits.
    """
    g = probe.gradients()
    flat = f"the gradient is zero on {g.zero_margin / g.n:.1%} of the images"
    found = graded("zero-gradient", g.zero_margin, g.n, BAD_GRADIENT, f"{flat}: attacks that follow it do not move")
    if all(one.needs_small_logits() for one in attacks):
        only = max(g.zero_ce - g.zero_margin, 0)
        saturated = f"the cross-entropy's gradient, not the margin's, underflows on {only / g.n:.1%} of the images"
        saturated += ": logits are very large; use an attack with the loss cw or dlr"
        found += graded("saturated", only, g.n, BAD_GRADIENT, saturated)
    bad = f"NaN or infinite gradients on {g.bad / g.n:.1%} of the images"
    found += graded("nan-gradient", g.bad, g.n, BAD_GRADIENT, bad)
    rounded = f"the margin of {g.rounded / g.n:.1%} of the images is lost in the rounding of very large logits"
    found += graded("rounding", g.rounded, g.n, BAD_GRADIENT, rounded)
    if subject.are_probabilities(probe.runner.logits):
        detail = "outputs are probabilities or a multiple of them, so gradients vanish: return logits"
        found.append(Flag(name="probabilities", severity="suspect", detail=detail))
    return found


def noise(probe: Probe, fates: Fates, eps: Sequence[float]) -> list[Flag]:
    """Images that fall to random noise, and logits that jump right beside the images."""
    fell, n = probe.jitter(), len(probe.correct_rows)
    detail = (
        f"{fell / n:.1%} of the images are recognised, but no point right beside them is: does the model know them?"
    )
    found = graded("memorised", fell, n, JITTER, detail, broken=0.5)
    if not probe.runner.oracle.random:
        count = probe.jumps()
        detail = (
            f"the logits of {count / n:.1%} of the images jump right beside them: they are quantised, or the model "
            "knows the images"
        )
        bounds = (JUMPS[0], 1.0) if is_black_box(probe.net) else JUMPS  # trees and votes jump everywhere
        found += graded("discontinuous", count, n, bounds, detail, broken=0.5)
    places, n = probe.noise(fates, eps)
    if len(places):
        fell = len(places)
        enough = max(int(NOISE[1] * n) + 1, MIN_SUSPECT_IMAGES)
        at = eps[places[min(enough, fell) - 1]]  # the smallest at which so many have fallen
        detail = f"random noise inside the ball fells {fell / n:.1%} of the images that stand under the attacks"
        found += graded("noise-wins", fell, n, NOISE, detail, eps=at, broken=0.5)
    return found


def at_lowest(place: int | None, eps: Sequence[float], flags_at: Callable[[int], list[Flag]]) -> list[Flag]:
    """The flags at grid point `place`; those that doubt the number, at the lowest eps at which they still do."""
    if place is None:
        return []
    found = {flag.name: flag for flag in flags_at(place)}
    for lower in range(place - 1, -1, -1):
        doubted = {name for name, flag in found.items() if flag.decides()}
        if eps[lower] == 0 or not doubted:
            break
        again = {flag.name: flag for flag in flags_at(lower) if flag.decides() and flag.name in doubted}
        if not again:
            break
        found |= again
    return list(found.values())


def pgd_at(probe: Probe, fates: Fates, eps: Sequence[float], place: int, *, followed: bool) -> list[Flag]:
    """PGD on the margin, step by step, at one grid point.

    If no attack of the evaluation `followed` a gradient, only what PGD finds beyond them counts.
    """
    runner, rows, size = probe.runner, probe.ascent_rows, eps[place]
    n, at, short_pgd, long_pgd = len(rows), f"at eps {size:g}", f"PGD-{SHORT_PGD_STEPS}", f"PGD-{LONG_PGD_STEPS}"
    trace, found = probe.ascend(size, LONG_PGD_STEPS), []
    short, long = trace.fallen(SHORT_PGD_STEPS), trace.fallen(LONG_PGD_STEPS)
    if not runner.oracle.random:
        missed = int((trace.felled.isfinite().numpy() & fates.standing(place)[rows]).sum())
        detail = f"{long_pgd} fells {missed / n:.1%} more of the images {at}: the attacks are weaker than it"
        found += graded("weak-attack", missed, n, WEAK_ATTACK, detail, eps=size, broken=NEVER_BROKEN)
    if not runner.oracle.random and followed:
        stuck = int(trace.stuck.sum())
        detail = f"PGD brings {stuck / n:.1%} of the images no nearer to failure {at}"
        found += graded("loss-not-rising", stuck, n, STUCK, detail, eps=size)
        detail = f"{long_pgd} fells {long / n:.1%} of the images {at}, {short_pgd} {short / n:.1%}: use more steps"
        found += graded("more-steps", long - short, n, MORE_STEPS, detail, eps=size)
    if declared(runner.net) and followed:
        plain, other = (
            probe.ascend(size, SHORT_PGD_STEPS, straight_through=on).fallen(SHORT_PGD_STEPS) for on in (False, True)
        )
        detail = f"straight-through {short_pgd} fells {other / n:.1%} of the images {at}, plain {plain / n:.1%}"
        # A note at most where the attacks use straight-through gradients themselves.
        used = (STRAIGHT_THROUGH[0], 1.0) if probe.straight_through else STRAIGHT_THROUGH
        detail = f"{detail}: use straight_through=true"
        found += graded("straight-through", other - plain, n, used, detail, eps=size)
    return found + non_finite(int(trace.bad.sum()), n, size)


def pgd_at_grey(probe: Probe) -> list[Flag]:
    """PGD at Linf eps 0.5, where every ball contains the same grey image, so that no model can be robust."""
    n, runner = len(probe.ascent_rows), probe.runner
    trace, name = probe.ascend(GREY_EPS, SHORT_PGD_STEPS), f"PGD-{SHORT_PGD_STEPS}"
    stand = n - trace.fallen(SHORT_PGD_STEPS)
    labels = runner.data.labels[torch.from_numpy(probe.ascent_rows).to(runner.data.device)]
    chance = max(float(labels.bincount().max()) / n, 1 / runner.logits.shape[1])
    found = []
    if wilson(stand, n).low > chance:
        detail = f"{name} leaves {stand / n:.1%} standing at eps 0.5, above chance ({chance:.1%}): it is misled"
        found.append(Flag(name="above-chance", severity="suspect", k=stand, n=n, detail=detail))
    return found + non_finite(int(trace.bad.sum()), n, None)


def non_finite(bad: int, n: int, eps: float | None) -> list[Flag]:
    """NaN or infinite logits on `bad` of `n` images under PGD."""
    detail = f"NaN or infinite logits under attack on {bad / n:.1%} of the images: they count as wrong"
    return [Flag(name="non-finite-attacked", severity="broken", eps=eps, k=bad, n=n, detail=detail)] if bad else []


def from_starts(search: Beyond) -> list[Flag]:
    """Images that stand at one eps, under plain PGD too, and fall to PGD from other starts."""
    found, n, eps = [], len(search.rows), search.eps
    for name, what, fell in search.from_starts():
        detail = f"{what} fells {fell} of {n} images that stand under the attacks and plain PGD at eps {eps:g}"
        found += graded(name, fell, n, FROM_STARTS, detail, eps=eps, broken=NEVER_BROKEN)
    return found


def by_labels(search: Beyond, eps: Sequence[float]) -> list[Flag]:
    """Images that stand at the largest of `eps` and fall to RayS. It is raised at the lowest with enough of them."""
    n, queries = len(search.rows), search.affordable_queries()
    if not n or queries < MIN_QUERIES or search.runner.norm not in RayS.norms:
        return []
    distances = search.by_labels(queries)
    found: list[Flag] = []
    for size in (size for size in eps if size > 0):
        fell = int((distances <= size).sum())
        detail = f"RayS, by {queries} labels each, fells {fell} of {n} images that stand at eps {size:g}"
        raised = graded("found-by-labels", fell, n, BY_LABELS, detail, eps=size, at_least=2, broken=NEVER_BROKEN)
        found = raised or found
        if any(flag.decides() for flag in raised):
            break
    return found


def note(name: str, detail: str) -> Flag:
    """A flag of severity "note"."""
    return Flag(name=name, severity="note", detail=detail)


def graded(
    name: str,
    k: int,
    n: int,
    bounds: tuple[float, float],
    detail: str,
    *,
    eps: float | None = None,
    broken: float = BROKEN_SHARE,
    at_least: int = MIN_SUSPECT_IMAGES,
) -> list[Flag]:
    """At most one flag, by the share k / n of the images.

    It is a note above bounds[0], suspect above bounds[1], and broken if the share is also at least `broken`. For fewer
    than `at_least` images it is a note at most.
    """
    severity: Severity = "note"
    if k > bounds[1] * n and k >= at_least:
        severity = "broken" if k >= broken * n else "suspect"
    return [Flag(name=name, severity=severity, eps=eps, k=k, n=n, detail=detail)] if k > bounds[0] * n else []


def half_accuracy_point(fates: Fates, eps: Sequence[float]) -> int | None:
    """The grid point above eps 0 whose accuracy is nearest to half the clean one, the larger of two equally near."""
    places = [place for place, size in enumerate(eps) if size > 0]
    half = fates.clean.mean() / 2
    return min(reversed(places), key=lambda place: abs(fates.standing(place).mean() - half), default=None)
