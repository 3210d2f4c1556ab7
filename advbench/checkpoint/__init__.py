"""The only link from training to evaluation: run folders, weights and their hashes, and `load_model`.

A run folder holds `model.safetensors` (the best weights on validation), `last.safetensors`, `run.json` (the
RunCard), the recipe, metrics and `train_state/`.
"""

from advbench.checkpoint.card import (
    BEST,
    CARD,
    LAST,
    ModelCard,
    RunCard,
    WrapperCard,
    newest_run,
    read_card,
    write_card,
)
from advbench.checkpoint.code import code_sha256, maker_sha256
from advbench.checkpoint.heads import load_heads
from advbench.checkpoint.loading import Loaded, answered, check_classes, check_reading, load_model
from advbench.checkpoint.train_state import STATE, load_train_state, save_train_state
from advbench.checkpoint.weights import save_weights, weights_sha256

__all__ = [
    "BEST",
    "CARD",
    "LAST",
    "STATE",
    "Loaded",
    "ModelCard",
    "RunCard",
    "WrapperCard",
    "answered",
    "check_classes",
    "check_reading",
    "code_sha256",
    "load_heads",
    "load_model",
    "load_train_state",
    "maker_sha256",
    "newest_run",
    "read_card",
    "save_train_state",
    "save_weights",
    "weights_sha256",
    "write_card",
]
