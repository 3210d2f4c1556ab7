"""The history of a run: its metrics and scores by epoch, the best weights, the time spent."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from advbench.trainer.validation import Scores


@dataclass
class History:
    """`rows`: those of metrics.jsonl, one for each epoch; `seconds`: of training alone, without validation."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)
    best: dict[str, Any] | None = None  # copies of the state dicts: "f", and "parts" by name
    best_epoch: int = 0  # from 1; 0 before the first epoch
    seconds: float = 0.0

    @property
    def best_row(self) -> dict[str, Any] | None:
        """The row of the epoch whose weights are deployed."""
        return self.rows[self.best_epoch - 1] if self.best_epoch else None

    def add(self, row: dict[str, Any], scores: Scores | None, select: Literal["robust", "clean", "last"]) -> bool:
        """Append an epoch. Returns whether it is the best so far; of equal epochs the latest counts as the best."""
        previous = self.scores[self.best_epoch - 1] if self.scores else None
        self.rows.append(row)
        if scores is not None:
            self.scores.append(scores)
        best = scores is None or previous is None or _sort_key(scores, select) >= _sort_key(previous, select)
        row["best"] = best
        if best:
            self.best_epoch = len(self.rows)
        return best

    def keep(self, f: nn.Module, parts: dict[str, nn.Module]) -> None:
        """Store copies of these weights as the best."""
        self.best = {"f": _copied(f), "parts": {name: _copied(part) for name, part in parts.items()}}

    def state(self) -> dict[str, Any]:
        """The history as plain values and tensors, for the training state."""
        rest = {name: getattr(self, name) for name in ("rows", "best", "best_epoch", "seconds")}
        return {**rest, "scores": [asdict(scores) for scores in self.scores]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> History:
        """The history that `state` returned."""
        return cls(**{**state, "scores": [Scores(**scores) for scores in state["scores"]]})


def _sort_key(scores: Scores, select: Literal["robust", "clean", "last"]) -> tuple[float, ...]:
    if select == "last":
        return ()
    return (scores.robust, scores.clean) if select == "robust" else (scores.clean, scores.robust)


def _copied(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}
