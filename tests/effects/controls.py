"""What the systems stand beside: the same net, data, recipe and seeds."""

from __future__ import annotations

from evidence import Evaluation, Runs

SEEDS = (0, 1, 2)
AT = Runs("pgd-at", "pgd-at", seeds=SEEDS)
TRADES = Runs("trades", "trades", seeds=SEEDS)
STANDARD = Runs("standard", "standard", seeds=SEEDS)
AT_AA = Evaluation(AT)
TRADES_AA = Evaluation(TRADES)
STANDARD_AA = Evaluation(STANDARD)
