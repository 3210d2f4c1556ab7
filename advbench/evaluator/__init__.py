"""checkpoint -> record: accuracy against eps. `evaluate` is the way in."""

from advbench.evaluator.evaluate import Evaluation, bare, check, evaluate
from advbench.evaluator.journal import Journal
from advbench.evaluator.settings import Settings

__all__ = ["Evaluation", "Journal", "Settings", "bare", "check", "evaluate"]
