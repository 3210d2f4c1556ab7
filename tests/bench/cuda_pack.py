"""What `bench_cuda.py` needs on a machine without a network, in one folder of less than 64 MiB.

    python tests/bench/cuda_pack.py [--model SPEC] [--arch ARCH] [--dataset cifar10] --to FOLDER

`images.npz` has the test split; `weights.safetensors` the weights in bf16, if the network is one of the zoo. Others are
named there as here, and what they need must be there too.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from advbench.checkpoint import load_model
from advbench.data import load
from advbench.errors import UserError
from advbench.models import describe
from advbench.models.base import Model
from advbench.models.external import METADATA
from advbench.models.outside import Outside

IMAGES, WEIGHTS, MOST = "images.npz", "weights.safetensors", 64 * 2**20


def pack(model: str, arch: str | None, dataset: str, to: Path) -> int:
    """Write the folder, and return its bytes. Raises UserError if these are more than `MOST`."""
    data = load(dataset, "test")
    net = load_model(model, arch=arch, dataset=data).net
    to.mkdir(parents=True, exist_ok=True)
    images = data.images if data.scale == 255 else data.pixels(data.images)
    np.savez(to / IMAGES, x=images.numpy(), y=data.labels.numpy(), num_classes=data.num_classes)
    (to / WEIGHTS).unlink(missing_ok=True)
    if isinstance(net, Model) and not isinstance(net, Outside):
        state = {
            name: (value.to(torch.bfloat16) if value.is_floating_point() else value).contiguous()
            for name, value in net.state_dict().items()
        }
        safetensors.torch.save_file(state, to / WEIGHTS, {METADATA: json.dumps(describe(net), sort_keys=True)})
    size = sum(file.stat().st_size for file in to.iterdir())
    if size >= MOST:
        raise UserError(f"{to} has {size / 2**20:.0f} MiB, more than {MOST >> 20}: choose a smaller network or dataset")
    return size


def main() -> None:
    """Pack, and say what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pyautoattack:model_test")
    parser.add_argument("--arch", default=None)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--to", type=Path, required=True)
    given = parser.parse_args()
    try:
        size = pack(given.model, given.arch, given.dataset, given.to)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{given.to}: {size / 2**20:.0f} MiB: {', '.join(sorted(file.name for file in given.to.iterdir()))}")


if __name__ == "__main__":
    main()
