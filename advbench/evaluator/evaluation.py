"""The result of an evaluation: the record, what it is counted from, and views of both for notebooks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from advbench.data.dataset import Dataset
from advbench.engine.losses import margin
from advbench.eps import CORRUPTIONS
from advbench.errors import UserError
from advbench.evaluator.adversarials import Tally
from advbench.record import Fates, Record
from advbench.threat import around

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class Evaluation:
    """A record and the fates of the n images that it is counted from.

    `points`: by row, the nearest verified adversarial example (C, H, W), on the CPU. `attempts`: by row, the point
    inside the ball of the largest eps that came nearest to fooling the model; None, and no `points`, unless
    `Settings.keep_points`. An attack that seeks the nearest adversarial example makes no attempts; its points may lie
    beyond eps. `logits` (n, K) and `data` are those of the clean images, on the CPU. `tallies`: what became of each
    file of others' adversarial images.
    """

    record: Record
    fates: Fates
    points: dict[int, Tensor]
    attempts: dict[int, Tensor] | None
    logits: Tensor
    data: Dataset
    tallies: tuple[Tally, ...] = ()

    def __repr__(self) -> str:
        return repr(self.record).replace("<Record", "<Evaluation", 1)

    def __str__(self) -> str:
        return str(self.record)

    @cached_property
    def adversarials(self) -> Tensor:
        """The images after the attack, (n, C, H, W) float32 in [0, 1].

        An adversarial example where one was found, else the strongest attempt, else the clean image: where the model is
        wrong about it already, or no attempt is known. Raises UserError where they were not kept.
        """
        if self.attempts is None:
            raise UserError("the adversarial images were not kept: ask for them with keep_points=True")
        images, _ = self.data.batch(slice(None))
        for row, point in {**self.attempts, **self.points}.items():
            images[row] = point
        return images

    @property
    def found(self) -> Tensor:
        """(n,) bool: `adversarials` holds an image inside the ball that the model gets wrong, unlike the clean one."""
        kept = torch.zeros(len(self.fates), dtype=torch.bool)
        kept[list(self.points)] = True
        return kept & torch.from_numpy((self.fates.fell >= 0) & (self.fates.by >= 0))

    def frame(self) -> DataFrame:
        """A pandas DataFrame of one row for each image.

        `index`: its place in the split; `label`; `clean`: the answer to the clean image; `right`: whether it is right;
        `fell_at`: the least eps of the grid at which the image fell, 0 where it was wrong already, NaN where it stands;
        `by`: the attack that felled it, or "external:NAME", else ""; `distance`: the norm of the smallest perturbation
        known to fell it, at most `fell_at`, NaN where none is known; `margin`: the largest other logit less the
        label's, clean.
        """
        import pandas as pd

        fates, eps, y = self.fates, np.asarray(self.record.eps), self.data.labels
        fell_at = np.where(fates.fell < 0, np.nan, np.where(fates.clean, eps[fates.fell], 0.0))
        names = self.record.felled_by
        return pd.DataFrame(
            {
                "index": self.data.indices.numpy(),
                "label": y.numpy(),
                "clean": self.logits.argmax(1).numpy(),
                "right": fates.clean,
                "fell_at": fell_at,
                "by": [names[one] if one >= 0 else "" for one in fates.by],
                "distance": self._distances(fell_at),
                "margin": margin(self.logits, y).numpy(),
            }
        )

    def curve_frame(self) -> DataFrame:
        """A pandas DataFrame of one row for each eps.

        `eps`, `eps_text`, `n`, `robust` (a count), `accuracy` with its interval `ci_low` and `ci_high` (fractions), and
        `certified`.
        """
        import pandas as pd

        return pd.DataFrame([point.model_dump() for point in self.record.curve])

    def _distances(self, fell_at: Any) -> Any:
        known = np.full(len(self.fates), np.nan) if self.fates.norm is None else self.fates.norm.copy()
        if self.points and self.record.norm != CORRUPTIONS:
            rows = torch.tensor(sorted(self.points))
            x, _ = self.data.batch(rows)
            ball = around(self.record.norm, x, torch.zeros(len(rows), dtype=torch.float64))
            change = torch.stack([self.points[row] for row in rows.tolist()]).double() - x.double()
            known[rows.numpy()] = ball.size(change).numpy()
        return np.where(self.fates.clean, np.fmin(known, fell_at), 0.0)
