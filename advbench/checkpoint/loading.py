"""Loading the network that a specification names."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advbench import consent, rng
from advbench.checkpoint.card import BEST, CARD, LAST, read_card
from advbench.checkpoint.code import code_sha256, is_outside
from advbench.checkpoint.weights import weights_sha256
from advbench.data.dataset import Dataset
from advbench.errors import UserError, one_line, unknown
from advbench.files import plain_path, sha256_file
from advbench.models import external
from advbench.models.adapted import adapted
from advbench.models.described import rebuild_for
from advbench.models.normalized import (
    Normalized,
    Written,
    by_channel,
    normalises,
    own_normalisation,
    parse_statistics,
)
from advbench.models.state_files import fit_state, read_state
from advbench.registry import entries

GREY = "; pictures are read in colour: give grey ones as npz:FILE or by module:callable"


@dataclass(frozen=True)
class Loaded:
    """A network in eval mode on its device, and what is known about it.

    `trained`: what its run's card says of the training, None for other models. `notes`: for the user. `folder` and
    `file`: the run folder and the file in it that holds the network, None for other models. `code_sha256`: hash of its
    source files from outside, if any. `name`: what its run calls it, if anything. `outside`: whether code from outside,
    or a pickled object, decides what it answers. `mean` and `std`: the normalisation put in front of it, one number a
    channel, which `net` includes and `weights_sha256` does not. `abstain`: "last" if the last of its K + 1 logits means
    that it rejects the input.
    """

    net: nn.Module = field(repr=False)
    spec: str
    arch: str
    weights_sha256: str
    trained: dict[str, Any] | None
    num_classes: int
    notes: tuple[str, ...] = ()
    dataset: str | None = None
    folder: Path | None = None
    file: str | None = None
    code_sha256: str | None = None
    name: str | None = None
    outside: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    abstain: Literal["last"] | None = None

    def read_as(
        self, *, mean: Written = None, std: Written = None, abstain: str | None = None, channels: int | None = None
    ) -> Loaded:
        """This model, its images normalised by `mean` and `std` and its answers read as `abstain` says.

        `mean` and `std`: see `normalized.parse_statistics`. `channels`: of the images, None where that is not known.
        Raises UserError for what is written wrongly, and for a network that is known to normalise its images itself.
        """
        check_reading(mean, std, abstain)
        loaded = replace(self, abstain="last") if abstain else self
        found = parse_statistics(mean, std)
        if found is None:
            return loaded
        if self.spec.startswith("robustbench:") or normalises(self.net):
            raise UserError(f"{self.spec} normalises its images itself: leave out --mean and --std")
        if channels is not None:
            found = by_channel("--mean", found[0], channels), by_channel("--std", found[1], channels)
        means, deviations = (",".join(map(str, numbers)) for numbers in found)
        notes = (*self.notes, f"images are normalised by mean {means} and std {deviations} in front of it")
        if own := own_normalisation(self.net):
            notes = (*notes, f"it has a layer {own} of its own: are its images normalised twice?")
        net = Normalized(self.net, *found)
        net.training = getattr(self.net, "training", False)
        return replace(loaded, net=net, mean=found[0], std=found[1], notes=notes)


def check_reading(mean: Written, std: Written, abstain: str | None) -> None:
    """Raise UserError for arguments of `Loaded.read_as` that are wrong for every model."""
    if abstain not in (None, "last"):
        raise unknown("value of --abstain", str(abstain), ("last",))
    parse_statistics(mean, std)


def load_model(
    spec: str,
    *,
    arch: str | None = None,
    dataset: Dataset | str | None = None,
    norm: str | None = None,
    device: torch.device | str = "cpu",
    mean: Written = None,
    std: Written = None,
    abstain: str | None = None,
    trust_pickle: bool = False,
    trust_code: bool = False,
) -> Loaded:
    """The network that `spec` names: a run folder, one of its weight files, or any of `external.FORMS`.

    `dataset` (loaded, or its name): the network must fit it. It also chooses between models of one name, and gives
    the classes and channels that a weight file does not give. `norm` only chooses between models of one name. `mean`,
    `std` and `abstain`: see `Loaded.read_as`.
    Raises UserError, in one line, for an unknown model, a damaged file, weights that do not fit, and channels or
    classes that differ from the dataset's; and Untrusted, unless `trust_pickle`, for a pickle that could run code, and,
    unless `trust_code` or `arch` names it, for code that only a run folder names.
    """
    with consent.also(pickle=trust_pickle, code=trust_code).given():
        shape = _shape(dataset)
        loaded = _load(spec, arch, shape, norm)
        if shape is not None:
            classes = shape.num_classes if shape.known else None
            net, notes = adapted(loaded.net, torch.full((2, *shape.image), 0.5), classes)
            loaded = replace(loaded, net=net, notes=(*loaded.notes, *notes))
        channels = shape.image[0] if shape is not None else getattr(loaded.net, "in_channels", None)
        loaded = loaded.read_as(mean=mean, std=std, abstain=abstain, channels=channels)
        if shape is not None:
            loaded = replace(loaded, num_classes=_check_fits(loaded, shape))
        net, name = loaded.net, loaded.arch
        loaded = replace(loaded, code_sha256=code_sha256(net, name), outside=loaded.outside or is_outside(net, name))
        loaded.net.to(device)
        return loaded


def _load(spec: str, arch: str | None, shape: external.Shape | None, norm: str | None) -> Loaded:
    if not spec or not spec.isprintable():
        raise UserError(f"{spec!r} names no model: write {external.FORMS}")
    run = _in_run(Path(spec))
    if run is not None:
        return _load_run(spec, *run, arch)
    found = external.load(spec, arch=arch, shape=shape, norm=norm)
    classes = found.num_classes or (shape.num_classes if shape else _outputs(found.net))
    if not classes:
        raise UserError(f"{spec} does not say its number of classes: name the --dataset")
    digest = weights_sha256(found.net)
    spec = plain_path(spec) if os.path.isfile(spec) else spec
    return Loaded(found.net, spec, found.arch, digest, None, classes, found.notes, found.dataset, outside=found.whole)


def _in_run(path: Path) -> tuple[Path, str] | None:
    """The run folder and the file in it that `path` means; None if it is not part of a run."""
    if os.path.isdir(path):  # unlike Path.is_dir it accepts impossible file names
        return path, BEST
    for folder in path.parents[:2] if os.path.isfile(path) else ():
        name = path.relative_to(folder).as_posix()
        if not (folder / CARD).is_file():
            continue
        try:
            if name in read_card(folder).files:
                return folder, name
        except UserError:
            if name in (BEST, LAST):  # otherwise run.json may belong to another program
                raise
    return None


def _load_run(spec: str, folder: Path, file: str, arch: str | None) -> Loaded:
    card = read_card(folder)
    model = card.model
    if arch is not None and arch != model.arch:
        instead = f"write --arch {model.arch}" if ":" in model.arch else f"leave out --arch {arch}"
        raise UserError(f"{spec} is a run of {model.arch}: {instead}")
    if file not in card.files or not (folder / file).is_file():
        ended = (folder / "train_state").is_dir() and file in (BEST, LAST)
        how = f"; its training may go on: advbench train --resume --out {quote(str(folder))}" if ended else ""
        raise UserError(f"{folder} is not a complete run folder: {file} is missing{how}")
    if sha256_file(folder / file) != card.files[file]:
        raise UserError(f"{folder / file} is truncated or altered: its sha256 is not the one in {CARD}")
    if file in (BEST, LAST):
        state, _ = read_state(folder / file)
        assert isinstance(state, dict)
        with consent.reading(folder / CARD, arch).given():
            net: nn.Module = rebuild_for(state, model.model_dump(mode="json"), str(folder / file))
        fit_state(net, state, str(folder / file), model.arch)
        name, classes = model.arch, model.num_classes
    else:  # another network of the run: its file has its description
        part = external.load(str(folder / file))
        net, name, classes = part.net, part.arch, part.num_classes or model.num_classes
    notes = () if card.finished else (f"{folder} was not trained to the end",)
    digest = weights_sha256(net)
    loaded = Loaded(
        net.eval(), plain_path(spec), name, digest, card.trained, classes, notes, card.dataset, folder, file
    )
    return replace(loaded, name=card.name if file == BEST else None)


def _shape(dataset: Dataset | str | None) -> external.Shape | None:
    if isinstance(dataset, Dataset):
        return external.Shape(
            dataset.name, dataset.num_classes, dataset.shape, dataset.num_classes_known, dataset.class_names
        )
    if dataset is None:
        return None
    entry = entries("data").get(dataset)
    if entry is None or "shape" not in entry.about:
        return None  # its shape is known only once it is loaded
    channels, height, width = entry.about["shape"]
    names = tuple(entry.about.get("class_names", ()))
    return external.Shape(dataset, int(entry.about["num_classes"]), (channels, height, width), class_names=names)


def _check_fits(loaded: Loaded, shape: external.Shape) -> int:
    """The number of logits. Raises UserError unless the network maps images of this shape to logits of its classes."""
    net, images = loaded.net, "x".join(map(str, shape.image))
    channels = getattr(net, "in_channels", shape.image[0])
    if channels != shape.image[0]:
        takes = f"{channels} channel{'s' * (channels != 1)}"
        hint = GREY if channels == 1 and shape.name.startswith("imagefolder:") else ""
        raise UserError(f"{loaded.spec} takes images of {takes}, {shape.name} has {images}{hint}")
    try:
        with torch.no_grad(), rng.kept():  # some networks draw random numbers
            logits = net(torch.full((2, *shape.image), 0.5))
    except Exception as error:  # a network from elsewhere may raise anything
        reason = one_line(error)
        raise UserError(f"{loaded.spec} does not take the {images} images of {shape.name}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2:
        raise UserError(f"{loaded.spec} does not map images to logits (B, classes): of 2 images {answered(logits)}")
    return check_classes(
        loaded.spec, logits.shape[1], shape.name, shape.num_classes, known=shape.known, abstain=loaded.abstain
    )


def check_classes(model: str, outputs: int, dataset: str, classes: int, *, known: bool, abstain: str | None) -> int:
    """The number of classes of a model with so many outputs, one of which is the rejection if it may `abstain`.

    Raises UserError unless it is that of `dataset`, or larger where the labels alone say how many there are (not
    `known`).
    """
    count = outputs - 1 if abstain else outputs
    if count == classes or (not known and count > classes):
        return count
    least = "" if known else "at least "
    if abstain:
        raise UserError(
            f"{model} has {outputs} logits: --abstain {abstain} needs {least}{classes + 1}, one for each of the "
            f"{classes} classes of {dataset} and one for the rejection"
        )
    hint = ': if its last logit means "rejected", use --abstain last' if outputs == classes + 1 else ""
    raise UserError(f"{model} has {outputs} classes, {dataset} has {least}{classes}{hint}")


def answered(outputs: Any) -> str:
    """What a network made of images, in place of logits."""
    if not isinstance(outputs, Tensor):
        return f"it makes a {type(outputs).__name__}"
    return f"it makes {str(outputs.dtype).removeprefix('torch.')} {tuple(outputs.shape)}"


def _outputs(net: nn.Module) -> int:
    """The outputs of the last fully connected layer; 0 without one."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    return layers[-1].out_features if layers else 0
