"""Running the steps of a workflow and of a composite action with bash, as a runner of a code host does."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
BASH = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail"]  # what `shell: bash` stands for


def read(path: Path) -> dict[str, Any]:
    """A YAML file with `on` as a key, which YAML 1.1 takes for true."""
    content = yaml.safe_load(path.read_text())
    return {"on" if key is True else key: value for key, value in content.items()}


@dataclass
class Runner:
    """`workspace`: the checkout; `place`: a folder outside of it. `path` comes first on PATH."""

    workspace: Path
    place: Path
    path: Path
    summary: str = ""
    log: str = ""
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)

    def composite(
        self, action: Mapping[str, Any], given: Mapping[str, Any], folder: Path
    ) -> tuple[int, dict[str, str]]:
        """Run the steps of `action`, which lies in `folder`, up to the first that fails: its exit code, the outputs."""
        assert action["runs"]["using"] == "composite" and given.keys() <= action["inputs"].keys()
        inputs = {name: str(given.get(name, about.get("default", ""))) for name, about in action["inputs"].items()}
        values = {f"inputs.{name}": value for name, value in inputs.items()}
        code = 0
        for step in action["runs"]["steps"]:
            code, told = self._step(step, values, folder)
            values |= {f"steps.{step.get('id')}.outputs.{name}": value for name, value in told.items()}
            if code:
                break
        return code, {name: self._filled(about["value"], values) for name, about in action["outputs"].items()}

    def _step(self, step: Mapping[str, Any], values: Mapping[str, str], folder: Path) -> tuple[int, dict[str, str]]:
        assert step["shell"] == "bash" and "${{" not in step["run"]
        script, output, summary = (self.place / name for name in ("script.sh", "output", "summary"))
        script.write_text(step["run"])
        output.write_text("")
        summary.write_text("")
        here = {name: self._filled(str(value), values) for name, value in step.get("env", {}).items()}
        standard = {
            "PATH": f"{self.path}:{os.environ['PATH']}",
            "HOME": str(self.place),
            "GITHUB_ACTION_PATH": str(folder),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(summary),
            "RUNNER_TEMP": str(self.place / "temp"),
            "OMP_NUM_THREADS": "1",
        }
        (self.place / "temp").mkdir(exist_ok=True)
        ran = subprocess.run(
            [*BASH, str(script)], cwd=self.workspace, env=standard | here, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.log += ran.stdout
        self.summary += summary.read_text()
        return ran.returncode, dict(line.split("=", 1) for line in output.read_text().splitlines())

    @staticmethod
    def _filled(text: str, values: Mapping[str, str]) -> str:
        return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda found: values.get(found[1], ""), text)
