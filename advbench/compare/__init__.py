"""Comparison of records: paired differences, a gate, reports, and the chain behind a number. Loads no torch.

In a Python program the package itself can be called: `advbench.compare("runs/a", "runs/b", fail_if="clean < 80")` is
`compare_models`.
"""

from advbench.compare.call import compare_models
from advbench.compare.comparison import compare
from advbench.compare.explain import Link, explain, whereabouts
from advbench.compare.gate import parse_gate
from advbench.compare.matrix import STAR, many, matrix
from advbench.compare.plot import plot
from advbench.compare.report import (
    HEADER,
    cells,
    headline,
    reason,
    rule,
    to_csv,
    to_json,
    to_junit,
    to_markdown,
    verdict,
)
from advbench.compare.results import Check, Comparison, Drop, Finding, Gate, Refused, Row
from advbench.compare.sides import Measured, Side, find_record, read_side, read_some
from advbench.public import make_callable

__all__ = [
    "HEADER",
    "STAR",
    "Check",
    "Comparison",
    "Drop",
    "Finding",
    "Gate",
    "Link",
    "Measured",
    "Refused",
    "Row",
    "Side",
    "cells",
    "compare",
    "compare_models",
    "explain",
    "find_record",
    "headline",
    "many",
    "matrix",
    "parse_gate",
    "plot",
    "read_side",
    "read_some",
    "reason",
    "rule",
    "to_csv",
    "to_json",
    "to_junit",
    "to_markdown",
    "verdict",
    "whereabouts",
]

make_callable(__name__, compare_models)
