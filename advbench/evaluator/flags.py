"""Flags: reasons to doubt a measured robust accuracy. Every evaluation raises those that apply.

The severities are "note": a fact to know beside the number; "suspect": attacks on this model may have failed for a
reason other than robustness; "broken": they did. Sources: the checks of AutoAttack, Carlini et al. 2019 (1902.06705),
Pintor et al. 2022 (2106.09947).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack
from advbench.evaluator.probes import GREY_EPS, LONG_PGD_STEPS, SHORT_PGD_STEPS, Probe, declared
from advbench.evaluator.runner import Runner
from advbench.record import Fates, Flag
from advbench.statistics import wilson
from advbench.threat import FourierLinf, around, leak

# Shares of the images: above the first a flag is raised as a note, above the second it is suspect. Honest models,
# standard and robust, stay well under the second: tests/evaluator/test_flags.py.
BLACK_BOX = (0.002, 0.02)
BAD_GRADIENT = (0.0, 0.1)
STUCK = (0.02, 0.2)
MORE_STEPS = (0.1, 0.25)
STRAIGHT_THROUGH = (0.02, 0.05)
WEAK_ATTACK = (0.02, 0.1)
NOISE = (0.0, 0.02)
JITTER = (0.1, 0.1)
JUMPS = (0.02, 0.25)
BROKEN_SHARE = 0.9  # an attack without a gradient on so many images has not taken place
NEVER_BROKEN = 2.0  # above every share: the flag is suspect at most
MIN_SUSPECT_IMAGES = 4  # a flag raised by fewer images is a note
MAX_BATCH_DIFFERENCE = 1e-2  # of the largest logit: a larger difference is more than rounding


def is_random(net: nn.Module, data: Dataset) -> bool:
    """Whether two passes over the same images give different logits; `net` is in eval mode."""
    x, _ = data.batch(slice(0, 64))
    with torch.no_grad():
        first, second = net(x), net(x)
    return not torch.equal(first.nan_to_num(), second.nan_to_num())


def judge(
    runner: Runner,
    fates: Fates,
    attacks: Sequence[Attack],
    eps: Sequence[float],
    *,
    in_train_mode: bool,
    notes: Sequence[str],
) -> list[Flag]:
    """The flags of a finished evaluation, for which the model is probed on a few of the images."""
    found = [note("model", text) for text in notes]
    found += facts(runner, in_train_mode=in_train_mode)
    found += black_box(fates, attacks, eps)
    found += spectrum(runner, fates, attacks, eps)
    probe = Probe(runner, attacks)
    if not runner.oracle.random:
        found += batch_dependence(probe)
    if len(probe.correct_rows):
        found += gradients(probe)
        found += noise(probe, fates, eps)
        found += gradient_ascent(probe, fates, eps)
    return found


def facts(runner: Runner, *, in_train_mode: bool) -> list[Flag]:
    """Flags on the clean logits, the images and the counts of the search."""
    found = []
    n, classes = runner.logits.shape
    low, high = wilson(n // 2, n)
    if n < 1000:
        found.append(note("small-n", f"{n} images: intervals up to +-{50 * (high - low):.1f} points"))
    if any(module.training for module in runner.net.modules()):
        found.append(Flag(name="train-mode", severity="suspect", detail="the model stays in train mode"))
    elif in_train_mode:
        found.append(note("train-mode", "the model came in train mode; eval mode was used"))
    if classes < 4:
        found.append(note("few-classes", f"{classes} classes: the margin loss replaces DLR"))
    if float(runner.data.images.max()) > runner.data.scale:
        detail = f"images reach {float(runner.data.images.max()) / runner.data.scale:g}: they must lie in [0, 1]"
        found.append(Flag(name="outside", severity="broken", detail=detail))
    share = float((~runner.logits.isfinite()).any(1).double().mean())
    if share or runner.nonfinite:
        detail = f"NaN or infinite logits on {share:.1%} of the clean images and {runner.nonfinite} attacked ones"
        found.append(Flag(name="non-finite", severity="broken", detail=f"{detail}: they count as wrong"))
    if runner.oracle.random:
        detail = "outputs differ from pass to pass: the mean of 20 passes decides"
        found.append(Flag(name="random", severity="suspect", detail=detail))
    if _probabilities(runner.logits):
        detail = "outputs are probabilities or a multiple of them, so gradients vanish: return logits"
        found.append(Flag(name="probabilities", severity="suspect", detail=detail))
    if runner.unverified:
        found.append(note("unverified", f"the model itself refused {runner.unverified} hits of the search copy"))
    if runner.outside:
        detail = f"{runner.outside} points of the attack lay outside of the ball and were ignored"
        found.append(note("outside-ball", detail))
    return found


def black_box(fates: Fates, attacks: Sequence[Attack], eps: Sequence[float]) -> list[Flag]:
    """Images that only a black-box attack felled: few on honest models, many where gradients are masked.

    Counted at the eps with the most of them. Without that attack the accuracy there would be higher by their share.
    """
    found = []
    gradients = False
    for number, attack in enumerate(attacks):
        if attack.follows_gradient():
            gradients = True
        elif gradients:  # a black-box attack that runs first says nothing about the gradients of later ones
            alone = fates.by == number
            counts = [int((alone & (fates.fell == place)).sum()) for place in range(len(eps))]
            count = max(counts)
            at = (
                f"{attack.name} alone felled {count / len(fates):.1%} of the images at eps {eps[counts.index(count)]:g}"
            )
            found += graded(f"{attack.name}-wins", count, len(fates), BLACK_BOX, f"{at}: gradients may be masked")
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
    detail = f"in other batches logits differ by {s.difference:.1e} of the largest, {s.flips} of {s.n} verdicts change"
    if s.difference > MAX_BATCH_DIFFERENCE or s.flips > 1:
        return [Flag(name="batch", severity="suspect", detail=f"{detail}: they must not depend on the batch")]
    return [note("batch", detail)] if s.by_order or s.flips else []


def gradients(probe: Probe) -> list[Flag]:
    """Gradients that are zero, NaN or infinite, and margins lost in rounding."""
    g = probe.gradients()
    flat = f"the gradient is zero on {g.zero_margin / g.n:.1%} of the images"
    found = graded("zero-gradient", g.zero_margin, g.n, BAD_GRADIENT, f"{flat}: attacks that follow it do not move")
    only = g.zero_ce - g.zero_margin
    saturated = f"the cross-entropy's gradient, not the margin's, underflows on {max(only, 0) / g.n:.1%} of the images"
    found += graded("saturated", only, g.n, BAD_GRADIENT, f"{saturated}: logits are very large")
    bad = f"NaN or infinite gradients on {g.bad / g.n:.1%} of the images"
    found += graded("nan-gradient", g.bad, g.n, BAD_GRADIENT, bad)
    rounded = f"the margin of {g.rounded / g.n:.1%} of the images is lost in the rounding of very large logits"
    return found + graded("rounding", g.rounded, g.n, BAD_GRADIENT, rounded)


def noise(probe: Probe, fates: Fates, eps: Sequence[float]) -> list[Flag]:
    """Images that fall to random noise, and logits that jump right beside the images."""
    fell, n = probe.jitter(), len(probe.correct_rows)
    detail = f"{fell / n:.1%} of the correctly classified images are wrong after noise of half a quantisation step"
    found = graded("memorised", fell, n, JITTER, f"{detail}: does the model know these very images?", broken=0.5)
    if not probe.runner.oracle.random:
        count = probe.jumps()
        detail = f"the logits of {count / n:.1%} of the images jump right beside them"
        found += graded("discontinuous", count, n, JUMPS, f"{detail}: does the model know them?", broken=0.5)
    fell, n = probe.noise(fates, eps)
    if n:
        detail = f"random noise inside the ball fells {fell / n:.1%} of the images that stand under the attacks"
        found += graded("noise-wins", fell, n, NOISE, detail, broken=0.5)
    return found


def gradient_ascent(probe: Probe, fates: Fates, eps: Sequence[float]) -> list[Flag]:
    """PGD step by step: at the eps where accuracy is about half, and at Linf eps 0.5, where no model can be robust."""
    found, place = [], _half_accuracy_point(fates, eps)
    runner, n, bad = probe.runner, len(probe.ascent_rows), 0
    short_pgd, long_pgd = f"PGD-{SHORT_PGD_STEPS}", f"PGD-{LONG_PGD_STEPS}"
    if place is not None:
        trace = probe.ascend(eps[place], LONG_PGD_STEPS)
        short, long = trace.fallen(SHORT_PGD_STEPS), trace.fallen(LONG_PGD_STEPS)
        at, bad = f"at eps {eps[place]:g}", int(trace.bad.sum())
        if not runner.oracle.random:
            stuck = int(trace.stuck.sum())
            detail = f"PGD brings {stuck / n:.1%} of the images no nearer to failure {at}"
            found += graded("loss-not-rising", stuck, n, STUCK, detail)
            detail = f"{long_pgd} fells {long / n:.1%} of the images {at}, {short_pgd} {short / n:.1%}: use more steps"
            found += graded("more-steps", long - short, n, MORE_STEPS, detail)
            missed = int((trace.felled.isfinite().numpy() & fates.standing(place)[probe.ascent_rows]).sum())
            detail = f"{long_pgd} fells {missed / n:.1%} more of the images {at}: the attacks are weaker than it"
            found += graded("weak-attack", missed, n, WEAK_ATTACK, detail, broken=NEVER_BROKEN)
        if declared(runner.net):
            plain, other = (
                probe.ascend(eps[place], SHORT_PGD_STEPS, straight_through=on).fallen(SHORT_PGD_STEPS)
                for on in (False, True)
            )
            detail = f"straight-through {short_pgd} fells {other / n:.1%} of the images {at}, plain {plain / n:.1%}"
            # A note at most where the attacks use straight-through gradients themselves.
            used = (STRAIGHT_THROUGH[0], 1.0) if probe.straight_through else STRAIGHT_THROUGH
            found += graded("straight-through", other - plain, n, used, f"{detail}: use straight_through=true")
    if runner.norm == "linf":
        trace = probe.ascend(GREY_EPS, SHORT_PGD_STEPS)
        bad = max(bad, int(trace.bad.sum()))
        stand = n - trace.fallen(SHORT_PGD_STEPS)
        labels = runner.data.labels[torch.from_numpy(probe.ascent_rows).to(runner.data.device)]
        chance = max(float(labels.bincount().max()) / n, 1 / runner.logits.shape[1])
        detail = f"{short_pgd} leaves {stand / n:.1%} standing at eps 0.5, above chance ({chance:.1%}): it is misled"
        if wilson(stand, n).low > chance:
            found.append(Flag(name="above-chance", severity="suspect", detail=detail))
    if bad:
        detail = f"NaN or infinite logits under attack on {bad / n:.1%} of the images: they count as wrong"
        found.append(Flag(name="non-finite-attacked", severity="broken", detail=detail))
    return found


def note(name: str, detail: str) -> Flag:
    """A flag of severity "note"."""
    return Flag(name=name, severity="note", detail=detail)


def graded(
    name: str, count: int, n: int, bounds: tuple[float, float], detail: str, *, broken: float = BROKEN_SHARE
) -> list[Flag]:
    """At most one flag, by the share count / n of the images.

    It is a note above bounds[0], suspect above bounds[1], and broken if the share is also at least `broken`. For fewer
    than MIN_SUSPECT_IMAGES images it is a note at most.
    """
    share = count / n
    severity: Literal["note", "suspect", "broken"] = "note"
    if share > bounds[1] and count >= MIN_SUSPECT_IMAGES:
        severity = "broken" if share >= broken else "suspect"
    return [Flag(name=name, severity=severity, detail=detail)] if share > bounds[0] else []


def _half_accuracy_point(fates: Fates, eps: Sequence[float]) -> int | None:
    """The grid point above eps 0 whose accuracy is nearest to half the clean one, the larger of two equally near."""
    places = [place for place, size in enumerate(eps) if size > 0]
    half = fates.clean.mean() / 2
    return min(reversed(places), key=lambda place: abs(fates.standing(place).mean() - half), default=None)


def _probabilities(logits: torch.Tensor) -> bool:
    total = logits.sum(1)
    return bool((logits.min() >= 0) & (total.min() > 0) & (total.max() - total.min() <= 1e-4 * total.max()))
