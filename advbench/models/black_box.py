"""Classifiers that are no nn.Module: functions of a batch, and predictors such as scikit-learn's.

They become modules without a gradient. Attacks see their answers alone.
"""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.errors import Interrupted, UserError, one_line, shortened
from advbench.models.digest import digest

METHODS = ("decision_function", "predict_proba", "predict")
SMALLEST = float(np.finfo(np.float32).tiny)  # to which probabilities are clamped before the logarithm

# Images x (B, C, H, W), a float32 tensor that the classifier may write to, in the forms that classifiers take.
_TO_FORM: dict[str, Callable[[Tensor], Any]] = {
    "a tensor": lambda x: x,
    "a tensor on the CPU": lambda x: x.cpu(),
    "an array (B, C, H, W)": lambda x: x.cpu().numpy(),
    "rows (B, C x H x W) in float64": lambda x: x.flatten(1).double().cpu().numpy(),
    "rows in float32": lambda x: x.flatten(1).cpu().numpy(),
    "an array (B, H, W, C)": lambda x: np.ascontiguousarray(x.permute(0, 2, 3, 1).cpu().numpy()),
}


class BlackBox(nn.Module):
    """`subject` as a module: images (B, C, H, W) float32 in [0, 1] to logits (B, K) float32, without a gradient.

    `classes`: those of the images, None if unknown. `arch`: what tables call the subject. The buffer `digest` is the
    sha256 of what the subject contains, empty where that cannot be told. The first of `forms` that the subject takes
    without an error is the form of all images.
    """

    digest: Tensor
    forms: ClassVar[tuple[str, ...]]
    shared: ClassVar[tuple[str, ...]] = ("subject",)  # by copies: it may hold what cannot be copied

    def __init__(self, subject: Any, classes: int | None, contents: bytes | None) -> None:
        super().__init__()
        self.eval()
        self.subject, self.classes = subject, classes
        self.form: str | None = None
        self.arch = _name(subject)
        self.register_buffer("digest", torch.tensor(list(contents or b""), dtype=torch.uint8))

    @property
    def code(self) -> str:
        """The name of the module whose code the subject is."""
        return str(getattr(_defined(self.subject), "__module__", None) or type(self.subject).__module__)

    def forward(self, x: Tensor) -> Tensor:
        """Raises UserError where the subject takes the images in none of the forms, or its answers are no logits."""
        if not isinstance(x, Tensor):
            raise TypeError("a black box takes tensors")  # and no tracer's stand-ins
        with torch.no_grad():
            answer = self._ask(x.detach())
        return answer.to(x.device, torch.float32) if isinstance(answer, Tensor) else answer

    def __deepcopy__(self, memo: dict[int, Any]) -> BlackBox:
        twin = self.__class__.__new__(self.__class__)
        memo |= {id(self): twin, **{id(vars(self)[name]): vars(self)[name] for name in self.shared}}
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        return twin

    @abstractmethod
    def answer(self, images: Any) -> Any:
        """The logits (B, K) of images in one of the forms."""

    def _ask(self, x: Tensor) -> Any:
        if self.form is not None:
            try:
                return self.answer(_TO_FORM[self.form](x.clone()))
            except (UserError, Interrupted, RuntimeError, MemoryError):  # out of memory among them
                raise
            except Exception as error:  # such as a lost connection
                raise UserError(f"{self.arch} failed: {type(error).__name__}: {one_line(error)}") from error
        reasons: dict[str, str] = {}
        for form in self.forms:
            try:
                found = self.answer(_TO_FORM[form](x.clone()))
            except (UserError, Interrupted):
                raise
            except Exception as error:  # the subject may raise anything
                reasons.setdefault(f"{type(error).__name__}: {one_line(error)}", form)
            else:
                self.form = form
                return found
        why = "; ".join(f"{form}: {reason}" for reason, form in reasons.items())
        raise UserError(f"{self.arch} takes the images in no form ({why})")


class Function(BlackBox):
    """A function of a batch, a tensor or, where it refuses that, a NumPy array.

    It answers with logits (B, K), with one logit for each image (two classes, the second where it is positive), or
    with labels (B,) as integers.
    """

    forms = ("a tensor", "a tensor on the CPU", "an array (B, C, H, W)")

    def __init__(self, subject: Callable[[Any], Any], classes: int | None = None) -> None:
        super().__init__(subject, classes, digest(subject))

    def answer(self, images: Any) -> Any:
        found = self.subject(images)
        if not isinstance(found, Tensor):
            if not hasattr(found, "__array__"):
                return found  # what it may be is the caller's matter, as for any module
            found = torch.from_numpy(np.array(found))
        if found.dim() == 1 and not found.is_floating_point():
            return torch.from_numpy(one_hot(found.cpu().numpy(), self.classes, self.arch))
        if found.dim() == 1 or (found.dim() == 2 and found.shape[1] == 1):
            found = found.reshape(-1)
            return torch.stack([torch.zeros_like(found), found], 1)
        return found


class Predictor(BlackBox):
    """An object with `decision_function`, `predict_proba` or `predict`, such as a classifier of scikit-learn.

    The first of these that it has gives the logits; of probabilities p they are log(max(p, SMALLEST)), which
    distinguish small ones, so that attacks that climb the margin see where to go. Labels alone are logits of 0 and 1.
    `predict`, where there is one, has the last word: the logit of its label is the largest, if need be by one rounding
    step, as on ties and with scikit-learn's SVC, whose scores and labels differ.

    `classes_` says which class a column is: a text that is among `class_names`, the dataset's by label, is that class;
    an integer, or its text, is the label; other names stand in their order for 0, 1, ... where the dataset has none.
    A class of the dataset that the predictor does not know has the lowest logit of its row less 1.
    """

    forms = (
        "rows (B, C x H x W) in float64", "rows in float32", "an array (B, C, H, W)", "an array (B, H, W, C)",
        "a tensor", "a tensor on the CPU",
    )  # fmt: skip

    def __init__(self, subject: Any, classes: int | None = None, class_names: Sequence[str] = ()) -> None:
        super().__init__(subject, classes, digest(subject))
        self.names = getattr(subject, "classes_", None)
        self.columns = None if self.names is None else columns(self.names, classes, self.arch, class_names)

    def answer(self, images: Any) -> Any:
        labels = np.asarray(self.subject.predict(images)) if hasattr(self.subject, "predict") else None
        if labels is not None and labels.ndim == 2 and labels.shape[1] > 1:  # `predict` gives scores
            return torch.from_numpy(np.asarray(labels, dtype=np.float32))
        scores = self._scores(images)
        if labels is not None:
            labels = labels.reshape(-1)
            if self.names is not None:
                known = labels[:, None] == np.asarray(self.names)[None]
                if not known.any(1).all():
                    raise UserError(f"{self.arch} predicts labels that are not among its classes_")
                labels = known.argmax(1)
        if scores is None:
            if labels is None:
                raise UserError(f"{self.arch} gives no scores (B, classes) and no labels")
            known_classes = self.classes if self.names is None else len(self.names)
            scores = one_hot(labels, known_classes, self.arch)
        elif labels is not None:
            scores = with_largest(scores, labels, self.arch)
        return torch.from_numpy(self._placed(scores))

    def _scores(self, images: Any) -> NDArray[np.float32] | None:
        """Scores (B, number of names), one column for each of the names; None without a method that gives them."""
        for method in METHODS[:2]:
            if not hasattr(self.subject, method):
                continue
            found = np.asarray(getattr(self.subject, method)(images), dtype=np.float64)
            if method == "decision_function" and found.ndim in (1, 2) and found.size == len(found):
                found = np.stack([np.zeros(len(found)), found.reshape(-1)], 1)
            if found.ndim == 2 and (self.names is None or found.shape[1] == len(self.names)):
                return (np.log(found.clip(SMALLEST)) if method == "predict_proba" else found).astype(np.float32)
        return None

    def _placed(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The columns where the dataset has their classes."""
        if self.columns is None:
            return scores
        placed = np.repeat(scores.min(1, keepdims=True) - 1, max(self.classes or 0, max(self.columns) + 1), axis=1)
        placed[:, self.columns] = scores
        return placed


def black_box(
    subject: Any, classes: int | None = None, name: str = "the model", class_names: Sequence[str] = ()
) -> nn.Module:
    """`subject` as a module: a function of a batch, or a predictor, becomes a BlackBox, and a module is itself.

    `classes`: the number of the images' classes, which labels without scores need. `class_names`: their names, by which
    a predictor's are placed. Raises UserError for anything else, which it calls `name`.
    """
    if isinstance(subject, nn.Module):
        return subject
    if is_predictor(subject):
        return Predictor(subject, classes, class_names)
    if callable(subject) and not isinstance(subject, type):
        return Function(subject, classes)
    what = f"the class {subject.__name__}" if isinstance(subject, type) else f"of type {type(subject).__name__}"
    raise UserError(
        f"{name} is {what}: a model is a torch.nn.Module, a function of a batch of images, or an object with "
        f"{', '.join(METHODS[:-1])} or {METHODS[-1]}"
    )


def is_predictor(subject: Any) -> bool:
    """Whether `subject` is an object, not a class, with one of METHODS."""
    found = not isinstance(subject, type | nn.Module) and any(callable(getattr(subject, m, None)) for m in METHODS)
    return bool(found)


def is_black_box(net: nn.Module) -> bool:
    """Whether `net` is a BlackBox, or has one as a part, so that it has no gradient."""
    return any(isinstance(part, BlackBox) for part in net.modules())


def columns(names: Any, classes: int | None, what: str, class_names: Sequence[str] = ()) -> list[int]:
    """The place among the dataset's `classes` of each of a predictor's `classes_`.

    Raises UserError where names that are no numbers are not among `class_names`, or where there are none, more or fewer
    than the classes.
    """
    if not len(names) or any(np.ndim(name) for name in names):
        raise UserError(f"{what} has several outputs, or no classes: one class for each image is needed")
    values = np.asarray(names)
    if values.dtype.kind in "UO" and set(values.tolist()) <= set(class_names):
        return [class_names.index(name) for name in values.tolist()]
    try:
        numbers = [int(value) for value in values.tolist()]
    except (TypeError, ValueError):
        numbers = []
    if numbers and min(numbers) >= 0 and [float(value) for value in values.tolist()] == numbers:
        return numbers
    if class_names:
        foreign = next(name for name in values.tolist() if name not in class_names)
        raise UserError(f"{what} has the class {shortened(foreign)}: the images have {', '.join(class_names[:10])}")
    if classes is not None and classes != len(values):
        raise UserError(f"{what} has the classes {', '.join(map(str, values[:5]))}, ...: the images have {classes}")
    return list(range(len(values)))


def one_hot(labels: NDArray[Any], classes: int | None, what: str) -> NDArray[np.float32]:
    """Logits (B, classes) float32 for labels (B,). UserError for labels that are no classes."""
    if classes is None:
        raise UserError(f"{what} answers with labels, which do not say how many classes there are: name the dataset")
    out = np.zeros((len(labels), classes), dtype=np.float32)
    out[np.arange(len(labels)), checked(labels, classes, what)] = 1
    return out


def checked(labels: NDArray[Any], classes: int, what: str) -> NDArray[np.int64]:
    """Labels (B,) as int64. Raises UserError for one that is no integer from 0 to classes - 1."""
    try:
        numbers = labels.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} answers {labels[0]!r}: a label is an integer from 0 to {classes - 1}") from error
    bad = ~((numbers >= 0) & (numbers < classes) & (numbers == np.floor(numbers)))
    if bad.any():
        raise UserError(f"{what} answers {labels[bad][0]}: a label is an integer from 0 to {classes - 1}")
    return numbers.astype(np.int64)


def with_largest(scores: NDArray[np.float32], labels: NDArray[Any], what: str) -> NDArray[np.float32]:
    """`scores` (B, K), where the score of the label (B,) is raised above all others if it is not."""
    rows, scores = np.arange(len(scores)), scores.copy()
    labels = checked(labels, scores.shape[1], what)
    own = scores[rows, labels]
    scores[rows, labels] = -np.inf
    scores[rows, labels] = np.maximum(own, np.nextafter(scores.max(1), np.float32(np.inf)))
    return scores


def _defined(subject: Any) -> Any:
    """The function, or the object, whose code `subject` is."""
    while isinstance(subject, partial):
        subject = subject.func
    return subject.__self__ if inspect.ismethod(subject) else subject


def _name(subject: Any) -> str:
    own = _defined(subject)
    return str(getattr(own, "__qualname__", None) or type(own).__name__)
