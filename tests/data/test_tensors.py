"""Data in memory: every natural form gives the right images, labels and number of classes, or one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils import data as torch_data

from advbench.data.dataset import Dataset
from advbench.data.tensors import from_object, from_tensors
from advbench.errors import UserError

BYTES = torch.randint(0, 256, (5, 3, 6, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 2, 0])
ARRAY = BYTES.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    "images",
    [
        BYTES,
        BYTES.to(memory_format=torch.channels_last),
        *((BYTES / 255).to(kind) for kind in (torch.float32, torch.float16, torch.bfloat16)),
        BYTES.double() / 255,
        (BYTES.float() / 255).double(),
        *(BYTES.to(kind) for kind in (torch.int16, torch.int32, torch.int64)),
        (BYTES.int() * 257).to(torch.uint16),
        (BYTES / 255).to_sparse(),
        ARRAY,
        ARRAY / 255,
        ARRAY.astype(">i4"),
        ARRAY[::-1][::-1],
        ARRAY.astype(np.uint16) * 257,
        list(ARRAY),
        ARRAY.tolist(),
    ],
)
def test_all_forms_of_bytes_are_the_same_images(images: Any) -> None:
    data = from_tensors(images, LABELS)
    assert torch.equal(data.images, BYTES)
    assert data.images_sha256 == from_tensors(BYTES, LABELS).images_sha256


def test_arrays_that_cannot_be_written_are_read() -> None:
    array = ARRAY.copy()
    array.setflags(write=False)
    assert torch.equal(from_tensors(array, LABELS).images, BYTES)


def test_every_byte_survives_every_float() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert torch.equal(from_tensors(every.to(kind) / 255, [0]).images, every)


@pytest.mark.parametrize("place", range(5))
def test_one_value_beside_the_bytes_keeps_all_floats(place: int) -> None:
    """They used to be rounded to bytes where they were near."""
    floats = (BYTES.clamp(1, 254) / 255).float()
    floats[place, 0, 0, 0] = torch.nextafter(floats[place, 0, 0, 0], torch.tensor(0.0))
    data = from_tensors(floats, LABELS)
    assert data.images.dtype == torch.float32
    assert torch.equal(data.batch(slice(None))[0], floats)


@given(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), st.permutations(range(4)))
def test_identity_of_floats(values: list[float], order: list[int]) -> None:
    x, y = torch.tensor(values).view(4, 1, 1, 1).expand(4, 1, 4, 4), torch.arange(4)
    data = from_tensors(x, y)
    for other in (x.double(), x.double().numpy(), x.to(memory_format=torch.channels_last), x.tolist()):
        assert from_tensors(other, y).images_sha256 == data.images_sha256
    assert torch.equal(data.pixels(data.images), x)
    moved = from_tensors(x[order], y[order])
    assert moved.subset(np.argsort(order).tolist()).images_sha256 == data.images_sha256
    assert (moved.images_sha256 == data.images_sha256) == (order == [0, 1, 2, 3])


def test_sixteen_bits_and_one() -> None:
    deep = np.array([[[0, 1000], [40_000, 65_535]]] * 5, np.uint16)
    assert from_tensors(deep, LABELS).images[0].flatten().tolist() == pytest.approx([0, 1000 / 65535, 40000 / 65535, 1])
    flat = BYTES[:, :1] > 127
    assert torch.equal(from_tensors(flat, LABELS).batch(slice(None))[0], flat.float())


@pytest.mark.parametrize(
    ("shape", "layout", "found"),
    [
        ((5, 6, 4), None, (1, 6, 4)),
        ((5, 1, 6, 4), None, (1, 6, 4)),
        ((5, 6, 4, 3), None, (3, 6, 4)),
        ((5, 4, 8, 8), None, (4, 8, 8)),
        ((5, 3, 8, 3), "nchw", (3, 8, 3)),
        ((5, 3, 8, 3), "nhwc", (3, 3, 8)),
        ((5, 8, 8, 4), "nhwc", (4, 8, 8)),
    ],
)
def test_layouts(shape: tuple[int, ...], layout: str | None, found: tuple[int, ...]) -> None:
    assert from_tensors(np.zeros(shape, np.uint8), LABELS, layout=layout).shape == found


def test_names_and_maps_of_labels() -> None:
    count = from_tensors(BYTES, LABELS)
    assert (count.num_classes, count.num_classes_known) == (3, False)
    told = from_tensors(BYTES, LABELS, num_classes=10)
    assert (told.num_classes, told.num_classes_known) == (10, True)
    named = from_tensors(BYTES, ["cat", "dog", "ant", "dog", "cat"], class_names=("ant", "cat", "dog", "elk"))
    assert (named.labels.tolist(), named.num_classes, named.class_names[3]) == ([1, 2, 0, 2, 1], 4, "elk")
    mapped = from_tensors(BYTES, LABELS - 1, class_map={-1: 9, 0: 4, 1: 4})
    assert (mapped.labels.tolist(), mapped.num_classes, mapped.num_classes_known) == ([9, 4, 4, 4, 9], 10, False)
    assert from_tensors(BYTES, LABELS[:, None].to(torch.uint8)).labels.tolist() == LABELS.tolist()
    words = np.array(["a", "c", "b", "c", "a"])
    assert from_tensors(BYTES, words, class_map={"a": 1, "b": 0, "c": 5}).labels.tolist() == [1, 5, 0, 5, 1]


def test_labels_as_others_store_them() -> None:
    assert from_tensors(BYTES, LABELS > 0).labels.tolist() == [0, 1, 1, 1, 0]
    words = np.array(list("acbca"), dtype=object)  # as pandas has them
    assert from_tensors(BYTES, words, class_names="abc").labels.tolist() == LABELS.tolist()
    assert from_tensors(BYTES, LABELS, class_names=["crane", "crane", "wren"]).num_classes == 3  # ImageNet has such


@pytest.mark.parametrize(
    ("x", "y", "how", "message"),
    [
        (BYTES.float(), LABELS, {}, "must lie in [0, 1]: divide by 255"),
        (BYTES.half(), LABELS, {}, "divide by 255"),
        (BYTES / 128 - 1.0, LABELS, {}, "normalisation is the model's part"),
        (torch.full_like(BYTES, torch.nan, dtype=torch.float32), LABELS, {}, "images hold NaN"),
        (BYTES.int() - 1, LABELS, {}, "images are int32 from -1 to"),
        (BYTES.long() * 2, LABELS, {}, "images are int64 from 0 to"),
        (BYTES.long() % 2, LABELS, {}, "from 0 to 1: give uint8 (0 to 255), uint16 (0 to 65535), bool, or floats"),
        (BYTES % 2, LABELS, {}, "images are uint8 from 0 to 1: give uint8 (0 to 255)"),
        (BYTES.to(torch.complex64), LABELS, {}, "images are complex64"),
        (BYTES[0, 0], LABELS, {}, "images must be (N, H, W), (N, C, H, W) or (N, H, W, C), not (6, 4)"),
        (BYTES[:0], LABELS[:0], {}, "there are no images"),
        (BYTES[:, :, :0], LABELS, {}, "not (5, 3, 0, 4)"),
        (torch.zeros(5, 3, 32, 3), LABELS, {}, "which axis of (5, 3, 32, 3) has the channels"),
        (BYTES, LABELS, {"layout": "chw"}, "unknown layout 'chw'"),
        ([BYTES[0], BYTES[0, :2]], LABELS, {}, "images cannot be made a tensor"),
        ("no images", LABELS, {}, "images cannot be made a tensor"),
        (None, LABELS, {}, "images cannot be made a tensor"),
        (BYTES, LABELS[:4], {}, "there are 5 images, but 4 labels"),
        (BYTES, torch.eye(5), {}, "labels are (5, 5), one-hot or probabilities: give y.argmax(1)"),
        (BYTES, LABELS.float(), {}, "labels must be whole numbers or names, (N,), not float32 (5,)"),
        (BYTES, [None] * 5, {}, "labels must be whole numbers or names"),
        (BYTES, list("aabbc"), {"class_names": list("abcb")}, "class_names has b more than once: give a class_map"),
        (torch.zeros(5, 3, 6, 4, device="meta"), LABELS, {}, "images cannot be made a tensor"),
        (BYTES, None, {}, "labels must be whole numbers or names"),
        (BYTES, LABELS - 1, {}, "labels run from -1 to 1"),
        (BYTES, LABELS, {"num_classes": 2}, "labels run from 0 to 2, but must lie in 0 to 1"),
        (BYTES, LABELS, {"num_classes": 0}, "num_classes is 0: it must be a whole number from 1"),
        (BYTES, LABELS, {"num_classes": "3"}, "num_classes is '3'"),
        (BYTES, LABELS, {"num_classes": 3, "class_names": "ab"}, "num_classes is 3, but there are 2 class_names"),
        (BYTES, LABELS, {"class_names": 3}, "class_names cannot be read"),
        (BYTES, LABELS, {"class_map": [1, 2, 3]}, "class_map is [1, 2, 3]: it must be a dict"),
        (BYTES, list("abcde"), {}, "labels are names, such as a: give class_names, or a class_map"),
        (BYTES, list("abcde"), {"class_names": "a"}, "labels without a class: b, c, d and 1 more; there are classes"),
        (BYTES, LABELS, {"class_map": {0: 1}}, "labels without a class: 1, 2; there are classes for [0]"),
        (BYTES, LABELS, {"class_map": {0: 1, 1: "x"}}, "the class of 1 is 'x': it must be a whole number from 0"),
    ],
)
def test_what_does_not_fit_is_one_line(x: Any, y: Any, how: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        from_tensors(x, y, **how)
    assert message in str(raised.value) and "\n" not in str(raised.value)


class Items(torch_data.Dataset[Any]):
    """A map-style dataset of `items`."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Named(Items):
    classes = ("zero", "one", "two")


class Stream(torch_data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return zip(BYTES, LABELS, strict=True)


class Noisy(Items):
    """With a random transform."""

    def __getitem__(self, index: int) -> Any:
        x, y = self.items[index]
        return (x / 255 + torch.rand(())) / 2, y


PAIRS = torch_data.TensorDataset(BYTES, LABELS)
PICTURES = [(Image.fromarray(image), int(label)) for image, label in zip(ARRAY, LABELS, strict=True)]


def collate(items: Any) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in items]), torch.tensor([int(y) for _, y in items])


@pytest.mark.parametrize(
    "obj",
    [
        (BYTES, LABELS),
        [BYTES, LABELS],
        PAIRS,
        list(zip(BYTES, LABELS, strict=True)),
        Items(list(zip(BYTES / 255, LABELS.tolist(), strict=True))),
        Items(PICTURES),
        Items(list(zip(ARRAY, LABELS.numpy(), strict=True))),
        Items(list(zip(BYTES, LABELS[:, None], strict=True))),
        Items(list(zip(BYTES[:, None], LABELS.tolist(), strict=True))),
        Stream(),
        torch_data.DataLoader(PAIRS),
        torch_data.DataLoader(PAIRS, batch_size=2, shuffle=True, drop_last=True),
        torch_data.DataLoader(PAIRS, batch_size=2, shuffle=True, collate_fn=collate),
        torch_data.DataLoader(PAIRS, batch_size=None),
        torch_data.DataLoader(Stream(), batch_size=3),
        torch_data.DataLoader(PAIRS, sampler=torch_data.SubsetRandomSampler([3, 1, 0, 4, 2])),
    ],
)
def test_every_form_is_read_in_order(obj: Any) -> None:
    before = torch.random.get_rng_state()
    data = from_object(obj)
    assert torch.equal(data.images, BYTES)
    assert torch.equal(data.labels, LABELS)
    assert torch.equal(before, torch.random.get_rng_state())


def test_parts_of_datasets() -> None:
    assert from_object(torch_data.Subset(PAIRS, [4, 1])).labels.tolist() == [0, 2]
    sampler = torch_data.SubsetRandomSampler([4, 1])
    assert from_object(torch_data.DataLoader(PAIRS, sampler=sampler)).labels.tolist() == [2, 0]
    for obj in (PAIRS, Stream(), torch_data.DataLoader(PAIRS, batch_size=2)):
        assert torch.equal(from_object(obj, n=3).images, BYTES[:3])
    grey = torch_data.TensorDataset(BYTES[:, 0], LABELS)
    assert from_object(torch_data.DataLoader(grey, batch_size=2)).shape == from_object(grey).shape == (1, 6, 4)


def test_a_random_transform_has_a_fixed_seed() -> None:
    data = Noisy(list(zip(BYTES, LABELS, strict=True)))
    torch.manual_seed(1)
    first = from_object(data).images_sha256
    torch.manual_seed(2)
    assert from_object(data).images_sha256 == first


def test_pictures_of_every_kind() -> None:
    coloured = Image.fromarray(ARRAY[0])
    for mode in ("RGBA", "P", "CMYK"):
        assert from_object([(coloured.convert(mode), 0)]).shape == (3, 6, 4)
    grey = Image.fromarray(ARRAY[0, :, :, 0])
    assert torch.equal(from_object([(grey, 0)]).images[0], BYTES[0, :1])
    assert from_object([(grey.convert("1"), 0)]).images.unique().tolist() == [0, 255]
    deep = Image.fromarray(np.full((6, 4), 40_000, np.uint16))
    big = Image.frombytes("I;16B", deep.size, np.asarray(deep).astype(">u2").tobytes())
    wide = Image.fromarray(np.asarray(deep).astype(np.int32))
    for picture in (deep, big, wide, Image.fromarray(np.asarray(deep, np.float32) / 65_535)):
        assert from_object([(picture, 0), (picture, 1)]).images.unique().tolist() == pytest.approx([40_000 / 65_535])
    wider = Image.fromarray(np.full((6, 4), 70_000, np.int32))
    with pytest.raises(UserError, match="image 0 of list has values from 70000 to 70000: write 8 or 16 bits"):
        from_object([(wider, 0)])


def test_the_names_that_a_dataset_has() -> None:
    data = Named(PICTURES)
    named = from_object(data)
    assert (named.name, named.class_names, named.num_classes_known) == ("Named", ("zero", "one", "two"), True)
    inside = torch_data.DataLoader(torch_data.Subset(Named(list(zip(BYTES, LABELS, strict=True))), [0]))
    assert (from_object(inside).name, from_object(inside).num_classes) == ("Named", 3)
    assert from_object(data, num_classes=7).num_classes == 7
    by_name = from_object(data, class_map={"zero": 30, "one": 10, "two": 20})
    assert (by_name.labels.tolist(), by_name.class_names) == ([30, 20, 10, 20, 30], ())
    assert from_object(data, class_map={0: 5, 1: 6, 2: 7}).labels.tolist() == [5, 7, 6, 7, 5]
    with pytest.raises(UserError, match="labels without a class: one; there are classes for"):
        from_object(data, class_map={"zero": 30, "two": 20})


class Faulty(Items):
    def __getitem__(self, index: int) -> Any:
        raise OSError("no such picture")


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ((BYTES, LABELS, LABELS), r"3 things are no data: give a pair \(x, y\)"),
        (7, r"int is no data: give a pair \(x, y\)"),
        (torch.nn.Flatten(), "Flatten is no data"),
        (BYTES, r"image 0 of Tensor comes as Tensor: items must be pairs \(image, label\)"),
        (Items([{"image": 1}]), r"image 0 of Items comes as dict: items must be pairs \(image, label\)"),
        (Items([]), "Items: there are no images"),
        (Items([(BYTES[0], 0), None]), "image 1 of Items comes as NoneType: items must be pairs"),
        (torch_data.DataLoader(PAIRS, collate_fn=lambda items: (0.5, 1)), "cannot be put together"),
        (Items([*zip(BYTES, LABELS, strict=True), (BYTES[0, :, :5], 0)]), r"image 5 of Items is uint8 \(3, 5, 4\), im"),
        (Items([(BYTES[0], 0), (BYTES[0] / 255, 0)]), "image 1 of Items is float32 .*bring all to one size and type"),
        (Faulty([1]), "cannot read image 0 of Faulty: .*no such picture"),
        ({"x": BYTES, "y": LABELS}, "image 0 of dict comes as str: items must be pairs"),
        (torch_data.DataLoader(PAIRS, sampler=torch_data.WeightedRandomSampler([1.0] * 5, 5)), "a sampler of its own"),
        (torch_data.DataLoader(PAIRS, batch_sampler=[[0, 1], [2]]), "a sampler of its own: give its dataset"),
        (Items([(BYTES[0], torch.eye(3)[0])] * 2), "one-hot or probabilities"),
    ],
)
def test_objects_that_are_no_data_are_one_line(obj: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        from_object(obj)
    assert "\n" not in str(raised.value)


def test_a_dataset_of_ours_is_itself() -> None:
    data: Dataset = from_tensors(BYTES, LABELS)
    assert from_object(data) is data
    with pytest.raises(UserError, match="it must be a dict"):
        from_object(PAIRS, class_map=3)
    with pytest.raises(UserError, match="leave out num_classes"):
        from_object(data, num_classes=3)


def test_images_without_anything_bright_are_pointed_out() -> None:
    assert from_tensors(BYTES, LABELS).notes == from_tensors(BYTES / 16 % 1, LABELS).notes == ()
    (note,) = from_tensors(BYTES % 17, LABELS).notes
    assert note.startswith("the brightest value is 16 of 255: if that is white")
