"""From a checkpoint to a record: accuracy against eps. The entry point is `evaluate`."""

from advbench.evaluator.evaluate import bare, check, evaluate, expected_work
from advbench.evaluator.evaluation import Evaluation
from advbench.evaluator.forecast import Forecast, Series
from advbench.evaluator.identity import answers
from advbench.evaluator.journal import Journal
from advbench.evaluator.settings import Settings

__all__ = [
    "Evaluation",
    "Forecast",
    "Journal",
    "Series",
    "Settings",
    "answers",
    "bare",
    "check",
    "evaluate",
    "expected_work",
]
