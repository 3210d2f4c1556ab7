"""What an analysis gives: tables, figures and what is to be said about them.

An analysis is one file here: a literal ENTRIES, and a function `run(runs: list[Path], *, ...) -> Analysis`. Further
keyword parameters with defaults are its settings (`--set FIELD=VALUE`); those called `device` (a torch.device), `seed`,
`dataset`, `norm`, `n`, `eps`, `precision`, `trust_pickle` and `progress` are filled from the flags of these names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Progress = Callable[[str, float, float | None], None]
"""Called with (stage, done, total or None) while an analysis goes on; may raise to stop it."""


@dataclass(frozen=True)
class Analysis:
    """`tables` and `figures` by a name that can be a file's; accuracies are fractions. `notes`: a sentence each."""

    title: str
    tables: dict[str, DataFrame] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
