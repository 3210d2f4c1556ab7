"""The parts of a recipe: names, ranges and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from advbench.eps import parse_eps
from advbench.errors import UserError, must_be, reading
from advbench.files import plain_path, sha256_file
from advbench.recipe.trees import listed


def number(value: Any) -> Any:
    """`value` itself. Raises ValueError for true and false, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("it must be a number")
    return value


LARGEST = 10**6  # more steps, epochs or images in a batch were never meant; arrays may be as long as these numbers
Whole = Annotated[int, BeforeValidator(number)]
Real = Annotated[float, BeforeValidator(number)]
Share = Annotated[Real, Field(ge=0, le=1)]
Positive = Annotated[Real, Field(gt=0, le=1e30)]
NotNegative = Annotated[Real, Field(ge=0, le=1e30)]
Count = Annotated[Whole, Field(ge=1, le=LARGEST)]
Size = Annotated[Whole, Field(ge=0, le=10**9)]
Seed = Annotated[Whole, Field(ge=0, lt=2**62)]
Fractions = Annotated[tuple[Share, ...], BeforeValidator(listed)]


def converted(kind: Any, value: Any) -> Any:
    """`value` converted to the annotated type `kind`. Raises ValueError, in few words, for what does not fit.

    Numbers must be finite, and true and false are no numbers.
    """
    config = ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        return TypeAdapter(kind, config=config).validate_python(value, strict=True if isinstance(value, bool) else None)
    except ValidationError as error:
        raise ValueError(must_be(error.errors(include_url=False, include_input=False)[0])) from error


class Part(BaseModel):
    """Base class: immutable, only finite numbers, and no further fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class OpenPart(Part):
    """A part that also takes further fields: those of a method or an architecture."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    @property
    def settings(self) -> dict[str, JsonValue]:
        """The further fields."""
        return dict(self.__pydantic_extra__)


class MethodSpec(OpenPart):
    """The training method, and its settings as further fields.

    `name`: one of `advbench list methods`, or `module:name` of your own.
    """

    name: str


class ModelSpec(OpenPart):
    """The architecture, with its settings and wrappers as further fields, such as `quantize = "layer1:8"`.

    `arch`: one of `advbench list models`, `torchvision:NAME`, `timm:NAME` or `module:callable`.
    """

    arch: str


class Threat(Part):
    """The ball of perturbations.

    `norm`: in which it is a ball. `eps`: its size, as written ("8/255"); `eps_value`: the same as a float64, filled in.
    """

    norm: Literal["linf", "l2", "l1", "fourier-linf"] = "linf"
    eps: str
    eps_value: float

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "eps" not in data:
            return data
        eps = parse_eps(str(data["eps"]), str(data.get("norm", "linf")))
        given = data.get("eps_value", eps.value)
        try:
            fits = float(given) == eps.value
        except (TypeError, ValueError, OverflowError):
            fits = False
        if not fits:
            raise UserError(f"threat.eps_value is {given!r}, but threat.eps = {eps.text} is {eps.value!r}")
        return {**data, "eps": eps.text, "eps_value": eps.value}


class Init(Part):
    """The weights from which the net starts; without this part new ones.

    `path`: a weights file, or a run folder for its best weights. `sha256`: the hash of the file, filled in, so that
    another file of the same name is another recipe.
    """

    path: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @property
    def file(self) -> Path:
        """The weights file."""
        return _weights_file(self.path)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        data = {"path": data} if isinstance(data, str) else data
        if not isinstance(data, dict) or not isinstance(data.get("path"), str) or "sha256" in data:
            return data
        with reading(f"init {data['path']}"):
            path = plain_path(data["path"])
            file = _weights_file(path)
            if not file.is_file():
                raise UserError(f"init: there is no weights file {file}: name a file, or the folder of a run")
            return {**data, "path": path, "sha256": sha256_file(file)}


def _weights_file(path: str) -> Path:
    return Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)


class Inner(Part):
    """The attack in training: PGD.

    `steps`: their number. `rel_step`: the size of a step / eps. `step_size`: an absolute size of a step, in place of
    `rel_step`. `init`: the start: "uniform" in the ball, "gauss" for x + 0.001 N(0, I), or "none" for x itself.
    `bn_mode`: during the attack, BatchNorm normalises with the running statistics ("eval") or the batch's ("train");
    the attack never changes the running ones. `warmup`: the share of the epochs over which eps grows from 0.
    """

    steps: Count = 10
    rel_step: Positive = 0.25
    step_size: Positive | None = None
    init: Literal["uniform", "gauss", "none"] = "uniform"
    bn_mode: Literal["eval", "train"] = "eval"
    warmup: Share = 0.0


class Optim(Part):
    """The optimiser.

    `name`: sgd, adam and adamw are PyTorch's; sign-gd, coordinate-descent and fista those of
    `advbench/trainer/steepest.py`. `lr`: the learning rate. `momentum`: of sgd; the first beta of adam and adamw.
    `weight_decay`: as in PyTorch; for fista the weight of `penalty`, in place of the sum of squares. `nesterov`:
    Nesterov's momentum, sgd only. `penalty`: the norm of each output unit's weights, fista only. `clip`: the largest
    gradient norm over each optimiser's weights; 0 for no clipping.
    """

    name: Literal["sgd", "adam", "adamw", "sign-gd", "coordinate-descent", "fista"] = "sgd"
    lr: Positive = 0.1
    momentum: Share = 0.9
    weight_decay: NotNegative = 5e-4
    nesterov: bool = False
    penalty: Literal["l1", "l2", "linf"] = "l1"
    clip: NotNegative = 0.0


class Schedule(Part):
    """The factor on the learning rate.

    `name`: piecewise is times `factor` at each of `milestones`; onecycle is linear from 0 to 1 at `peak` and back to 0;
    cosine is half a wave from 1 to 0; constant is 1. `milestones`: shares of the epochs, piecewise only. `factor`: of
    one milestone, piecewise only. `peak`: a share of the epochs, onecycle only. `warmup`: the share of the epochs in
    which a further factor grows from 0 to 1; onecycle has its own.
    """

    name: Literal["piecewise", "onecycle", "cosine", "constant"] = "piecewise"
    milestones: Fractions = (0.5, 0.75)
    factor: Positive = 0.1
    peak: Annotated[Real, Field(gt=0, lt=1)] = 0.3
    warmup: Share = 0.0


class Augment(Part):
    """Augmentation of the training images.

    `crop`: the padding, in pixels, of a random crop; 0 for none. `flip`: mirror half of the images. `policy`:
    "autoaugment" is the policy for CIFAR-10. `cutout`: the side, in pixels, of the square that is cut out; 0 for none.
    """

    crop: Size = 0
    flip: bool = False
    policy: Literal["none", "autoaugment"] = "none"
    cutout: Size = 0


class Average(Part):
    """Weight averaging. The averaged weights are validated and deployed in place of the trained ones.

    `name`: "ema" is an exponential moving average with BatchNorm's buffers copied (Gowal et al. 2020, 2010.03593);
    "swa" is the mean over the epochs (Izmailov et al. 2018, 1803.05407), also of these buffers, which there are
    measured anew on the training images: with BatchNorm, let it start late. `decay`: of ema, at most (1 + t) / (10 + t)
    after t steps. `start`: the share of the training after which it begins; 0.75 in the paper of swa.
    """

    name: Literal["none", "ema", "swa"] = "none"
    decay: Share = 0.995
    start: Share = 0.025


class Awp(Part):
    """Adversarial weight perturbation (Wu et al. 2020, 2004.05884).

    `gamma`: the size of the perturbation relative to the weights; 0 is off. `warmup`: the share of the epochs before it
    begins.
    """

    gamma: NotNegative = 0.0
    warmup: Share = 0.0


class Validation(Part):
    """Validation on held-out training images after each epoch: clean, and under PGD at the training eps.

    `fraction`: the share of the training images that is held out. `held_out`: how many are, in place of `fraction`:
    some of those that `train_n` leaves over, so that all `train_n` are trained on, or without `train_n` some of all.
    `seed`: draws them, so that runs of other seeds hold out the same. `n`: how many of them, drawn likewise, are scored
    at most after an epoch. `steps`: of the PGD. `select`: the epoch that becomes the model: the best under PGD
    ("robust"), the best on clean images ("clean"), or the last.
    """

    fraction: Annotated[Real, Field(ge=0, lt=1)] = 0.05
    held_out: Count | None = None
    seed: Seed = 0
    n: Count = 1000
    steps: Count = 10
    select: Literal["robust", "clean", "last"] = "robust"
