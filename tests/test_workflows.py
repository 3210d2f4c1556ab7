"""The project's workflows and the one to copy: pinned actions, the least permissions, no input within a script."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from actions import BASH, ROOT, read

OWN = sorted((ROOT / ".github/workflows").glob("*.yml"))
COPIED = ROOT / "docs/how-to/robustness.yml"
WORKFLOWS = [*OWN, COPIED]
PERMISSIONS: dict[tuple[str, str], dict[str, str]] = {  # of the jobs that need more than to read the repository
    ("docs", "deploy"): {"pages": "write", "id-token": "write"},
    ("release", "build"): {"contents": "read", "id-token": "write", "attestations": "write"},
    ("release", "publish"): {"id-token": "write"},
}


def scripts(steps: list[dict[str, Any]]) -> Iterator[str]:
    return (step["run"] for step in steps if "run" in step)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_workflow(path: Path) -> None:
    text, workflow = path.read_text(), read(path)
    assert "secrets" not in text and "pull_request_target" not in workflow["on"]
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job.get("permissions", {}) == PERMISSIONS.get((path.stem, name), {})
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"\./|[\w-]+/[\w-]+@v\d[\d.]*", step.get("uses", "./")), step
        for script in scripts(job["steps"]):
            assert "${{" not in script
            subprocess.run([*BASH, "-n", "-c", script], check=True)


def test_every_use_of_an_action_is_of_one_version() -> None:
    """Also in the workflow to copy, where nothing but this looks for newer ones."""
    found = {use for path in WORKFLOWS for use in re.findall(r"uses: ([\w/-]+@\S+)", path.read_text())}
    assert len({use.partition("@")[0] for use in found}) == len(found)


def test_the_action_is_given_inputs_as_variables() -> None:
    action = read(ROOT / "action.yml")
    used = re.findall(r"\$\{\{ inputs\.([\w-]+) \}\}", (ROOT / "action.yml").read_text())
    assert sorted(used) == sorted(action["inputs"])
    for script in scripts(action["runs"]["steps"]):
        assert "${{" not in script and "eval" not in script.replace("advbench evaluate", "")
        subprocess.run([*BASH, "-n", "-c", script], check=True)


def test_the_tests_run_on_what_the_package_supports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    matrix = read(ROOT / ".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]
    assert project["requires-python"] == f">={matrix['python'][0]}"
    for line in (ROOT / ".github/oldest.txt").read_text().splitlines()[1:]:
        assert line.replace("==", ">=").removesuffix(".*") in project["dependencies"]


def test_dependabot_looks_at_actions_and_packages() -> None:
    found = read(ROOT / ".github/dependabot.yml")
    assert {one["package-ecosystem"] for one in found["updates"]} == {"github-actions", "pip"}
