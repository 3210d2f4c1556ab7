"""The controls of the systems: the same net, data, recipe and seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from act import REGIMES
from evidence import Evaluation, Runs

SEEDS = (0, 1, 2)
AT = Runs("pgd-at", "pgd-at", seeds=SEEDS)
TRADES = Runs("trades", "trades", seeds=SEEDS)
STANDARD = Runs("standard", "standard", seeds=SEEDS)
# The recipe's 20 epochs are 360 steps. Effects that need longer are compared with controls trained for as long.
LONG: dict[str, Any] = {"epochs": 100, "seeds": SEEDS}
AT_LONG = Runs("pgd-at long", "pgd-at", **LONG)
TRADES_LONG = Runs("trades long", "trades", **LONG)
AT_AA = Evaluation(AT)
STANDARD_AA = Evaluation(STANDARD)

# 1,000 images of Fashion-MNIST, 150 epochs, the last one: nine tries each, on 2,000 held-out images.
FASHION = REGIMES[0]
FASHION_AT, FASHION_TRADES = (FASHION.lines[method][0] for method in ("pgd-at", "trades"))
# With what was chosen for AT.
FASHION_STANDARD = replace(FASHION_AT, label=f"{FASHION.name} standard", method="standard")
