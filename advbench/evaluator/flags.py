"""Is the number to be believed? Reasons to doubt it, raised on every evaluation.

A note is a fact to know; suspect: attacks on this model may have failed for a reason that is not robustness; broken:
they did. Sources: the checks of AutoAttack, Carlini et al. 2019 (1902.06705), Pintor et al. 2022 (2106.09947).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack
from advbench.evaluator.probes import HALF, LONG, SHORT, Probe, declared
from advbench.evaluator.runner import Runner
from advbench.record import Fates, Flag
from advbench.statistics import wilson
from advbench.threat import FourierLinf, around, leak

# Shares of the images above which a flag is a note, suspect. Honest models, standard and robust, stay
# well under the second number: tests/evaluator/test_flags.py.
SQUARE = (0.002, 0.02)
ZERO = (0.0, 0.1)
STUCK = (0.02, 0.2)
STEPS = (0.1, 0.25)
THROUGH = (0.02, 0.05)
WEAK = (0.02, 0.1)
NEVER = 2.0  # a share that there is not
NOISE = (0.0, 0.02)
JITTER = (0.1, 0.1)
JUMPS = (0.02, 0.25)
BROKEN = 0.9  # without a gradient on so many, the attack has not taken place
FEW = 4  # images on which no flag of a share is more than a note
DIFFERENCE = 1e-2  # of the largest logit: more is no rounding


def is_random(net: nn.Module, data: Dataset) -> bool:
    """Whether two passes over the same images give different outputs. `net` is in eval mode."""
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
    """The flags of a finished evaluation; the model is probed on a few of the images."""
    found = [note("model", text) for text in notes]
    found += facts(runner, in_train_mode=in_train_mode)
    found += black_box(fates, attacks, eps)
    found += spectrum(runner, fates, attacks, eps)
    probe = Probe(runner, attacks)
    if not runner.oracle.random:
        found += batch_dependence(probe)
    if len(probe.right):
        found += gradients(probe)
        found += noise(probe, fates, eps)
        found += gradient_ascent(probe, fates, eps)
    return found


def facts(runner: Runner, *, in_train_mode: bool) -> list[Flag]:
    """What the clean answers, the images and the counts of the search show."""
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
        found.append(note("few-classes", f"{classes} classes: DLR replaced by the margin"))
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
        detail = "outputs are probabilities, or a multiple of them: give logits, or gradients vanish"
        found.append(Flag(name="probabilities", severity="suspect", detail=detail))
    if runner.unverified:
        found.append(
            note("unverified", f"{runner.unverified} hits of the search copy were refused by the model itself")
        )
    if runner.outside:
        detail = f"{runner.outside} points of the attack lay outside of the ball and count for nothing"
        found.append(note("outside-ball", detail))
    return found


def black_box(fates: Fates, attacks: Sequence[Attack], eps: Sequence[float]) -> list[Flag]:
    """Square or transfer fell what gradients could not: by a little on honest nets, by much where they are masked.

    Judged at the eps where it matters most: there the accuracy without them is that much higher.
    """
    found = []
    gradients = False
    for number, attack in enumerate(attacks):
        if attack.follows_gradient():
            gradients = True
        elif gradients:  # what black boxes felled that ran before says nothing of the others
            alone = fates.by == number
            counts = [int((alone & (fates.fell == place)).sum()) for place in range(len(eps))]
            count = max(counts)
            at = (
                f"{attack.name} alone felled {count / len(fates):.1%} of the images at eps {eps[counts.index(count)]:g}"
            )
            found += graded(f"{attack.name}-wins", count, len(fates), SQUARE, f"{at}: gradients may be masked")
    return found


def spectrum(runner: Runner, fates: Fates, attacks: Sequence[Attack], eps: Sequence[float]) -> list[Flag]:
    """What the cut to [0, 1] made of perturbations that are bounded by frequency."""
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
    found = [note("spectrum", f"max |F d| is at most {most:.3f} eps on the {len(felled)} points found, within [0, 1]")]
    for number, parts in sorted(shares.items()):
        share, band = torch.cat(parts), attacks[number].band  # type: ignore[attr-defined]
        detail = (
            f"{attacks[number].name}: with [0, 1] {float(share.median()):.1%} of the energy (median; at most "
            f"{float(share.max()):.1%}) lies outside of the band {band[0]:g},{band[1]:g}"
        )
        found.append(note("band-leak", detail))
    return found


def batch_dependence(probe: Probe) -> list[Flag]:
    """Answers must not depend on what else is in the batch."""
    s = probe.stability()
    detail = f"logits differ by {s.difference:.1e} of the largest, {s.flips} of {s.n} answers change, with the batch"
    if s.difference > DIFFERENCE or s.flips > 1:
        return [Flag(name="batch", severity="suspect", detail=f"{detail}: it must not matter")]
    return [note("batch", detail)] if s.by_order or s.flips else []


def gradients(probe: Probe) -> list[Flag]:
    """Gradients that are not there, or are no numbers."""
    g = probe.gradients()
    flat = f"the gradient is zero on {g.zero_margin / g.n:.1%} of the images"
    found = graded("zero-gradient", g.zero_margin, g.n, ZERO, f"{flat}: attacks that follow it stand still")
    only = g.zero_ce - g.zero_margin
    saturated = (
        f"the cross-entropy's gradient, but not the margin's, underflows on {max(only, 0) / g.n:.1%} of the images"
    )
    found += graded("saturated", only, g.n, ZERO, f"{saturated}: logits are very large")
    found += graded("nan-gradient", g.bad, g.n, ZERO, f"NaN or infinite gradients on {g.bad / g.n:.1%} of the images")
    rounded = f"the margin of {g.rounded / g.n:.1%} of the images is no more than rounding of very large logits"
    return found + graded("rounding", g.rounded, g.n, ZERO, rounded)


def noise(probe: Probe, fates: Fates, eps: Sequence[float]) -> list[Flag]:
    """Noise that no attack should be needed for."""
    fell, n = probe.jitter(), len(probe.right)
    detail = f"{fell / n:.1%} of the correctly classified images are wrong after noise of half a quantisation step"
    found = graded("memorised", fell, n, JITTER, f"{detail}: are these very images known to the model?", broken=0.5)
    if not probe.runner.oracle.random:
        count = probe.jumps()
        detail = f"the logits of {count / n:.1%} of the images jump right beside them"
        found += graded("discontinuous", count, n, JUMPS, f"{detail}: does the model know them?", broken=0.5)
    fell, n = probe.noise(fates, eps)
    if n:
        detail = f"random noise inside the ball fells {fell / n:.1%} of the images that stand against the attacks"
        found += graded("noise-wins", fell, n, NOISE, detail, broken=0.5)
    return found


def gradient_ascent(probe: Probe, fates: Fates, eps: Sequence[float]) -> list[Flag]:
    """PGD, step by step, at the eps that tells most, and at Linf eps 0.5 where no model can stand."""
    found, place = [], _telling(fates, eps)
    runner, n, bad = probe.runner, len(probe.few), 0
    if place is not None:
        trace = probe.ascend(eps[place], LONG)
        short, long = trace.fallen(SHORT), trace.fallen(LONG)
        at, bad = f"at eps {eps[place]:g}", int(trace.bad.sum())
        if not runner.oracle.random:
            stuck = int(trace.stuck.sum())
            detail = f"PGD brings {stuck / n:.1%} of the images no nearer to failure {at}"
            found += graded("loss-not-rising", stuck, n, STUCK, detail)
            detail = (
                f"PGD-{LONG} fells {long / n:.1%} of the images {at}, PGD-{SHORT} {short / n:.1%}: few steps mislead"
            )
            found += graded("more-steps", long - short, n, STEPS, detail)
            missed = int((trace.felled.isfinite().numpy() & fates.standing(place)[probe.few]).sum())
            detail = f"PGD-{LONG} fells {missed / n:.1%} of the images more {at}: it is the better measure"
            found += graded("weak-attack", missed, n, WEAK, detail, broken=NEVER)
        if declared(runner.net):
            plain, other = (probe.ascend(eps[place], SHORT, through=on).fallen(SHORT) for on in (False, True))
            detail = f"straight-through PGD-{SHORT} fells {other / n:.1%} of the images {at}, plain {plain / n:.1%}"
            used = (THROUGH[0], 1.0) if probe.through else THROUGH
            found += graded("straight-through", other - plain, n, used, f"{detail}: use straight_through=true")
    if runner.norm == "linf":
        trace = probe.ascend(HALF, SHORT)
        bad = max(bad, int(trace.bad.sum()))
        stand = n - trace.fallen(SHORT)
        labels = runner.data.labels[torch.from_numpy(probe.few).to(runner.data.device)]
        chance = max(float(labels.bincount().max()) / n, 1 / runner.logits.shape[1])
        detail = f"PGD-{SHORT} leaves {stand / n:.1%} standing at eps 0.5, above chance ({chance:.1%}): it is misled"
        if wilson(stand, n).low > chance:
            found.append(Flag(name="above-chance", severity="suspect", detail=detail))
    if bad:
        detail = f"NaN or infinite logits under attack on {bad / n:.1%} of the images: they count as wrong"
        found.append(Flag(name="non-finite-attacked", severity="broken", detail=detail))
    return found


def note(name: str, detail: str) -> Flag:
    """A fact."""
    return Flag(name=name, severity="note", detail=detail)


def graded(
    name: str, count: int, n: int, bounds: tuple[float, float], detail: str, *, broken: float = BROKEN
) -> list[Flag]:
    """A flag by the share of images: above `bounds` a note, suspect; from `broken`, broken. Few are a note at most."""
    share = count / n
    severity: Literal["note", "suspect", "broken"] = "note"
    if share > bounds[1] and count >= FEW:
        severity = "broken" if share >= broken else "suspect"
    return [Flag(name=name, severity=severity, detail=detail)] if share > bounds[0] else []


def _telling(fates: Fates, eps: Sequence[float]) -> int | None:
    """The place on the grid, above 0, where the accuracy is nearest to half the clean one; the larger of equals."""
    places = [place for place, size in enumerate(eps) if size > 0]
    half = fates.clean.mean() / 2
    return min(reversed(places), key=lambda place: abs(fates.standing(place).mean() - half), default=None)


def _probabilities(logits: torch.Tensor) -> bool:
    total = logits.sum(1)
    return bool((logits.min() >= 0) & (total.min() > 0) & (total.max() - total.min() <= 1e-4 * total.max()))
