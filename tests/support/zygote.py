"""A python that starts in a tenth of the time: each process is forked from one that has loaded torch and advbench.

`start(folder)` gives the path of a program that takes -c CODE, -m MODULE or a script like `python` does, with the
working folder, the environment, the standard streams, the signals and the exit code of a process of its own. What it
does not have is a fresh import: tests of the start itself use `PYTHON`.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

LOADED = ["advbench.cli.console", "advbench.cli.evaluate", "advbench.cli.keep", "advbench.compare", "advbench.data"]
LOADED += ["advbench.defaults.target", "advbench.evaluator", "advbench.trainer", "matplotlib.figure", "pandas"]
LOADED += ["rich.live", "scipy.stats", "sklearn.datasets"]
PYTHON = sys.executable  # the one that starts afresh, whatever a test puts in its place
PROGRAM = """#!{python} -SE
import json, os, signal, socket, sys
numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # by nohup
asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), ignored]).encode()
socket.send_fds(server, [b"%8d" % len(asked)], [0, 1, 2])
server.sendall(asked)
answer = server.makefile()
process = int(answer.readline())
for number in numbers:
    signal.signal(number, lambda number, frame: os.kill(process, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
code = int(answer.readline() or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def start(folder: Path) -> tuple[Path, subprocess.Popen[bytes]]:
    """The program, and the process that forks, which ends when its stdin is closed."""
    program, path = folder / "python", folder / "socket"
    program.write_text(PROGRAM.format(python=PYTHON, path=str(path)))
    program.chmod(0o755)
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [PYTHON, __file__, str(path)], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdout is not None and server.stdout.readline() == b"ready\n"
    return program, server


def main() -> None:
    import torch

    for name in LOADED:
        importlib.import_module(name)
    torch.set_num_threads(1)
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    base = [folder for folder in sys.path[1:] if folder not in own]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    os.write(1, b"ready\n")
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            break
        connection.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    listener.close()
    length, streams, _, _ = socket.recv_fds(connection, 8, 3)
    asked = b""
    while len(asked) < int(length):
        asked += connection.recv(int(length) - len(asked))
    process = os.fork()
    if process:
        watch(connection, process, streams)
    connection.close()
    argv, folder, variables, ignored = json.loads(asked)
    signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    become(argv, folder, variables, streams, base)


def watch(connection: socket.socket, process: int, streams: list[int]) -> None:
    """Say which process runs and how it ended; end it where the program that asked for it is gone."""
    for stream in (0, 1, 2, *streams):
        os.close(stream)
    connection.sendall(b"%d\n" % process)
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            with suppress(OSError):
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            os._exit(0)
        if select.select([connection], [], [], 0.01)[0]:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os._exit(0)


def become(argv: list[str], folder: str, variables: dict[str, str], streams: list[int], base: list[str]) -> None:
    """Be the process that `python` would have started with these arguments."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    places = [place for place in variables.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [*places, *base]
    module = sys.modules["__main__"] = ModuleType("__main__")
    safe = False
    while argv[0] in ("-P", "-u"):
        safe |= argv.pop(0) == "-P"
    if not safe:
        sys.path.insert(0, "" if argv[0] == "-c" else folder if argv[0] == "-m" else str(Path(argv[0]).parent))
    if argv[0] == "-c":
        sys.argv = ["-c", *argv[2:]]
        exec(compile(argv[1], "<string>", "exec"), module.__dict__)
    elif argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
