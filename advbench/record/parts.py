"""The parts of a record: what was measured, on which images, by which attacks, where and when."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from datetime import datetime
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Severity = Literal["note", "suspect", "broken"]
ATTACK_BUDGET = "attack_budget"  # among the settings of attacks that were given one
RECHECK_SET = "survivors-fp32"  # the `set` of the attacks that follow a search in bf16
ESCALATION = "escalation"  # the `stage` of attacks that run only where those before them may be too weak


class Part(BaseModel):
    """A frozen model without NaN or infinite numbers and without fields of other names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class OpenPart(Part):
    """A part that also keeps fields of other names, if they are plain JSON."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]


class Trained(OpenPart):
    """How the model was trained, as far as its run folder says; the rest of the recipe may be added.

    `method`: its name. `norm`: of the training attack. `eps`: of the training attack. `eps_text`: the same as written.
    `seed`: of the training. `passes`: forward and backward passes of the training for each image that it was shown.
    `recipe_sha256`: hash of the recipe. `series_sha256`: hash of the recipe without its seed, which trainings that
    differ by their seed alone have in common. Of a run of advbench also `dataset`, `cost` (`forwards`, `backwards`,
    `images`, `updates`, `seconds`, ...) and the `flags` that its training raised.
    """

    method: str
    norm: str | None = None
    eps: float | None = None
    eps_text: str | None = None
    seed: int | None = None
    passes: Annotated[float, Field(ge=0)] | None = None
    recipe_sha256: Sha256 | None = None
    series_sha256: Sha256 | None = None

    @property
    def passes_an_image(self) -> float | None:
        """`passes`, in older records from what they say of the cost; None where that is not known."""
        return passes_an_image(self._cost) if self.passes is None and self._cost else self.passes

    @property
    def images_shown(self) -> float | None:
        """How many images the training was shown, each as often as it was; None where that is not known.

        To four digits in records from before they were counted.
        """
        shown = images_shown(self._cost)
        return shown if shown is None or "images" in self._cost else float(f"{shown:.4g}")

    @property
    def updates(self) -> float | None:
        """How often the training updated the weights; None where that is not known."""
        return _number(self._cost, "updates")

    @property
    def _cost(self) -> Mapping[str, JsonValue]:
        cost = (self.model_extra or {}).get("cost")
        return cost if isinstance(cost, dict) else {}


def passes_an_image(cost: Mapping[str, JsonValue]) -> float | None:
    """The passes of a training for each image that it was shown, from the counts in a run card; None without them."""
    images = images_shown(cost)
    passes = (_number(cost, "forwards") or 0.0) + (_number(cost, "backwards") or 0.0)
    return round(passes / images, 2) if images and passes else None


def images_shown(cost: Mapping[str, JsonValue]) -> float | None:
    """The images that a training was shown, from its run card; None where that says nothing.

    Cards from before `images` was counted have a rate and a time, whose product is true to about four digits.
    """
    estimate = (_number(cost, "images_per_s") or 0.0) * (_number(cost, "seconds") or 0.0)
    return _number(cost, "images") or estimate or None


def _number(cost: Mapping[str, JsonValue], name: str) -> float | None:
    value = cost.get(name)
    return float(value) if isinstance(value, int | float) else None


class ModelRef(Part):
    """The model that was measured.

    `name`: what tables and figures call it (--name); none for its spec. `spec`: how the command named it. `arch`: its
    architecture. `settings`: those of the architecture that decide its outputs. `params`: how many weights it has.
    `weights_sha256`: hash of its tensors. `code_sha256`: hash of the source files from outside that build it; none
    without. `mean` and `std`: the normalisation put in front of it. `abstain`: which of its logits stands for a
    rejection. `trained`: its training, where it is known.
    """

    name: str | None = None
    spec: str
    arch: str
    settings: dict[str, JsonValue] = {}
    params: Count
    weights_sha256: Sha256
    code_sha256: Sha256 | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    abstain: Literal["last"] | None = None
    trained: Trained | None = None

    @property
    def title(self) -> str:
        """The name, or else the spec."""
        return self.name or self.spec

    @property
    def file(self) -> str:
        """The weights of a run folder that `spec` names, such as "parts/natural.safetensors"; empty for the folder."""
        path = PurePath(self.spec)
        if path.suffix != ".safetensors":
            return ""
        return f"parts/{path.name}" if path.parent.name == "parts" else path.name

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """What two measurements of one model have in common: all that decides its outputs, and no name or place."""
        settings = json.dumps(self.settings, sort_keys=True)
        return self.weights_sha256, self.arch, settings, self.code_sha256, self.mean, self.std, self.abstain


class DatasetRef(Part):
    """The images.

    `name`: as the command names the dataset. `split`: train or test. `indices`: "first:N", "random:SEED:N", or the
    positions in the split. `images_sha256`: hash of the images and labels that were used.
    """

    name: str
    split: str
    indices: str | tuple[Count, ...]
    images_sha256: Sha256

    @field_validator("indices")
    @classmethod
    def _form(cls, indices: str | tuple[int, ...]) -> str | tuple[int, ...]:
        if isinstance(indices, str) and not re.fullmatch(r"first:\d{1,9}|random:\d{1,19}:\d{1,9}", indices):
            raise ValueError("write first:N, random:SEED:N or the positions in the split")
        return indices

    @property
    def count(self) -> int:
        return int(self.indices.rpartition(":")[2]) if isinstance(self.indices, str) else len(self.indices)


class AttackRef(Part):
    """One attack, with all its settings.

    `name`: its own, or for a member of a set the member's. `version`: rises when verdicts may change. `settings`: all
    of them, with `set`, the name that the command gave; `attack_budget`, the passes that all attacks together had; and
    `stage`, "escalation" for an attack that runs only where the flag `escalated` is raised.
    """

    name: str
    version: str
    settings: dict[str, JsonValue] = {}

    @property
    def escalation(self) -> bool:
        """Whether it runs only where the attacks before it may be too weak."""
        return self.settings.get("stage") == ESCALATION


class Engine(Part):
    """What ran the attacks.

    `name`: advbench, or pyautoattack for --engine reference. `version`: rises when verdicts may change. `slots`: rows
    of every pass. `precision`: of the search; hits are always verified in fp32. `curve`: "exact" attacks at every eps;
    "fast" bisects the grid and refines downwards.
    """

    name: str
    version: str
    slots: Annotated[int, Field(ge=1)]
    precision: Literal["fp32", "bf16"]
    curve: Literal["exact", "fast"] = "exact"


class CurvePoint(Part):
    """Accuracy at one eps.

    `eps`: the size. `eps_text`: the same as written. `n`: how many images. `robust`: how many of them stand.
    `accuracy`: robust / n. `ci_low` and `ci_high`: Wilson's 95 % interval. `certified`: the share that is proved to
    stand; none where nothing was proved.
    """

    eps: Annotated[float, Field(ge=0)]
    eps_text: str
    n: Annotated[int, Field(ge=1)]
    robust: Count
    accuracy: Share
    ci_low: Share
    ci_high: Share
    certified: Share | None = None

    @property
    def gap(self) -> float | None:
        """The share that stands but is not proved to: the true accuracy lies in it; None where nothing was proved."""
        return None if self.certified is None else self.accuracy - self.certified


class Corruptions(Part):
    """The errors under common corruptions.

    `errors`: of each corruption at severities 1 to 5. `mce`: their mean, which is not normalised.
    """

    errors: Annotated[dict[str, tuple[Share, Share, Share, Share, Share]], Field(min_length=1)]
    mce: Share

    @model_validator(mode="after")
    def _consistent(self) -> Corruptions:
        every = [error for row in self.errors.values() for error in row]
        if abs(self.mce - sum(every) / len(every)) > 1e-9:
            raise ValueError("mce must be the mean of the errors")
        return self


class Flag(Part):
    """A reason to doubt the number (suspect, broken), or a fact to know beside it (note).

    `name`: which flag. `severity`: how much it doubts. `eps`: at which it was raised; none where it is not about one
    eps. `k` and `n`: it was counted on k of n images; none where it is not a count. `detail`: the finding in a
    sentence.
    """

    name: str
    severity: Severity
    eps: Annotated[float, Field(ge=0)] | None = None
    k: Count | None = None
    n: Count | None = None
    detail: str = ""

    def decides(self, eps: float | None = None) -> bool:
        """Whether it doubts a number at `eps` (None: at any eps): it is no note, and was not raised above `eps`."""
        above = eps is not None and self.eps is not None and self.eps > eps * (1 + 1e-9)
        return self.severity != "note" and not above


class External(Part):
    """A file of adversarial images made elsewhere, which were verified as the hits of attacks are.

    `name`: what the file is called, without its ending. `sha256`: its hash. `felled`: how many images it felled, or
    felled at a smaller eps, than the attacks and the files before it did.
    """

    name: str
    sha256: Sha256
    felled: Count


class Environment(OpenPart):
    """Where and when; further versions and hardware are kept too.

    `advbench`: its version. `date`: ISO 8601, UTC. `command`: the words of the command line. An evaluation adds
    `parts`, the seconds of attacks, of the verification of hits, of the recheck in fp32, and of the host's own work,
    summed over processes; `probes`, the seconds and forward passes that it took to find the flags; where images were
    certified, `certify`: when, the seconds for an image and in all, and of attacks that the proofs made needless how
    many strikes and passes; and where the search was compiled, `compile`: by what, and which share of the calls that
    served.
    """

    advbench: str
    date: str
    command: tuple[str, ...] = ()

    @field_validator("date")
    @classmethod
    def _form(cls, date: str) -> str:
        datetime.fromisoformat(date)
        return date
