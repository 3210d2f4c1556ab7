"""The heads of the auxiliary tasks of a multi-task run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advbench.checkpoint.card import CARD, read_card
from advbench.errors import UserError
from advbench.files import sha256_file
from advbench.models.base import Model
from advbench.models.described import sketching
from advbench.models.state_files import fit_state, read_state
from advbench.models.tasks import Head, make_heads, make_tasks


def load_heads(folder: Path, net: Model) -> dict[str, Head]:
    """The heads of the run in `folder`, by task, in the run's order, for the features of its network `net`.

    There are none if the run was not trained on several tasks. The heads are in eval mode, on the CPU, and their
    weights require no gradient. Raises UserError if a file is missing or altered, or does not fit.
    """
    card = read_card(folder)
    method: Any = card.method_settings
    names = method.get("tasks", ())
    if not names:
        return {}
    tasks = make_tasks(names, card.dataset, net.num_classes, method.get("macro", ()))
    features, shape = net.feature_dim, net.shape  # which some networks tell by a pass
    heads: dict[str, Head] = {}
    for name, task in tasks.items():
        part = f"parts/{name}.safetensors"
        file = folder / part
        if part not in card.files or not file.is_file():
            raise UserError(f"{folder} is not a complete multi-task run: {part} is missing")
        if sha256_file(file) != card.files[part]:
            raise UserError(f"{file} is truncated or altered: its sha256 is not the one in {CARD}")
        state, _ = read_state(file)
        assert isinstance(state, dict)
        with sketching(state, f"{file} does not fit {name}"):
            make_heads({name: task}, features, shape, seed=0)
        heads |= make_heads({name: task}, features, shape, seed=0)
        fit_state(heads[name], state, str(file), name)
        heads[name].eval().requires_grad_(False)
    return heads
