"""Data in memory as a Dataset: tensors, arrays, and the datasets and loaders of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils import data as torch_data

from advbench import rng
from advbench.data.dataset import Dataset, check_range
from advbench.errors import UserError, explained, shortened, unknown

CLASSES = ("num_classes", "class_names", "class_map", "layout")
"""What `from_tensors` and `from_object` can be told of images and labels."""

LAYOUTS = ("nchw", "nhwc")
_CHANNELS = (1, 3)
DARK = 64  # of 255: where nothing is brighter, white is probably another number
_FORMS = (
    "a pair (x, y) of images and labels, a dataset whose items are such pairs, a DataLoader of one, or an "
    "advbench.data.dataset.Dataset"
)


def from_tensors(
    x: Any,
    y: Any,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    class_map: Mapping[Any, int] | None = None,
    layout: str | None = None,
    name: str = "tensors",
    split: str = "test",
) -> Dataset:
    """A split of images x and labels y: tensors, arrays, or what NumPy makes arrays of.

    x is (N, H, W), (N, C, H, W) or (N, H, W, C), told apart by the axis of 1 or 3 channels or by `layout` ("nchw",
    "nhwc"). Its values:

    - floats in [0, 1]. Where all are k / 255 as their type rounds it, they are the bytes k, and the same images as
      these; other floats are kept as float32.
    - uint8, and any other whole numbers from 0 to 255 of which one is above 1: bytes, 255 is 1.
    - uint16 with a value above 255: 65535 is 1.
    - bool: 0 and 1.

    y is (N,) or (N, 1): whole numbers or bool, which are the classes, or keys of `class_map`, which maps what is stored
    (numbers or names) to the classes of the model; or names that are among `class_names`. The number of classes is
    `num_classes`, or that of `class_names` (the model's classes, in its order). Without both it is one more than the
    largest label, and a model may have more. Raises UserError for anything else.
    """
    with explained(f"{name}: images cannot be read"):
        images = _images(_array(x, f"{name}: images"), layout, name)
    with explained(f"{name}: class_names cannot be read"):
        names = tuple(map(str, class_names))
    labels = _labels(y, len(images), class_map, names, name)
    if num_classes is not None and (not _is_whole(num_classes) or num_classes < 1):
        raise UserError(f"{name}: num_classes is {shortened(num_classes)}: it must be a whole number from 1")
    if num_classes and names and num_classes != len(names):
        raise UserError(f"{name}: num_classes is {num_classes}, but there are {len(names)} class_names")
    data = Dataset.whole(
        images,
        labels,
        name=name,
        split=split,
        num_classes=int(num_classes or len(names) or max(int(labels.max()) + 1, 1)),
        class_names=names,
        num_classes_known=bool(num_classes or names),
    )
    brightest = int(images.max()) if images.dtype == torch.uint8 else 255
    dark = f"the brightest value is {brightest} of 255: if that is white, divide by it and give floats in [0, 1]"
    return replace(data, notes=(dark,)) if brightest < DARK else data


def from_object(obj: Any, *, n: int | None = None, name: str | None = None, split: str = "test", **how: Any) -> Dataset:
    """`obj` as a Dataset: a pair (x, y) for `from_tensors`, a dataset whose items are (image, label), or a DataLoader.

    Images may be tensors, arrays or PIL images, of one size. A DataLoader's dataset is read in its order, once, whether
    it shuffles or not, through its collate function. Only the first `n` images are read; None: all. Random transforms
    draw from a fixed seed. `how`: the arguments CLASSES of `from_tensors`; without them the names in an attribute
    `classes` are those of the classes, as in torchvision, and keys of `class_map` may be these names. A Dataset is
    returned as it is. Raises UserError for anything else.
    """
    if isinstance(obj, Dataset):
        if how:
            raise UserError(f"{obj.name} says what its classes are: leave out {', '.join(how)}")
        return obj
    is_list_of_items = isinstance(obj, list) and bool(obj) and all(isinstance(item, tuple) for item in obj)
    if isinstance(obj, (tuple, list)) and not is_list_of_items:
        if len(obj) != 2:
            raise UserError(f"{len(obj)} things are no data: give {_FORMS}")
        return from_tensors(*obj, name=name or "tensors", split=split, **how)
    source = obj
    while isinstance(source, (torch_data.DataLoader, torch_data.Subset)):
        source = source.dataset
    name = name or type(source).__name__
    with rng.kept(0):
        x, y = _read(obj, n, name)
    stored = _names(source)
    class_map = how.get("class_map")
    if class_map and isinstance(class_map, Mapping) and all(isinstance(key, str) for key in class_map):
        y = [stored[label] if _is_whole(label) and 0 <= label < len(stored) else label for label in y]
    elif not any(how.get(word) for word in ("num_classes", "class_names", "class_map")):
        how["class_names"] = stored
    return from_tensors(x, y, name=name, split=split, **how)


def _array(values: Any, what: str) -> Tensor:
    """`values` as a tensor on the CPU, which may share their memory."""
    with explained(f"{what} cannot be made a tensor"):
        if isinstance(values, Tensor):
            return values.detach().to_dense().cpu()
        array = np.asarray(values)
        # A copy where others' memory is read-only, reversed or big-endian, which tensors cannot be.
        return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def _images(values: Tensor, layout: str | None, what: str) -> Tensor:
    """uint8 or float32 (N, C, H, W) of images in any form that `from_tensors` takes. Raises UserError."""
    shape = tuple(values.shape)
    if layout is not None and layout not in LAYOUTS:
        raise unknown("layout", str(layout), LAYOUTS)
    if len(shape) not in (3, 4) or 0 in shape[1:]:
        raise UserError(f"{what}: images must be (N, H, W), (N, C, H, W) or (N, H, W, C), not {shape}")
    if shape[0] == 0:
        raise UserError(f"{what}: there are no images")
    if len(shape) == 3:
        return _stored(values[:, None], what)
    if layout is None:
        first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
        if first == last and (first or shape[1] >= min(shape[2:])):
            raise UserError(f'{what}: which axis of {shape} has the channels? Say layout="nchw" or "nhwc"')
        layout = "nhwc" if last else "nchw"
    return _stored(values.permute(0, 3, 1, 2) if layout == "nhwc" else values, what)


def _stored(values: Tensor, what: str) -> Tensor:
    """The values (N, C, H, W) as uint8 where they are bytes, else as float32. Raises UserError."""
    kind = str(values.dtype).removeprefix("torch.")
    if values.is_complex():
        raise UserError(f"{what}: images are {kind}: give floats in [0, 1], or uint8")
    if values.dtype == torch.bool:
        values = values.to(torch.uint8) * 255
    if not values.is_floating_point() and (values.dtype != torch.uint8 or int(values.max()) == 1):
        values = values.to(torch.int32 if values.dtype == torch.uint16 else torch.int64)
        low, high = int(values.min()), int(values.max())
        if kind == "uint16" and high > 255:
            values = values.float() / 65535
        elif low >= 0 and 1 < high <= 255:
            values = values.to(torch.uint8)
        else:
            raise UserError(
                f"{what}: images are {kind} from {low} to {high}: give uint8 (0 to 255), uint16 (0 to 65535), bool, or "
                "floats in [0, 1]"
            )
    if values.is_floating_point():
        values = values.float() if values.dtype == torch.float64 else values
        check_range(values, what)
        values = _bytes(values)
    return values.contiguous()


def _bytes(values: Tensor) -> Tensor:
    """uint8 k, if all floats are k / 255 as their type rounds it; else the values as float32."""
    found = []
    for part in values.split(1024):
        steps = (part.float() * 255).round()
        if not torch.equal((steps / 255).to(part.dtype), part):
            return values.float()
        found.append(steps.to(torch.uint8))
    return torch.cat(found)


def _labels(y: Any, count: int, class_map: Mapping[Any, int] | None, names: tuple[str, ...], what: str) -> Tensor:
    """int64 (N,), the class of each of `count` images. Raises UserError."""
    with explained(f"{what}: labels cannot be made an array"):
        stored = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if stored.dtype.kind in "OT":  # texts, as pandas and others have them
        stored = np.array(stored.tolist())
    if stored.ndim == 2 and stored.shape[1] == 1:
        stored = stored[:, 0]
    if stored.ndim == 2 and len(stored) == count:
        raise UserError(f"{what}: labels are {stored.shape}, one-hot or probabilities: give y.argmax(1)")
    if stored.ndim == 1 and len(stored) != count:
        raise UserError(f"{what}: there are {count} images, but {len(stored)} labels: give one for each")
    if stored.dtype.kind not in "biuU" or stored.ndim != 1:
        raise UserError(f"{what}: labels must be whole numbers or names, (N,), not {stored.dtype} {stored.shape}")
    if stored.dtype.kind == "U" and class_map is None:
        if not names:
            raise UserError(f"{what}: labels are names, such as {stored[0]}: give class_names, or a class_map")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{what}: labels are names, but class_names has {twice} more than once: give a class_map")
        class_map = {name: label for label, name in enumerate(names)}
    if class_map is not None:
        stored = _mapped(stored, class_map, what)
    return torch.from_numpy(stored.astype(np.int64))


def _mapped(stored: NDArray[Any], class_map: Mapping[Any, int], what: str) -> NDArray[np.int64]:
    """The classes (N,) of stored labels (N,). Raises UserError for labels without a class."""
    if not isinstance(class_map, Mapping):
        raise UserError(f"{what}: class_map is {shortened(class_map)}: it must be a dict of stored label to class")
    faulty = next((key for key, value in class_map.items() if not _is_whole(value) or value < 0), None)
    if faulty is not None:
        raise UserError(f"{what}: the class of {faulty!r} is {class_map[faulty]!r}: it must be a whole number from 0")
    kinds, place = np.unique(stored, return_inverse=True)
    lacking = [str(kind) for kind in kinds.tolist() if kind not in class_map]
    if lacking:
        first = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise UserError(f"{what}: labels without a class: {first}; there are classes for {shortened(list(class_map))}")
    return np.array([class_map[kind] for kind in kinds.tolist()], dtype=np.int64)[place]


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _names(obj: Any) -> tuple[str, ...]:
    """The names of the classes that a dataset has as `classes`."""
    names = getattr(obj, "classes", ())
    return tuple(names) if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names) else ()


def _read(obj: Any, n: int | None, name: str) -> tuple[Tensor, list[Any]]:
    """The images and labels of a dataset or DataLoader, the first `n` or all. Raises UserError."""
    items = _items(obj, name)
    batched = isinstance(obj, torch_data.DataLoader) and obj.batch_size is not None
    images: list[Tensor] = []
    labels: list[Any] = []
    end = object()
    while n is None or len(labels) < n:
        at = f"image {len(labels)} of {name}"
        with explained(f"cannot read {at}"):
            item = next(items, end)
        if item is end:
            break
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise UserError(f"{at} comes as {type(item).__name__}: items must be pairs (image, label)")
        x, y = _pixels(item[0], at), item[1].tolist() if hasattr(item[1], "tolist") else item[1]
        if not batched and x.dim() < 4:
            x, y = x[None], [y]
        if images and (x.shape[1:], x.dtype) != (images[0].shape[1:], images[0].dtype):
            found, first = (f"{str(one.dtype)[6:]} {tuple(one.shape[1:])}" for one in (x, images[0]))
            raise UserError(f"{at} is {found}, image 0 {first}: bring all to one size and type, such as by a transform")
        images.append(x)
        labels += y if isinstance(y, (list, tuple)) else [y]
    if not images:
        raise UserError(f"{name}: there are no images")
    with explained(f"the images of {name} cannot be put together"):
        return torch.cat(images)[:n], labels[:n]


def _items(obj: Any, name: str) -> Iterator[Any]:
    if isinstance(obj, torch_data.DataLoader):
        obj = _in_order(obj, name)
    elif (
        hasattr(obj, "__getitem__")
        and hasattr(obj, "__len__")
        and not isinstance(obj, torch_data.IterableDataset | Mapping)
    ):
        with explained(f"cannot read {name}"):
            return map(obj.__getitem__, range(len(obj)))
    if not hasattr(obj, "__iter__"):
        raise UserError(f"{name} is no data: give {_FORMS}")
    with explained(f"cannot read {name}"):
        return iter(obj)


def _in_order(loader: torch_data.DataLoader[Any], name: str) -> torch_data.DataLoader[Any]:
    """The same loader without shuffling. Raises UserError where its sampler draws images in another way."""
    data, sampler = loader.dataset, loader.sampler
    if isinstance(data, torch_data.IterableDataset):
        return loader
    if isinstance(sampler, torch_data.SubsetRandomSampler):
        data = torch_data.Subset(data, sorted(sampler.indices))
    elif not isinstance(sampler, (torch_data.SequentialSampler, torch_data.RandomSampler)) or (
        loader.batch_size is None and loader.batch_sampler is not None
    ):
        raise UserError(f"{name} chooses its images by a sampler of its own: give its dataset, or a Subset of that")
    return torch_data.DataLoader(
        data, batch_size=loader.batch_size, collate_fn=loader.collate_fn, num_workers=loader.num_workers
    )


def _pixels(image: Any, what: str) -> Tensor:
    """One image, or a batch of them, as a tensor."""
    if not isinstance(image, Image.Image) or image.mode in ("1", "L", "RGB", "F"):
        return _array(image, what)
    if not image.mode.startswith("I"):
        return _array(image.convert("RGB"), what)
    values = np.asarray(image)  # of 16 bits, in Pillow's wider type too
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise UserError(f"{what} has values from {low} to {high}: write 8 or 16 bits")
    return _array(values.astype(np.uint16), what)
