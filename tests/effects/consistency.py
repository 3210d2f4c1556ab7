"""Consistency beside AT of equal compute and the same augmentation: the gap between the best and the last epoch."""

from __future__ import annotations

from evidence import Claim, Effect, Evaluation, Runs
from findings import Numbers, Verdict, mean_sd, verdict

LONG = 120
CROP = "augment.crop=1"
CONTROL = Runs("AT long", "pgd-at", (CROP,), epochs=LONG)
CONSISTENT = Runs("consistency long", "consistency", epochs=LONG // 2)
ALL = (CONTROL, CONSISTENT)
LAST = "last.safetensors"


def gap(numbers: Numbers) -> tuple[str, Verdict]:
    """The last epoch is less far below the best one than in AT with the same augmentation and compute."""
    found, parts = {}, []
    for runs in ALL:
        best, last = (numbers.robust(key, "0.1")[0] for key in (runs.label, f"{runs.label} last"))
        found[runs.label] = best - last
        parts.append(f"{runs.label} best {best:.1f}, last {last:.1f}")
    return f"at 0.1: {'; '.join(parts)}", verdict(found[CONTROL.label] - found[CONSISTENT.label] >= 2)


def last_epoch(numbers: Numbers) -> tuple[str, Verdict]:
    """More robust at the last epoch than AT with the same augmentation and compute."""
    keys = {runs.label: f"{runs.label} last" for runs in ALL}
    clean = {label: numbers.clean(key) for label, key in keys.items()}
    robust = {label: numbers.robust(key, "0.1") for label, key in keys.items()}
    ours = "; ".join(f"{label}: {mean_sd(clean[label])} clean, {mean_sd(robust[label])} at 0.1" for label in keys)
    return ours, verdict(robust[CONSISTENT.label][0] - robust[CONTROL.label][0] >= 2)


EFFECT = Effect(
    system="consistency",
    source="Consistency regularisation, Tack et al. 2022, arXiv:2103.04623; digits allow crops by a pixel only",
    runs=ALL,
    evaluations=tuple(Evaluation(runs, file=file) for runs in ALL for file in ("", LAST)),
    claims=(
        Claim("no robust overfitting: the last epoch is as good as the best", "CIFAR-10: AT's gap disappears", gap),
        Claim("more robust than AT, last epoch", "CIFAR-10, AutoAttack: 48.9 +- 0.1, AT 40.7 +- 0.3", last_epoch),
    ),
)
