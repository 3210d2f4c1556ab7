"""ONNX files: modules of PyTorch where the conversion gives the same logits, else black boxes that onnxruntime runs."""

from __future__ import annotations

import hashlib
import importlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.errors import UserError, explained, one_line, reading
from advbench.models.black_box import BlackBox, one_hot

SUFFIX = ".onnx"
TOLERANCE = 1e-4  # of the largest logit: how much those of the converted net may differ
IMAGES = 8  # on which they are compared
_FLOATS = {"tensor(float)": torch.float32, "tensor(double)": torch.float64, "tensor(float16)": torch.float16}
_INTEGERS = ("tensor(int64)", "tensor(int32)")
_LAYOUTS = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 2, 3, 1)}


@dataclass(frozen=True)
class Interface:
    """The one input of a file, its dims None where any number will do, and the output that has the logits or labels."""

    name: str
    dtype: torch.dtype
    dims: tuple[int | None, ...]
    output: str
    place: int  # of that output among all

    def arranged(self, x: Tensor) -> Tensor:
        """Images x (B, C, H, W) as the file takes them: (B, C, H, W), (B, H, W, C) or rows (B, C x H x W).

        (B, C, H, W) if both would do. Raises UserError if none does.
        """
        x = x.to(self.dtype)
        if len(self.dims) == 2 and self.dims[1] in (None, x[0].numel()):
            return x.flatten(1)
        for order in _LAYOUTS.values():
            z = x.permute(order)
            if len(self.dims) == 4 and all(d in (None, n) for d, n in zip(self.dims[1:], z.shape[1:], strict=True)):
                return z.contiguous()
        takes = "x".join("?" if d is None else str(d) for d in self.dims)
        raise UserError(f"the ONNX file takes inputs of {takes}, the images are {'x'.join(map(str, x.shape[1:]))}")


class Runtime(BlackBox):
    """The file `content` as onnxruntime runs it on the CPU. `subject` is its bytes; a session is made when needed."""

    forms: ClassVar[tuple[str, ...]] = ("a tensor on the CPU",)
    shared: ClassVar[tuple[str, ...]] = ("subject", "session")

    def __init__(self, content: bytes, classes: int | None, contents: bytes) -> None:
        super().__init__(content, classes, contents)
        self.arch, self.session = "onnx", new_session(content)
        self.interface = interface(self.session)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "session": None}  # another process makes its own

    def answer(self, images: Tensor) -> Tensor:
        self.session = self.session or new_session(self.subject)
        size, n = self.interface.dims[0], len(images)
        parts = images.split(size) if size else (images,)
        found = np.concatenate([self._run(part, size)[: len(part)] for part in parts])[:n]
        if found.ndim == 1 and np.issubdtype(found.dtype, np.integer):
            found = one_hot(found, self.classes, self.arch)
        return torch.from_numpy(found)

    def _run(self, images: Tensor, size: int | None) -> NDArray[Any]:
        z = self.interface.arranged(images)
        if size and len(z) < size:  # the file has one size of batch
            z = torch.cat([z, z.new_zeros(size - len(z), *z.shape[1:])])
        (found,) = self.session.run([self.interface.output], {self.interface.name: z.numpy()})
        return np.asarray(found)


class Converted(nn.Module):
    """`net`, made of the file by onnx2pytorch, for images (B, C, H, W). `digest` (32,) uint8 tells files apart."""

    digest: Tensor

    def __init__(self, net: nn.Module, interface: Interface, contents: bytes) -> None:
        super().__init__()
        self.net, self.interface = net, interface
        self.register_buffer("digest", torch.tensor(list(contents), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        found = self.net(self.interface.arranged(x))
        return found if isinstance(found, Tensor) else found[self.interface.place]


def from_onnx(
    path: Path, image: tuple[int, int, int] | None, classes: int | None
) -> tuple[nn.Module, int | None, list[str]]:
    """(network, classes, notes) of an ONNX file, tried on random images of the shape `image` (C, H, W).

    `classes`: those of the images, None if unknown. Raises UserError without the packages, for a file that cannot be
    read or run, and for one that does not take the images.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    onnx = package("onnx")
    with reading(path):
        model = onnx.load(str(path))  # with data beside it, but from nowhere else
        contents = hashlib.sha256(path.read_bytes())
        for tensor in model.graph.initializer:
            contents.update(tensor.raw_data)
        runtime = Runtime(model.SerializeToString(), classes, contents.digest()).eval()
    image = image or image_of(runtime.interface)
    if image is None:
        raise UserError(f"{path} does not say the shape of its images: name the --dataset")
    size = runtime.interface.dims[0] or IMAGES
    x = torch.rand(size, *image, generator=torch.Generator().manual_seed(0))
    with explained(f"onnxruntime cannot run {path}"):
        logits = runtime(x)
    found = logits.shape[1] if logits.dim() == 2 and logits.shape[1] > 1 else None
    net = converted(model, x, logits, runtime.interface, contents.digest())
    if isinstance(net, str):
        return runtime, found, [f"{path} is a black box, run by onnxruntime: attacks see its answers alone ({net})"]
    return net, found, [f"{path} was converted to PyTorch: on {size} images its logits are those of onnxruntime"]


def converted(model: Any, x: Tensor, logits: Tensor, form: Interface, contents: bytes) -> nn.Module | str:
    """The network of `model` in PyTorch, which has a gradient, and the logits at images x; or why there is none."""
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            made = importlib.import_module("onnx2pytorch").ConvertModel(without_aliases(model))
            net = Converted(made, form, contents).eval()
            z = x.clone().requires_grad_()
            with torch.enable_grad():
                found = net(z)
            if found.shape != logits.shape or not found.requires_grad:
                return "converted to PyTorch it has no gradient, or no logits"
            (slope,) = torch.autograd.grad(found.double().square().sum(), z)
            difference = float((found.detach() - logits).abs().max() / logits.abs().max().clamp(min=1e-30))
    except Exception as error:  # the converter may raise anything
        return f"no conversion to PyTorch: {type(error).__name__}: {one_line(error)}"
    if not (difference <= TOLERANCE and bool(slope.isfinite().all())):
        return f"converted to PyTorch its logits would differ by {difference:.1e} of the largest"
    return net


def without_aliases(model: Any) -> Any:
    """A copy of `model` that reads weights by their own names: exporters give equal weights one, and alias the rest."""
    twin = type(model)()
    twin.CopyFrom(model)
    named, aliases = {weight.name for weight in twin.graph.initializer}, dict[str, str]()
    for node in list(twin.graph.node):
        for place, name in enumerate(node.input):
            node.input[place] = aliases.get(name, name)
        if node.op_type == "Identity" and node.input[0] in named:
            aliases[node.output[0]] = node.input[0]
            twin.graph.node.remove(node)
    return twin


def interface(session: Any) -> Interface:
    """How images go into a session of onnxruntime, and logits or labels come out. Raises UserError if they do not."""
    takes, gives = session.get_inputs(), session.get_outputs()
    if len(takes) != 1:
        raise UserError(f"the ONNX file takes {len(takes)} inputs ({', '.join(one.name for one in takes)}), not one")
    if takes[0].type not in _FLOATS:
        raise UserError(f"the ONNX file takes {takes[0].type}: images are floating-point numbers in [0, 1]")
    scores = [one for one in gives if one.type in _FLOATS and len(one.shape) in (0, 1, 2)]
    labels = [one for one in gives if one.type in _INTEGERS and len(one.shape) == 1]
    chosen = next((one for one in scores if one.name == "logits"), None) or next(iter([*scores, *labels]), None)
    if chosen is None:
        forms = ", ".join(f"{one.name}: {one.type} {one.shape}" for one in gives)
        raise UserError(f"the ONNX file gives no logits (B, K) and no labels (B,), but {forms}")
    dims = tuple(dim if isinstance(dim, int) and dim > 0 else None for dim in takes[0].shape)
    return Interface(takes[0].name, _FLOATS[takes[0].type], dims, chosen.name, gives.index(chosen))


def image_of(interface: Interface) -> tuple[int, int, int] | None:
    """The shape (C, H, W) of the images that the file declares; None if it leaves it open, or takes rows."""
    known = [dim for dim in interface.dims[1:] if dim is not None]
    return (known[0], known[1], known[2]) if len(interface.dims) == 4 and len(known) == 3 else None


def new_session(content: bytes) -> Any:
    """A session of onnxruntime on the CPU, with PyTorch's number of threads, that logs nothing."""
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 4
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def package(name: str) -> Any:
    """The package, imported. Raises UserError, naming the extra, where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"ONNX files need {name} ({one_line(error)}): pip install 'advbench[onnx]'") from error
