"""checkpoint -> record: accuracy against eps. `evaluate` is the way in."""

from advbench.evaluator.evaluate import Evaluation, evaluate
from advbench.evaluator.journal import Journal

__all__ = ["Evaluation", "Journal", "evaluate"]
