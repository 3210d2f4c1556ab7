"""The result of an analysis: tables, figures and notes on them.

An analysis is one file here: a literal ENTRIES, and a function `run(runs: list[Path], *, ...) -> Analysis`. Further
keyword parameters with defaults are its settings (`--set FIELD=VALUE`); those called `device` (a torch.device), `seed`,
`dataset`, `norm`, `n`, `eps`, `precision` and `progress` are filled from the flags of these names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Progress = Callable[[str, float, float | None], None]
"""Called with (stage, done, total or None) during an analysis. It may raise to stop the analysis."""


@dataclass(frozen=True)
class Analysis:
    """Results of an analysis. `tables` and `figures`: by names that can be file names. `notes`: one sentence each.

    Accuracies in tables are fractions in [0, 1]. `shares` names the tables, and the columns of others, whose numbers
    are such fractions: a terminal shows them in percent.
    """

    title: str
    tables: dict[str, DataFrame] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shares: frozenset[str] = frozenset()
