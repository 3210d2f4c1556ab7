"""The tests under one factor at a time: other kernels of numpy, scipy and PyTorch, two threads, other releases.

    python tests/bench/matrix.py [FACTOR ...] [-- ARGUMENTS OF PYTEST]

Environments are made once, under .venv-matrix. Ends with a table, and with status 1 where a factor has failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".venv-matrix"


@dataclass(frozen=True)
class Factor:
    """Variables of the tests' environment; packages and Python of an environment of its own, where there are any."""

    variables: dict[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    python: str = ""


FACTORS = {
    "newest": Factor(),
    "haswell": Factor({"OPENBLAS_CORETYPE": "Haswell"}),
    "zen": Factor({"OPENBLAS_CORETYPE": "Zen"}),
    "prescott": Factor({"OPENBLAS_CORETYPE": "Prescott"}),
    "skylakex": Factor({"OPENBLAS_CORETYPE": "SkylakeX"}),
    "aten-default": Factor({"ATEN_CPU_CAPABILITY": "default"}),
    "aten-avx2": Factor({"ATEN_CPU_CAPABILITY": "avx2"}),
    "mkl": Factor({"MKL_CBWR": "COMPATIBLE"}),  # PyTorch's matrix products as on CPUs without AVX
    "onednn": Factor({"ONEDNN_MAX_CPU_ISA": "SSE41"}),  # its convolutions
    "threads-2": Factor({"ADVBENCH_TEST_THREADS": "2", "OMP_NUM_THREADS": "2"}),
    "torch-2.6": Factor(packages=("torch==2.6.*", "torchvision==0.21.*"), python="3.11"),
    "torch-2.11": Factor(packages=("torch==2.11.*", "torchvision==0.26.*"), python="3.12"),
}
# Kernels for another CPU may end a process at once.
PROBE = """
import numpy, scipy.linalg, torch
numpy.linalg.eigh(numpy.ones((99, 99)) @ numpy.ones((99, 99))), scipy.linalg.qr(numpy.ones((99, 99)))
torch.nn.functional.conv2d(torch.ones(2, 3, 32, 32), torch.ones(8, 3, 3, 3)), torch.ones(99, 99) @ torch.ones(99, 99)
"""


class Unavailable(Exception):
    """The factor cannot be had on this machine."""


def find_python(version: str) -> str:
    """A python of that version: this one, one on PATH, or one of pyenv's."""
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [sys.executable, f"python{version}", *map(str, kept.glob(f"{version}.*/bin/python{version}"))]
    for python in places:
        try:
            said = subprocess.run([python, "-V"], capture_output=True, text=True).stdout
        except OSError:
            continue
        if said.startswith(f"Python {version}."):
            return python
    raise Unavailable(f"there is no Python {version}")


def environment(name: str, factor: Factor) -> str:
    """The python that runs the tests; made where it is missing, or older than what the project asks for."""
    if not factor.packages:
        return sys.executable
    folder = PLACE / name
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists() or done.stat().st_mtime < (ROOT / "pyproject.toml").stat().st_mtime:
        if not python.exists():
            subprocess.run([find_python(factor.python), "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--upgrade"]
        newer = subprocess.run([*install, "pip", "setuptools>=77,<81"]).returncode  # older ones come with a Python
        if newer or subprocess.run([*install, "--editable", f"{ROOT}[dev]", *factor.packages]).returncode:
            raise Unavailable("its packages cannot be installed")
        done.touch()
    return str(python)


def run(name: str, factor: Factor, arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether the tests pass under it, and a row of the table."""
    began, report = time.monotonic(), PLACE / f"{name}.xml"
    print(f"\n== {name}: {factor.variables or factor.packages or 'this environment'}", flush=True)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **factor.variables}
    try:
        python = environment(name, factor)
        if subprocess.run([python, "-c", PROBE], env=variables, capture_output=True).returncode:
            raise Unavailable("this CPU cannot run its kernels")
    except Unavailable as reason:
        print(f"{name} is left out: {reason}", flush=True)
        return True, [name, f"left out: {reason}"]
    report.unlink(missing_ok=True)
    tests = [python, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", f"--junitxml={report}", *arguments]
    passed = subprocess.run(tests, env=variables, cwd=ROOT).returncode == 0
    minutes = f"{(time.monotonic() - began) / 60:.1f}"
    if not report.exists():
        return False, [name, "no report: pytest has failed", "", "", minutes]
    (suite,) = xml.parse(report).getroot().iter("testsuite")
    total, failures, errors, skipped = (int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    return passed, [name, str(total - failed - skipped), str(failed), str(skipped), minutes]


def main(words: list[str]) -> int:
    names, arguments = words, []
    if "--" in words:
        names, arguments = words[: words.index("--")], words[words.index("--") + 1 :]
    unknown = sorted(set(names) - FACTORS.keys())
    if unknown:
        print(f"unknown factor {', '.join(unknown)}: choose from {', '.join(FACTORS)}", file=sys.stderr)
        return 2
    PLACE.mkdir(exist_ok=True)
    results = [run(name, FACTORS[name], arguments) for name in names or FACTORS]
    print()
    for row in (["factor", "passed", "failed", "skipped", "minutes"], *(row for _, row in results)):
        print(f"{row[0]:14}" + " ".join(f"{cell:>8}" for cell in row[1:]))
    return 0 if all(passed for passed, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
