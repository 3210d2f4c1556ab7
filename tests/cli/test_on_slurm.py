"""`--on slurm`: the records are those of a local run, also of tasks that are preempted or killed on the way.

With submitit's debug and local executors, and its Slurm executor on stand-ins of Slurm's programs.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from advbench import train
from advbench.checkpoint import read_card
from advbench.cli import run
from advbench.cli.bar import Bar
from advbench.cli.cluster import slurm
from advbench.cli.cluster.slurm import Task
from advbench.cli.cluster.tasks import perform
from advbench.cli.console import Screen
from advbench.cli.stop import Stop
from advbench.cli.train import train_task
from advbench.consent import Consent
from advbench.errors import Interrupted, UserError
from advbench.files import locked
from advbench.recipe import Recipe
from advbench.record import load_records

submitit = pytest.importorskip("submitit")
# The debug executor does not close its logs.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
    pytest.mark.usefixtures("collected"),
]
QUICK = {"train_n": 256, "batch_size": 32, "validation.n": 32, "inner.steps": 2, "optim.lr": 0.05}
SETS = [word for name, value in QUICK.items() for word in ("--set", f"{name}={value}")]
TRAIN = ["train", "--dataset", "digits", "--arch", "mlp", "--eps", "0.1", "--device", "cpu", *SETS, "--epochs", "1"]
EVALUATE = ["evaluate", "--attack", "signalling:attack", "--attack", "apgd-ce", "--eps", "0.05,0.1", "-n", "40"]
EVALUATE += ["--device", "cpu", "--probes", "off"]
# In a job of submitit the attack first sends its process the next signal of the file `signals`, and while there is a
# file `wait` it waits.
SIGNALLING = """
import fcntl, os, time
from pathlib import Path

def attack(model, x, y, eps):
    job = os.environ.get("SUBMITIT_LOCAL_JOB_ID") or os.environ.get("SLURM_ARRAY_TASK_ID")
    while job and Path("wait").exists():
        time.sleep(0.05)
    seen, signals = Path(f"seen-{job}"), Path("signals")
    if job and not seen.exists() and signals.exists():
        seen.touch()
        with signals.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # two jobs must not take the same one
            number, *rest = file.read().split() or ["0"]
            file.seek(0)
            file.truncate()
            file.write(" ".join(rest))
        if number != "0":
            os.kill(os.getpid(), int(number))
    return x
"""


@pytest.fixture
def collected() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A folder with `count` models in `runs`, and in `local` the records that a local run makes of them."""

    @cache
    def make(count: int) -> Path:
        folder = tmp_path_factory.mktemp("made")
        (folder / "signalling.py").write_text(SIGNALLING)
        with chdir(folder), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", [*sys.path])
            for seed in range(count):
                train(
                    "pgd-at", dataset="digits", arch="mlp", eps="0.1", epochs=1, seed=seed, device="cpu", settings=QUICK
                )
            assert run([*EVALUATE, *named(folder), "--out", "local"]) == 0
        return folder

    return make


def named(folder: Path) -> list[str]:
    """The models in a folder, as words of a command."""
    return [word for path in sorted(folder.glob("runs/*")) for word in ("--model", f"runs/{path.name}")]


def models(cli: Any, made: Callable[[int], Path], count: int) -> list[str]:
    shutil.copytree(made(count), cli.folder, dirs_exist_ok=True)
    return named(cli.folder)


def ids(folder: str) -> set[str]:
    return {record.id for record in load_records(Path(folder) / "records")[0]}


def test_in_this_process(cli: Any, made: Any) -> None:
    words, debug = models(cli, made, 2), ("--on", "slurm:executor=debug")
    ran = cli(*EVALUATE, *words, "--out", "remote", *debug)
    assert ran.code == 0 and "2 evaluations on this process" in ran.out and ran.out.count("record remote") == 2
    assert "passes not counted" in ran.out and "measured before" not in ran.out
    for record in load_records(Path("remote/records"))[0]:
        assert list(record.environment.command)[:3] == ["advbench", "evaluate", "--attack"]
    ran = cli(*EVALUATE, *words, "--out", "remote", "--on", "slurm:executor=debug,cpus=2,partition=gpu")
    assert "without cpus, partition" in ran.out and ran.out.count("measured before") == 2
    assert ids("remote") == ids("local") and len(ids("local")) == 2
    ran = cli(*TRAIN, "--method", "pgd-at,trades", "--out", "sweep", *debug)
    assert ran.code == 0 and ran.out.count("trained in") == 2
    assert all(read_card(run).finished for run in (cli.folder / "sweep").iterdir())
    ran = cli(*TRAIN, "--method", "pgd-at,trades", "--out", "sweep", "--resume", "--on", "slurm")
    assert ran.code == 0 and ran.err.count("is finished") == 2  # nothing to submit
    ran = cli(*TRAIN, "--method", "pgd-at,trades", "--out", "sweep", "--resume", "--on", "slurm", "--dry-run")
    assert ran.code == 0 and "#!/bin/bash" not in ran.out
    with locked(cli.folder / "sweep/trades-digits-mlp-linf-0.1-s0/.lock"):
        ran = cli(*TRAIN, "--method", "trades", "--out", "sweep/trades-digits-mlp-linf-0.1-s0", "--force", *debug)
    assert ran.code == 2 and ran.err.startswith("error: another process holds sweep/trades")
    assert read_card(cli.folder / "sweep/trades-digits-mlp-linf-0.1-s0").finished


def test_a_task_that_fails_does_not_end_the_others(cli: Any, made: Any) -> None:
    words = models(cli, made, 2)
    ran = cli(*EVALUATE, "--model", "nowhere", *words[:2], "--out", "remote", "--on", "slurm:executor=debug")
    assert ran.code == 2 and len(ids("remote")) == 1 and ids("remote") < ids("local")
    assert "1 of 2 tasks failed; the first: nowhere: " in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err and "--resume tries them again" in ran.err


@pytest.mark.parametrize(
    ("place", "device", "says"),
    [
        (
            "slurm",
            "cpu",
            "this machine has no sbatch: type it where Slurm's jobs are submitted",
        ),
        ("slurm:executor=debug,gpus=0", "cuda", "asks for no GPU"),
        ("slurm:executor=debug", "gpu", "choose from auto, cpu, cuda, cuda:N"),
    ],
)
def test_bad_input(cli: Any, monkeypatch: pytest.MonkeyPatch, place: str, device: str, says: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    ran = cli("evaluate", "--model", "runs/a", "--device", device, "--on", place)
    assert ran.is_one_clear_line and says in ran.err
    assert not cli.files()


def test_an_evaluation_there_does_not_start_over(cli: Any) -> None:
    ran = cli("evaluate", "--model", "runs/a", "--force", "--on", "slurm:executor=debug")
    assert ran.is_one_clear_line and "go on with what was saved: leave it out" in ran.err


def test_a_dry_run_prints_the_script(cli: Any) -> None:
    place = "slurm:partition=gpu,time=240,gpus=1,cpus=8,mem_gb=32,array=2,reservation=mine"
    ran = cli(*TRAIN, "--device", "auto", "--method", "pgd-at,trades", "--seed", "0,1", "--on", place, "--dry-run")
    assert ran.code == 0 and ran.out.startswith("#!/bin/bash\n") and "nothing was submitted" in ran.err
    asked = "array=0-3%2 partition=gpu time=240 gpus-per-node=1 cpus-per-task=8 mem=32GB reservation=mine requeue"
    for option in (*asked.split(), "signal=USR1@120", "open-mode=append"):
        assert f"#SBATCH --{option}\n" in ran.out
    assert "export SUBMITIT_PREEMPT_SIGNAL=USR1\n" in ran.out and " --cpus-per-task=8 " in ran.out
    assert ran.err.count("task ") == 4 and not cli.files()
    ran = cli("evaluate", "--model", "a", "--on", place, "--dry-run")
    assert ran.code == 0 and "--array" not in ran.out and not cli.files()
    ran = cli("evaluate", "--model", "a", "--on", "slurm:executor=local", "--dry-run")
    assert ran.is_one_clear_line and "executor=local has none" in ran.err


class Requeued(BaseException):
    pass


def requeue(number: int, frame: object) -> None:
    """In the place of submitit's handler of the signal, which ends the process."""
    raise Requeued


requeue.__module__ = "submitit.core.job_environment"


@pytest.mark.parametrize(
    ("numbers", "raised"),
    [
        ([signal.SIGUSR1], Requeued),
        ([signal.SIGTERM], SystemExit),  # scancel: it stays away
        ([signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM], Requeued),  # a preemption
    ],
)
def test_what_a_task_does_when_signals_come(numbers: list[int], raised: type[BaseException]) -> None:
    steps: list[bool] = []

    def work(stop: Stop) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
        steps.append(stop())
        raise Interrupted("saved")

    before = signal.signal(signal.SIGUSR1, requeue)
    try:
        with pytest.raises(raised):
            Task(work)()
        assert steps == [True] and signal.getsignal(signal.SIGUSR1) is requeue
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_preempted_training_ends_with_the_same_weights(cli: Any) -> None:
    recipe = Recipe.resolve(method="pgd-at", dataset="digits", arch="mlp", eps="0.1", sets=[*SETS[1::2], "epochs=20"])
    given = {"recipe": recipe.tree(), "device": "cpu", "log": None, "name": None}
    call = partial(perform, train_task, str(cli.folder), allowed=Consent(), screen=Screen(silent=True))
    Task(partial(call, given={**given, "out": "local"}))()
    task, begun = Task(partial(call, given={**given, "out": "remote"})), threading.Event()

    def preempt() -> None:
        while not (cli.folder / "remote/run.json").exists():
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGUSR1)
        begun.set()

    before = signal.signal(signal.SIGUSR1, requeue)
    try:
        threading.Thread(target=preempt).start()
        with pytest.raises(Requeued):
            task()
        assert begun.wait(10) and not read_card(Path("remote")).finished
        again = task.checkpoint()
        assert again.result() == "remote" and read_card(Path("remote")).finished
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert read_card(Path("remote")).files == read_card(Path("local")).files


@pytest.mark.slow
@pytest.mark.parametrize("preempted", [1, pytest.param(20, marks=pytest.mark.long)])
def test_tasks_that_are_preempted_and_one_that_is_killed(
    cli: Any, made: Any, monkeypatch: pytest.MonkeyPatch, forked: str, preempted: int
) -> None:
    monkeypatch.setattr(submitit, "LocalExecutor", partial(submitit.LocalExecutor, python=forked))
    words = models(cli, made, preempted + 1)
    (cli.folder / "signals").write_text(f"{signal.SIGUSR1:d} " * preempted + f"{signal.SIGKILL:d}")
    ran = cli(*EVALUATE, *words, "--out", "remote", "--on", "slurm:executor=local")
    assert ran.code == 2, ran
    assert f"1 of {preempted + 1} tasks failed; the first: {words[-1]}: job " in ran.err.splitlines()[-1]
    assert "was ended from outside; log slurm/" in ran.err.splitlines()[-1]
    logs = [log.read_text() for log in (cli.folder / "slurm").glob("*_log.out")]
    assert (
        sum(log.count("Requeued job") for log in logs) == preempted == sum(log.count("completed succ") for log in logs)
    )
    assert len(ids("remote")) == preempted and ids("remote") < ids("local")
    ran = cli(*EVALUATE, *words[-2:], "--out", "remote", "--on", "slurm:executor=local", "--resume")
    assert ran.code == 0 and ids("remote") == ids("local"), ran


def test_what_cannot_be_submitted_leaves_the_run_that_it_would_train_again(cli: Any, programs: Path) -> None:
    one = (*TRAIN, "--method", "pgd-at", "--out", "run")
    assert cli(*one).code == 0
    (programs / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    before = Path("run/run.json").read_bytes()
    ran = cli(*one, "--force", "--on", "slurm:partition=nope")
    assert ran.code == 2 and "cannot submit: invalid partition" in ran.err
    assert Path("run/run.json").read_bytes() == before and Path("run/model.safetensors").exists()
    assert cli(*TRAIN, "--method", "trades", "--out", "new", "--force", "--on", "slurm").code == 2
    assert not Path("new").exists()


def test_a_job_that_waits_is_known_to_those_who_resume(cli: Any, programs: Path) -> None:
    """Ctrl-C comes before the queued job, which trains a finished run again, has started."""
    one = (*TRAIN, "--method", "standard", "--out", "run")
    again = (*one, "--set", "optim.lr=0.05", "--on", "slurm")
    assert cli(*one).code == 0
    sbatch, waits = programs / "sbatch", programs / "waits"
    sbatch.write_text(sbatch.read_text().replace("(while rm", f"(while [ -e {waits} ]; do sleep 0.1; done; while rm"))
    waits.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slurm.Slurm, "wait", lambda *_: os.kill(os.getpid(), signal.SIGINT) or [])
        ran = cli(*again, "--force")
    assert ran.code == 3 and "--resume" in ran.err, ran
    waits.unlink()
    ran = cli(*again, "--resume")
    assert ran.code == 0 and "is finished" not in ran.err and "job 41: run" in ran.err, ran
    assert (programs / "submissions").read_text().count("\n") == 1
    assert Recipe.load(Path("run/recipe.toml")).optim.lr == 0.05 and read_card(Path("run")).finished


def test_a_task_gives_up_the_run_once(cli: Any) -> None:
    recipe = Recipe.resolve(method="standard", dataset="digits", arch="mlp", eps="0.1", sets=[*SETS[1::2], "epochs=1"])
    given = {"recipe": recipe.tree(), "out": "run", "device": "cpu", "log": None, "name": None}
    dates = []
    for again in ("", "1", "1", "2"):  # the third is the second task once more, after its job was requeued
        perform(
            train_task, str(cli.folder), given=given, more={"again": again}, allowed=Consent(),
            screen=Screen(silent=True),
        )  # fmt: skip
        dates.append(Path("run/metrics.jsonl").stat().st_mtime_ns)
    assert len({*dates}) == 3 and dates[1] == dates[2]


# Stand-ins for a machine with Slurm. sbatch starts the script of each task, again where scontrol requeues it.
PROGRAMS = {
    "sbatch": """
        echo "$1" >> $here/submissions
        id=$((40 + $(wc -l < $here/submissions))) last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
        cp "$1" $here/$id.sh
        for task in $(seq 0 ${last:-0}); do
          job=$id${last:+_$task}
          export SLURM_JOB_ID=$id ${last:+SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$task}
          touch $here/queue/$job
          (while rm -f $here/requeued/$job; bash $here/$id.sh; [ -e $here/requeued/$job ]; do :; done
           rm $here/queue/$job) > /dev/null 2>&1 &
        done
        echo "Submitted batch job $id" """,
    "srun": """
        job=$SLURM_JOB_ID${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
        while [[ $1 == --* ]]; do
          case $1 in --output) out=$2; shift ;; --error) err=$2; shift ;; esac
          shift
        done
        name() { echo "$1" | sed "s/%A_%a\\|%j/$job/; s/%t/0/"; }
        exec "$@" >> "$(name "$out")" 2>> "$(name "$err")" """,
    "squeue": "ls $here/queue",
    "scontrol": "touch $here/requeued/$2; echo $2 >> $here/requeues",
}


@pytest.fixture
def programs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-ins."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("queue", "requeued"):
        (folder / name).mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/bash\nhere={folder}\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def when(condition: Callable[[], bool], do: Callable[[], None]) -> None:
    """`do` what it says, in another thread, once `condition` holds."""

    def wait() -> None:
        while not condition():
            time.sleep(0.02)
        do()

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.slow
@pytest.mark.usefixtures("started_by_fork")
def test_an_array_of_jobs(cli: Any, made: Any, monkeypatch: pytest.MonkeyPatch, programs: Path) -> None:
    """One command is left while its tasks run; the next finds them; one is preempted, one killed."""
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.3)
    words = models(cli, made, 2)
    asked = [*EVALUATE, *words, "--out", "remote", "--on", "slurm:partition=gpu"]
    (cli.folder / "wait").touch()
    (cli.folder / "signals").write_text(f"{signal.SIGUSR1:d} 0")
    when(lambda: len([*programs.glob("queue/*")]) == 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    ran = cli(*asked)
    assert ran.code == 3 and "; the others go on: scancel 41 would end them" in ran.err
    assert ran.err.splitlines()[-1].endswith(f"advbench {' '.join(asked)} --resume")
    assert "job 41_0: runs/" in ran.err and "; log slurm/41_0_0_log.err" in ran.err
    when(lambda: bool([*cli.folder.glob("slurm/*_log.out")]), (cli.folder / "wait").unlink)
    ran = cli(*asked, "--resume")
    assert ran.code == 0 and ids("remote") == ids("local"), ran
    assert (programs / "submissions").read_text().count("\n") == 1 == (programs / "requeues").read_text().count("\n")

    for file in cli.folder.glob("seen-*"):
        file.unlink()
    (cli.folder / "signals").write_text(f"{signal.SIGKILL:d} 0")
    asked[asked.index("remote")] = "killed"
    ran = cli(*asked)
    assert ran.code == 2 and "was ended from outside" in ran.err and len(ids("killed")) == 1
    ran = cli(*asked, "--resume")
    assert ran.code == 0 and ids("killed") == ids("local"), ran


def test_a_result_of_an_earlier_job_of_the_same_number_is_no_result(cli: Any, programs: Path) -> None:
    (programs / "sbatch").write_text("#!/bin/bash\necho Submitted batch job 41\n")
    (cli.folder / "slurm").mkdir()
    (cli.folder / "slurm/41_0_result.pkl").touch()
    call = partial(perform, train_task, str(cli.folder), given={}, allowed=Consent(), screen=Screen())
    cluster = slurm.Slurm(slurm.Place(), "cpu")
    jobs = cluster.start(["run"], [call], Bar())
    assert [job.job_id for job in jobs] == ["41"] and not jobs[0].paths.result_pickle.exists()


def test_no_job_is_submitted_twice_where_squeue_does_not_answer(cli: Any, programs: Path) -> None:
    (programs / "squeue").write_text("#!/bin/bash\nexit 1\n")
    (cli.folder / "of.job").write_text("41")
    with pytest.raises(UserError, match="whether job 41 of an earlier command has ended"):
        slurm.Slurm(slurm.Place(), "cpu")._found(cli.folder / "of.job")


def test_processes_that_have_ended_are_sent_no_signal(cli: Any) -> None:
    cluster = slurm.Slurm(slurm.Place(executor="local"), "cuda")
    assert cluster.executor.parameters["gpus_per_node"] == 1  # which --device cuda needs
    process = subprocess.Popen(["true"])
    process.wait()
    assert cluster.leave([SimpleNamespace(job_id=str(process.pid), done=lambda: True)]) == ""


def test_what_sbatch_refuses_is_one_line(cli: Any, programs: Path) -> None:
    (programs / "sbatch").write_text("#!/bin/bash\necho sbatch: error: Invalid account >&2\nexit 1\n")
    ran = cli("evaluate", "--model", "runs/a", "--on", "slurm:account=mine")
    assert ran.code == 2 and ran.err == "error: cannot submit: Invalid account\n"
