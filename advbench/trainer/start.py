"""The initial weights of a run that a recipe's `init` names."""

from __future__ import annotations

from torch import nn

from advbench.errors import UserError, reading
from advbench.files import sha256_file
from advbench.models.base import Model
from advbench.models.outside import stored
from advbench.models.state_files import fit_state, match_prefix, read_state
from advbench.recipe import Init


def start_from(net: Model, init: Init) -> list[str]:
    """Load the weights of `init` into `net`, and return notes for the user.

    A last layer for another number of classes is left as it is, with a note. Raises UserError if the file is missing,
    changed since the recipe was made, or does not fit, and Untrusted for a pickle that could run code.
    """
    file = init.file
    with reading(f"init {file}"):
        if sha256_file(file) != init.sha256:
            raise UserError(f"{file} is no longer the file that the recipe starts from: its sha256 is not init.sha256")
    found, _ = read_state(file)
    state = found.state_dict() if isinstance(found, nn.Module) else found
    wanted = stored(net).state_dict()
    state = {**match_prefix(state, wanted)}
    others = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    layers = {key.rpartition(".")[0] for key in others}
    if len(layers) == 1 and all(
        wanted[key].dim() and len(wanted[key]) == net.num_classes and state[key].shape[1:] == wanted[key].shape[1:]
        for key in others
    ):
        classes = len(state[others[0]])
        state |= {key: wanted[key] for key in others}
        notes = [f"{file} has {classes} classes: the layer {layers.pop()} starts from new weights"]
    else:
        notes = []
    fit_state(net, state, str(file), net.arch)
    return notes
