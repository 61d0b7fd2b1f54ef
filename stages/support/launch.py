"""Run a stage in several processes, started by the launcher in SGLP_LAUNCH; see docs/several-processes.md.

The process that the user or DVC started waits for the launcher and reports the error if there is one. Each launched
process keeps a mark, a file that names it, as long as it runs: a killed process cannot delete its own.
"""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import mkdtemp

from platformdirs import user_cache_path

from sglp.distributed import processes
from stages.support import stage
from stages.support.params import DeclaredParams, ParameterError

COMMAND = "SGLP_LAUNCH"
MARKS = "SGLP_LAUNCH_MARKS"  # set for launched processes: the folder of their marks
ERROR = "error"  # the file with the error of the first process that failed


def run(main: Callable[[DeclaredParams, DeclaredParams], None], name: str) -> None:
    """Run a stage that several processes can share: in this process, or under the launcher in SGLP_LAUNCH."""

    def run_or_launch(params: DeclaredParams, workload: DeclaredParams) -> None:
        if needs_launch():
            start(name)
            return
        with joined():
            main(params, workload)

    stage.run(run_or_launch, name, end)


def needs_launch() -> bool:
    """Return whether SGLP_LAUNCH is set and this process was not started by it."""
    return MARKS not in os.environ and bool(os.environ.get(COMMAND, "").strip())


def start(name: str) -> None:
    """Start a stage under the launcher and wait for it.

    Raises:
        ParameterError: the launcher is not installed.
        SystemExit: the stage failed; the message is one sentence.
    """
    command = shlex.split(os.environ[COMMAND])
    scripts = str(Path(sys.executable).parent)  # has the torchrun of this environment
    launcher = shutil.which(command[0], path=os.pathsep.join([scripts, os.environ.get("PATH", "")]))
    if launcher is None:
        raise ParameterError(
            f"{COMMAND}={os.environ[COMMAND]!r}: there is no command {command[0]}; use a launcher such as "
            "'torchrun --nproc-per-node 2'"
        )
    folder = user_cache_path("sglp") / "launched"  # other machines must see it too
    folder.mkdir(parents=True, exist_ok=True)
    marks = Path(mkdtemp(dir=folder))
    try:
        code = _wait([launcher, *command[1:], "-m", f"stages.{name}", *sys.argv[1:]], marks)
        if code:
            sys.exit(_failure(name, marks, code))
    finally:
        shutil.rmtree(marks)


def _wait(command: list[str], marks: Path) -> int:
    """Run the launcher and return its exit code; pass SIGTERM on to it."""
    log_level = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # hides DDP's warning about its search for unused parameters
    with subprocess.Popen(command, env={**log_level, **os.environ, MARKS: str(marks)}) as process:
        handler = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            return process.wait()
        finally:
            signal.signal(signal.SIGTERM, handler)


def _failure(name: str, marks: Path, code: int) -> str:
    """Return the error of the first process that failed, or else name the processes that died without an error."""
    name = os.environ.get("DVC_STAGE", name)
    texts = {mark.name: mark.read_text(encoding="utf-8") for mark in sorted(marks.iterdir())}
    if ERROR in texts:
        return texts[ERROR]
    if texts:
        return (
            f"{name}: {' and '.join(texts.values())} died without an error message, perhaps killed because memory ran "
            "out; the next run resumes from the last checkpoint, if there is one"
        )
    return f"{name}: {COMMAND}={os.environ[COMMAND]!r} ended with exit code {code}; see its output above"


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes if a launcher started this one; silence all processes but the first."""
    if MARKS not in os.environ:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that half-written files are deleted
    threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    rank = os.environ.get("RANK", "0")
    count = os.environ.get("WORLD_SIZE", "1")
    mark = Path(os.environ[MARKS], rank)
    mark.write_text(f"rank {rank} of {count} processes (pid {os.getpid()} on {socket.gethostname()})", encoding="utf-8")
    try:
        with ExitStack() as stack:
            stack.enter_context(processes.joined())
            if rank != "0":
                devnull = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stdout(devnull))
                stack.enter_context(redirect_stderr(devnull))
            yield
    except RuntimeError as error:
        if not processes.lost_another(error):
            raise
        sys.exit(1)  # without an error: the process that died is the one to report
    finally:
        mark.unlink()


def _end_with_the_launcher() -> None:
    """Stop this process when the launcher dies: torchrun starts each process in a session that signals do not reach."""
    launcher = os.getppid()
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def end(sentence: str) -> None:
    """Exit with an error message; a launched process writes it to a file instead, unless another one already has."""
    if MARKS not in os.environ:
        sys.exit(sentence)
    try:
        with Path(os.environ[MARKS], ERROR).open("x", encoding="utf-8") as file:
            file.write(sentence)
    except FileExistsError:
        pass
    sys.exit(1)
