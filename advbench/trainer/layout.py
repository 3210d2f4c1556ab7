"""The memory layout in which a net is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from advbench.models.untouched import untouched


def to_layout(f: nn.Module, x: Tensor) -> torch.memory_format:
    """Move f into the memory layout in which it is trained, which is returned: NHWC if it can be, else NCHW.

    NHWC suits tensor cores, and is 1.2 to 1.3 times as fast on a CPU for nets such as small_cnn. A net that uses `view`
    raises for such tensors, and oneDNN goes wrong on some (`_Narrow`). x: a few images, (B, C, H, W), on f's device.
    """
    narrow = _Narrow()
    try:
        with untouched(f), torch.no_grad(), narrow:
            f.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            f(x.contiguous(memory_format=torch.channels_last))
    except Exception:  # if it is another fault, it appears again where f is tried, or at the first step
        narrow.found = True
    layout = torch.contiguous_format if narrow.found else torch.channels_last
    f.to(memory_format=layout)  # type: ignore[call-overload]
    return layout


class _Narrow(TorchDispatchMode):
    """Whether a CPU convolves by 1x1 with a stride and fewer channels than a vector register holds (16).

    In NHWC, oneDNN's gradient of such weights writes past its memory: it is wrong, or the process dies (oneDNN issue
    6035, open in torch 2.14).
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight, _, stride = args[:4]
            side = weight.shape[2:].numel()
            self.found |= x.device.type == "cpu" and side == 1 and max(stride) > 1 and weight.shape[1] < 16
        return func(*args, **(kwargs or {}))
