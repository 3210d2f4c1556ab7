"""The built wheel trains, evaluates and lists its attacks in a folder of its own, without this clone.

Its environment sees the packages of the one that runs this file, but none of what `.pth` files add to that: what is
installed as editable is not there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> None:
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # what an earlier build left there would get into the wheel
    with tempfile.TemporaryDirectory() as name:
        place, empty = Path(name), Path(name) / "empty"
        empty.mkdir()
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

        def run(*words: object) -> str:
            print("+", *words, flush=True)
            done = subprocess.run(
                [str(word) for word in words], cwd=empty, env=variables, check=True, text=True, stdout=subprocess.PIPE
            )
            print(done.stdout, end="", flush=True)
            return done.stdout

        pip = [sys.executable, "-m", "pip"]
        run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", place, ROOT)
        run(sys.executable, "-m", "venv", "--without-pip", place / "venv")
        python = place / "venv" / "bin" / "python"
        packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (wheel,) = place.glob("advbench-*.whl")
        run(*pip, "--python", python, "install", "--quiet", "--no-deps", "--ignore-installed", wheel)
        found = run(python, "-c", "import advbench; print(advbench.__file__)").strip()
        assert Path(found).is_relative_to(packages), f"advbench is that of {found}"
        advbench = python.with_name("advbench")
        assert "apgd-ce" in run(advbench, "list", "attacks")
        run(
            advbench,
            "train",
            "--method",
            "standard",
            "--dataset",
            "digits",
            "--arch",
            "mlp",
            "--epochs",
            1,
            "--out",
            "net",
        )
        told = run(advbench, "evaluate", "--model", "net", "--attack", "fgsm", "--eps", "0,0.1", "-n", 20)
        assert "0.1" in told


if __name__ == "__main__":
    main()
