"""The job scripts of docs/how-to/slurm.md: each does with stand-ins of Slurm what the page says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pages
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "slurm.md"
SCRIPTS = {block.file: block.text for block in pages.blocks(PAGE) if block.kind == "file"}
# Stand-ins: srun starts its command once a task, and its exit code is the largest; advbench says with what it was
# started, and ends as if stopped by a signal.
SLURM = """
srun() {
  largest=0
  for SLURM_PROCID in $(seq 0 $((SLURM_NTASKS - 1))); do
    export SLURM_PROCID SLURM_LOCALID=$SLURM_PROCID
    "$@" || { code=$?; [ $code -gt $largest ] && largest=$code; }
  done
  return $largest
}
scontrol() { case $1 in show) echo node7; echo node8 ;; *) echo "scontrol $*" ;; esac; }
"""
ADVBENCH = """#!/bin/bash
echo "${RANK:-0} ${WORLD_SIZE:-1} ${MASTER_ADDR:--} $*"
exit $CODE
"""


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_job_is_requeued_when_it_was_stopped(tmp_path: Path, name: str, code: int) -> None:
    script = SCRIPTS[name]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)  # all of it, also what does not run
    assert script.startswith("#!/bin/bash\n#SBATCH ") and "#SBATCH --signal=USR1@120\n" in script
    program = tmp_path / "advbench"
    program.write_text(ADVBENCH)
    program.chmod(0o755)
    tasks = 4 if "ntasks-per-node=4" in script else 1
    variables = {"SLURM_JOB_ID": "81", "SLURM_JOB_NODELIST": "node[7-8]", "CODE": str(code)}
    ended, said = pages.run_outside(SLURM + script, tmp_path, str(tmp_path), SLURM_NTASKS=str(tasks), **variables)
    assert ended == code
    *started, last = said.splitlines()
    if code != 3:
        started.append(last)
    assert last == "scontrol requeue 81" if code == 3 else "scontrol" not in said
    commands = [line.split(maxsplit=3) for line in started]
    expected = [[str(rank), str(tasks), "node7" if tasks > 1 else "-"] for rank in range(tasks)]
    assert [command[:3] for command in commands][:tasks] == expected
    assert all(" --resume" in command[3] for command in commands)
    if name == "train.sbatch":
        assert [command[3].split()[0] for command in commands] == (["train", "evaluate"] if code == 0 else ["train"])
