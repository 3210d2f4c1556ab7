"""The target of `attack` and `evaluate`: a model, its test images, the norm and the device."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advbench import consent
from advbench.eps import Eps, parse_eps
from advbench.errors import UserError, unknown
from advbench.registry import entries, training_dataset

if TYPE_CHECKING:
    import torch

    from advbench.checkpoint import Loaded
    from advbench.data import Progress
    from advbench.data.dataset import Dataset
    from advbench.models.normalized import Written

DEVICES = ("auto", "cpu", "cuda", "cuda:N")
Cache = dict[str, "Dataset"]


@dataclass(frozen=True)
class Target:
    """A loaded model, the whole test split, and the norm and eps that its training suggests.

    `about_data` says why it is this dataset. `train_eps` is the training eps if the model was trained in `norm`.
    """

    loaded: Loaded
    data: Dataset
    about_data: str
    norm: str
    train_eps: Eps | None

    @classmethod
    def of(cls, loaded: Loaded, data: Dataset, about_data: str = "given", *, norm: str | None = None) -> Target:
        """The target in `norm`; None: the norm that the model was trained in, else linf.

        Raises UserError if `data` holds images that the model was trained on, or has its classes under other labels.
        """
        from advbench.data.folder_checks import check_held_back, check_names

        known = training_dataset(loaded.dataset) if loaded.dataset else None
        check_held_back(known, data.name)
        present = set(data.labels.unique().tolist())
        check_names(known, data.name, {at: name for at, name in enumerate(data.class_names) if at in present})
        trained = loaded.trained or {}
        norm = norm or trained.get("norm") or "linf"
        text = trained.get("eps_text") if trained.get("norm") == norm else None
        return cls(loaded, data, about_data, norm, parse_eps(str(text), norm) if text else None)


def pick_device(asked: str | torch.device) -> torch.device:
    """The device that is asked for (auto, cpu, cuda, cuda:N) here. Raises UserError."""
    name = str(asked)
    kind, colon, number = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and (kind != "cuda" or not number.isdecimal())):
        raise unknown("device", name, DEVICES)
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= int(number or 0):
            choices = ["auto", "cpu", *(f"cuda:{index}" for index in range(count))]
            raise UserError(f"device {name!r} is not on this machine: choose from {', '.join(choices)}")
    return torch.device(name)


def newest_run() -> str:
    """The newest folder under runs/. Raises UserError naming --model when there is none."""
    from advbench.checkpoint import newest_run

    return str(newest_run(Path("runs")))


def target_of(
    model: Any,
    data: Dataset | str | None,
    *,
    arch: str | None,
    norm: str | None,
    device: torch.device,
    mean: Written = None,
    std: Written = None,
    abstain: str | None = None,
    fetching: Progress | None = None,
) -> Target:
    """The target that a Python program names: a spec (text or path), a Loaded or a network, and images. UserError."""
    from advbench.checkpoint import Loaded
    from advbench.data import load
    from advbench.data.dataset import Dataset
    from advbench.evaluator import bare

    if isinstance(model, str | Path):
        name, cache = (data.name, {data.name: data}) if isinstance(data, Dataset) else (data, None)
        return load_target(
            str(model), dataset=name, arch=arch, norm=norm, device=device, mean=mean, std=std, abstain=abstain,
            fetching=fetching, cache=cache,
        )  # fmt: skip
    if arch is not None:
        raise UserError(f"arch {arch!r} is for the weights in a file, not for a network: leave it out")
    about = "given"
    with ExitStack() as stack:
        if data is None and isinstance(model, Loaded) and model.dataset is not None:
            data, about = training_dataset(model.dataset), "what the model is for"
            stack.enter_context(consent.reading(model.spec).given())
        if data is None:
            raise UserError("which images? name a dataset, or give a pair (x, y)")
        images = data if isinstance(data, Dataset) else load(data, "test", progress=fetching)
    loaded = model if isinstance(model, Loaded) else bare(model, images)
    loaded = loaded.read_as(mean=mean, std=std, abstain=abstain, channels=images.shape[0])
    return Target.of(loaded, images, about, norm=norm)


def load_target(
    spec: str,
    *,
    dataset: str | None,
    arch: str | None,
    norm: str | None,
    device: torch.device,
    mean: Written = None,
    std: Written = None,
    abstain: str | None = None,
    fetching: Progress | None = None,
    cache: Cache | None = None,
) -> Target:
    """Load the model `spec` and its test images. Whatever is None is taken from the model. Raises UserError.

    `mean`, `std` and `abstain` say how the model reads its images and what it answers (see `Loaded.read_as`).
    `cache` holds the datasets loaded so far, so that several models share them.
    """
    from advbench.checkpoint import load_model, read_card
    from advbench.data import load

    cache = {} if cache is None else cache

    def images(name: str) -> Dataset:
        if name not in cache:
            cache[name] = load(name, "test", progress=fetching)
        return cache[name]

    data, about = None, "given"
    if dataset is not None:
        data = images(dataset)
    elif Path(spec).is_dir():  # of all specs, only a run is a folder
        with consent.reading(spec).given():
            data, about = images(training_dataset(read_card(Path(spec)).dataset)), "what it was trained on"
    loaded = load_model(spec, arch=arch, dataset=data, norm=norm, device=device, mean=mean, std=std, abstain=abstain)
    if data is None:
        if loaded.dataset is None:
            choices = ", ".join(entries("data"))
            raise UserError(f"{spec} does not say what images it is for: name them with --dataset ({choices})")
        with consent.reading(spec).given():
            data, about = images(training_dataset(loaded.dataset)), "what the model is for"
    if not data.num_classes_known:
        data = data.with_classes(loaded.num_classes)
    return Target.of(loaded, data, about, norm=norm)
