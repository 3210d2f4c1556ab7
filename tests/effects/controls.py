"""The controls of the systems: the same net, data and recipe, and seeds in common."""

from __future__ import annotations

from dataclasses import replace

from act import FIRST as FASHION
from act import SEEDS
from evidence import Runs

AT = Runs("pgd-at", "pgd-at")
# 1,000 images of Fashion-MNIST, 150 epochs, the last one: twelve tries each, on 2,000 held-out images.
FASHION_AT, FASHION_TRADES = (replace(FASHION.lines[method][0], seeds=SEEDS) for method in ("pgd-at", "trades"))
# With what was chosen for AT.
FASHION_STANDARD = replace(FASHION_AT, label=f"{FASHION.name} standard", method="standard")
