"""What a measurement ran on."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import torch

from advbench.environment import environment
from advbench.version import __version__


def test_versions_and_threads_are_reported() -> None:
    found = environment()
    assert found["torch"] == metadata.version("torch") and found["advbench"] == __version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["threads"] == torch.get_num_threads() and found["device"] == "cpu" and found["device_name"]
    assert json.loads(json.dumps(found)) == found


def test_asking_loads_no_torch() -> None:
    script = "import sys, advbench.environment as e; e.environment(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
