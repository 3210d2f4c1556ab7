"""Comparison of records: paired differences, a gate, reports, and the chain behind a number. Loads no torch."""

from advbench.compare.comparison import compare
from advbench.compare.explain import Link, explain, whereabouts
from advbench.compare.gate import parse_gate
from advbench.compare.plot import plot
from advbench.compare.report import HEADER, cells, reason, to_csv, to_json, to_junit, to_markdown, verdict
from advbench.compare.results import Check, Comparison, Finding, Gate, Row
from advbench.compare.sides import Measured, Side, find_record, read_side

__all__ = [
    "HEADER",
    "Check",
    "Comparison",
    "Finding",
    "Gate",
    "Link",
    "Measured",
    "Row",
    "Side",
    "cells",
    "compare",
    "explain",
    "find_record",
    "parse_gate",
    "plot",
    "read_side",
    "reason",
    "to_csv",
    "to_json",
    "to_junit",
    "to_markdown",
    "verdict",
    "whereabouts",
]
