"""`run.json`, the card of a run folder: its contents and how they were made."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from advbench.errors import UserError, must_be, reading
from advbench.files import write_atomic
from advbench.models.external import FORMS
from advbench.record import Flag, passes_an_image

CARD = "run.json"
BEST = "model.safetensors"
LAST = "last.safetensors"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1)]


class _Card(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class WrapperCard(_Card):
    """A wrapper of `models/` and its settings."""

    name: str
    settings: dict[str, JsonValue] = {}


class ModelCard(_Card):
    """What `models.rebuild` needs to make the network again. The innermost wrapper is first."""

    arch: str
    settings: dict[str, JsonValue] = {}
    num_classes: Count
    in_channels: Count
    image_size: Count | tuple[Count, Count]  # (height, width) where these differ
    wrappers: tuple[WrapperCard, ...] = ()


class RunCard(_Card):
    """The content of `run.json`: what a run folder holds and how it was made.

    `name`: what tables and figures call the model, unless an evaluation says otherwise.
    `files` maps each weight file to the sha256 of its bytes, `weights` the deployed one to the hash of its tensors, as
    records have it; older cards lack that. `series_sha256` is the recipe's without its seed. The
    trainer chooses the keys of `cost` (seconds, passes) and `results` (accuracies). `finished` is False while the run
    can be resumed.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str | None = None
    model: ModelCard
    files: dict[str, Sha256]
    weights: dict[str, Sha256] = {}
    method: str
    method_settings: dict[str, JsonValue] = {}
    dataset: str
    norm: str | None = None
    eps: float | None = None
    eps_text: str | None = None
    seed: int
    recipe_sha256: Sha256 | None = None
    series_sha256: Sha256 | None = None
    environment: dict[str, JsonValue] = {}
    cost: dict[str, JsonValue] = {}
    results: dict[str, JsonValue] = {}
    flags: tuple[Flag, ...] = ()
    finished: bool = True

    @property
    def trained(self) -> dict[str, Any]:
        """The fields that a record contains about the training."""
        fields = {
            "method",
            "dataset",
            "norm",
            "eps",
            "eps_text",
            "seed",
            "recipe_sha256",
            "series_sha256",
            "cost",
            "flags",
        }
        return {**self.model_dump(mode="json", include=fields), "passes": passes_an_image(self.cost)}


def write_card(folder: Path, card: RunCard) -> None:
    """Write `run.json` atomically, with a seal: the sha256 of its content, which shows accidents, not intent.

    Write the weight files first: the card contains their hashes. Raises UserError if it cannot be written.
    """
    tree = card.model_dump(mode="json", by_alias=True)
    write_atomic(folder / CARD, json.dumps({**tree, "seal": _seal(tree)}, indent=2) + "\n")


def read_card(folder: Path) -> RunCard:
    """The card of a run folder. Raises UserError if the folder is not a run folder, or its card is damaged."""
    path = folder / CARD
    with reading(path):
        if not path.is_file():
            runs = sorted(str(run.parent) for run in folder.glob(f"*/{CARD}"))[:5] if folder.is_dir() else []
            hint = f"; did you mean {' or '.join(runs)}?" if runs else ""
            raise UserError(f"{folder} is not a run folder: {CARD} is missing{hint}")
        text = path.read_text(encoding="utf-8")
    try:
        tree = json.loads(text)
        seal = tree.pop("seal", None) if isinstance(tree, dict) else None  # old cards have no seal
        card = RunCard.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path} is damaged or of another version: {where}: {must_be(first)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or of another version: the file: {error}") from error
    if seal not in (None, _seal(tree)):
        raise UserError(f"{path} is damaged: its content does not match its seal")
    return card


def _seal(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def newest_run(root: Path = Path("runs")) -> Path:
    """The run folder under `root` whose card was written last. Raises UserError if there is none."""
    cards = sorted(root.glob(f"*/{CARD}"), key=lambda card: card.stat().st_mtime)
    if not cards:
        raise UserError(f"no run in {root}/: train one (advbench train), or name a model with --model: {FORMS}")
    return cards[-1].parent
