"""Weight files, and the hash that identifies weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from advbench.files import write_atomic
from advbench.models import describe
from advbench.models.adapted import plain
from advbench.models.base import Model
from advbench.models.external import METADATA
from advbench.models.normalized import normalises
from advbench.models.outside import stored


def weights_sha256(net: nn.Module) -> str:
    """sha256 (hex) of all parameters and buffers: name, dtype, shape and bytes of each, sorted by name.

    The packed weights of quantised layers and the constants of TorchScript, into which freezing turns parameters, count
    as well. It does not depend on the file, device or memory layout, nor on what `adapted` puts around `net`, nor on
    `Outside` unless that normalises: a run of one's own network and a file of its weights are one model.
    """
    net, digest = plain(net), hashlib.sha256()
    net = net if normalises(net) else stored(net)
    tensors = [*net.named_parameters(), *net.named_buffers(), *_packed(net), *_constants(net)]
    for name, value in sorted(tensors, key=lambda pair: pair[0]):
        tensor = (value.dequantize() if value.is_quantized else value).detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _packed(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the tensors in the state of `net` that are neither parameters nor buffers."""
    known = {name for name, _ in net.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in net.named_buffers(remove_duplicate=False)}
    try:
        state = net.state_dict()
    except Exception:  # one's own `get_extra_state` may raise anything: then there is nothing more to count
        return
    for name, value in state.items():
        if name not in known:
            parts = (value,) if isinstance(value, Tensor) else value if isinstance(value, tuple | list) else ()
            yield from ((f"{name}.{at}", part) for at, part in enumerate(parts) if isinstance(part, Tensor))


def _constants(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the tensors in the code of the TorchScript modules in `net`."""
    for path, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and hasattr(module, "forward"):
            for name, value in module.code_with_constants[1].const_mapping.items():
                if isinstance(value, Tensor):
                    yield f"{path}.forward.{name}", value


def save_weights(net: nn.Module, path: Path) -> str:
    """Write the state dict as safetensors, atomically. Returns the sha256 (hex) of the file's bytes.

    The keys of a network from outside are its own. The header contains a Model's description, so the file of a net of
    the zoo loads without --arch. Raises UserError if it cannot be written.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in stored(net).state_dict().items()}
    seen: set[int] = set()
    for name, value in tensors.items():
        if value.numel() and value.data_ptr() in seen:  # safetensors refuses tensors that share memory
            tensors[name] = value.clone()
        seen.add(value.data_ptr())
    about = {METADATA: json.dumps(describe(net), sort_keys=True)} if isinstance(net, Model) else None
    content = safetensors.torch.save(tensors, metadata=about)
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()
