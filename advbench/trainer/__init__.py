"""Training: `train(recipe, out)` makes a run folder; `estimate(recipe)` measures what a run will cost."""

from advbench.trainer.estimate import Estimate, estimate
from advbench.trainer.events import Began, EpochDone, StepDone, Watch
from advbench.trainer.loop import device_of, train
from advbench.trainer.session import Diverged

__all__ = ["Began", "Diverged", "EpochDone", "Estimate", "StepDone", "Watch", "device_of", "estimate", "train"]
