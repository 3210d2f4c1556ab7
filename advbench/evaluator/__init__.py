"""From a checkpoint to a record: accuracy against eps. The entry point is `evaluate`."""

from advbench.evaluator.evaluate import bare, check, evaluate
from advbench.evaluator.evaluation import Evaluation
from advbench.evaluator.identity import answers
from advbench.evaluator.journal import Journal, progress_of
from advbench.evaluator.settings import Settings

__all__ = ["Evaluation", "Journal", "Settings", "answers", "bare", "check", "evaluate", "progress_of"]
