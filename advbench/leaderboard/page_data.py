"""What the script of the page reads: rankings at every eps, curves, and the counts by which pairs are compared."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advbench.escape import visible
from advbench.leaderboard.ranking import Board, table
from advbench.leaderboard.shown_eps import eps_label
from advbench.record import Fates, Record, measured_eps
from advbench.statistics import wilson

MAX_BYTES = 80_000  # of the counts of a table; where they need more, only its best models can be compared on the page


def board_data(name: str, board: Board, names: Mapping[str, str], fates: Mapping[str, Fates]) -> dict[str, Any]:
    """One board. Its points are clean, then every eps > 0 that was measured; `at` are indices of them.

    `names` and `fates` are by the id of their record.
    """
    sizes = list(measured_eps(board.records, board.reference))
    tables = []
    for one in board.tables:
        records = one.records
        place = {record.id: index for index, record in enumerate(records)}
        ranked = [table(records, eps, one.needed) for eps in sizes or [board.reference]]
        tables.append({
            "key": one.protocol.key,
            "title": visible(one.protocol.title),
            "n": one.protocol.n,
            "models": [_model(record, sizes, names[record.id]) for record in records],
            "orders": [
                {
                    "ranked": [place[record.id] for record in at.ranked],
                    "below": [[place[record.id], visible(why)] for record, why in at.below],
                }
                for at in ranked
            ],
            "gains": _gains(records, sizes, fates),
        })  # fmt: skip
    return {
        "name": name,
        "norm": board.norm,
        "points": [[0, "clean"], *([eps, eps_label(eps, board.records)] for eps in sizes)],
        "reference": sizes.index(board.reference) + 1 if board.reference in sizes else 0,
        "tables": tables,
    }


def _model(record: Record, sizes: Sequence[float], name: str) -> dict[str, Any]:
    """`curve` has a row for each measured point: its index, how many stand, and the 95 % interval as fractions."""
    clean = round(record.clean * record.n)
    curve = [[0, clean, *(round(end, 4) for end in wilson(clean, record.n))]]
    for place, eps in enumerate(sizes, start=1):
        if point := record.at(eps):
            curve.append([place, point.robust, round(point.ci_low, 4), round(point.ci_high, 4)])
    return {
        "id": record.id,
        "name": name,
        "method": visible(record.model.trained.method) if record.model.trained else "",
        "engine": visible(f"{record.engine.name} {record.engine.version}"),
        "flags": sorted({visible(flag.name) for flag in record.flags}),
        "curve": curve,
    }


def _gains(records: Sequence[Record], sizes: Sequence[float], fates: Mapping[str, Fates]) -> dict[str, Any]:
    """How many images the model j withstands and the model i does not, for i < j of the first `models` ones.

    `counts`: for j, for each i, for each point, in base64 of little-endian unsigned integers of `bytes` bytes; 0 at
    points that they have not in common. From these and the counts of the curves follows all of McNemar's table. The
    images of a table are the same, in the same order.
    """
    known = records if all(record.id in fates for record in records) else []
    points, width = 1 + len(sizes), 2 if max((record.n for record in known), default=0) < 2**16 else 4
    models = max((k for k in range(len(known) + 1) if k * (k - 1) // 2 * points * width <= MAX_BYTES), default=0)
    if models < 2:
        return {"models": 0, "bytes": width, "counts": ""}
    standing = [_standing(record, sizes, fates[record.id]) for record in known[:models]]
    counts = np.zeros((models * (models - 1) // 2, points), f"<u{width}")
    j, i = np.tril_indices(models, -1)  # in the order (1, 0), (2, 0), (2, 1), ...
    for point in range(points):
        have = np.array([point in one for one in standing], np.bool_)
        stand = np.stack([one.get(point, np.zeros_like(one[0])) for one in standing]).astype(np.float32)
        both = (stand @ stand.T).astype(np.int64)
        counts[:, point] = np.where(have[j] & have[i], both[j, j] - both[j, i], 0)
    return {"models": models, "bytes": width, "counts": base64.b64encode(counts.tobytes()).decode()}


def _standing(record: Record, sizes: Sequence[float], fates: Fates) -> dict[int, NDArray[np.bool_]]:
    """(N,) whether each image stands, for each measured point, by rising index."""
    grid = {point.eps: index for index, point in enumerate(record.curve)}
    found = {0: fates.clean}
    for place, eps in enumerate(sizes, start=1):
        if point := record.at(eps):
            found[place] = fates.standing(grid[point.eps])
    return found
