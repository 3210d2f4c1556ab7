"""What a measurement ran on: versions, platform and device. torch is asked only if it is already loaded."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from advbench.version import __version__


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions of the packages that decide numbers, the platform, the name of `device` and the number of threads."""
    torch = sys.modules.get("torch")
    found: dict[str, Any] = {
        "advbench": __version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "torchvision": _version("torchvision"),
        "numpy": _version("numpy"),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "device": str(device).partition(":")[0],
        "device_name": _processor(),
        "threads": os.cpu_count() or 1,
    }
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        if found["device"] == "cuda":
            found["device_name"] = torch.cuda.get_device_name(device)
            found["cuda"] = torch.version.cuda
            found["cudnn"] = torch.backends.cudnn.version()
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
