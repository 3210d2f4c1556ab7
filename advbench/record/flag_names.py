"""The names of all flags. A test holds them against the code that raises flags."""

from __future__ import annotations

from advbench.record.black_box import WINS

FLAG_NAMES = (
    "above-chance",
    "at-chance",
    "band-leak",
    "batch",
    "catastrophic-overfitting",
    "class-order",
    "clipped",
    "constant",
    "corruptions",
    "discontinuous",
    "eager",
    "few-classes",
    "found-by-labels",
    "found-from-outputs",
    "found-from-units",
    "loss-not-rising",
    "memorised",
    "model",
    "more-steps",
    "nan-gradient",
    "noise-wins",
    "non-finite",
    "non-finite-attacked",
    "not-probed",
    "other-noise",
    "outside",
    "outside-ball",
    "probabilities",
    "published",
    "random",
    "rounding",
    "saturated",
    "search-copy",
    "slots",
    "small-n",
    "spectrum",
    "straight-through",
    "train-mode",
    "unverified",
    "weak-attack",
    "zero-gradient",
)


def is_flag(name: str) -> bool:
    """Whether `name` may be a flag's: a known one, or that of a black-box attack ahead, such as square-wins."""
    return name in FLAG_NAMES or (name.endswith(WINS) and name != WINS)
