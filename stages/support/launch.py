"""A stage in several processes, started again by the command line in SGLP_LAUNCH; see README, "Past one process".

The one that the user or DVC started stays, and says in the end what went wrong. Each of the others leaves a mark with
it for as long as it lives: who is killed can't take it away.
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
MARKS = "SGLP_LAUNCH_MARKS"  # in the environment of those that were started: the folder of their marks
ERROR = "error"


def run(main: Callable[[DeclaredParams, DeclaredParams], None], name: str) -> None:
    """Run a stage whose work several processes can share: here, or again under the launcher in SGLP_LAUNCH."""

    def here_or_launched(params: DeclaredParams, workload: DeclaredParams) -> None:
        if asked():
            start(name)
            return
        with joined():
            main(params, workload)

    stage.run(here_or_launched, name, end)


def asked() -> bool:
    """Whether the stage is to be started again."""
    return MARKS not in os.environ and bool(os.environ.get(COMMAND, "").strip())


def start(name: str) -> None:
    """Start a stage again by the launcher, and wait for it.

    Raises:
        ParameterError: there is no such launcher.
        SystemExit: it failed, with one sentence.
    """
    command = shlex.split(os.environ[COMMAND])
    beside = str(Path(sys.executable).parent)  # where torchrun is that goes with this Python
    launcher = shutil.which(command[0], path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if launcher is None:
        raise ParameterError(f"{COMMAND}={os.environ[COMMAND]!r}: there is no command {command[0]}; torchrun would do")
    folder = user_cache_path("sglp") / "launched"  # which other machines see too
    folder.mkdir(parents=True, exist_ok=True)
    marks = Path(mkdtemp(dir=folder))
    try:
        code = _wait([launcher, *command[1:], "-m", f"stages.{name}", *sys.argv[1:]], marks)
        if code:
            sys.exit(_what_happened(name, marks, code))
    finally:
        shutil.rmtree(marks)


def _wait(command: list[str], marks: Path) -> int:
    """Run the launcher, which ends when this process is told to end."""
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # else DDP warns of parameters that it need not have looked for
    with subprocess.Popen(command, env={**quiet, **os.environ, MARKS: str(marks)}) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            return process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)


def _what_happened(name: str, marks: Path, code: int) -> str:
    """What a process said, or else who died without a word."""
    name = os.environ.get("DVC_STAGE", name)
    said = {mark.name: mark.read_text(encoding="utf-8") for mark in sorted(marks.iterdir())}
    if ERROR in said:
        return said[ERROR]
    if said:
        return (
            f"{name}: {' and '.join(said.values())} died without a word, killed perhaps as memory ran out; the next "
            "run goes on from the last checkpoint, where there is one"
        )
    return f"{name}: {COMMAND} ended with exit code {code}; what it says stands above"


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that a launcher started, where it was one; only the first of them talks."""
    if MARKS not in os.environ:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing half-written stays
    threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    mark = Path(os.environ[MARKS], rank)
    mark.write_text(f"rank {rank} of {count} processes (pid {os.getpid()} on {socket.gethostname()})", encoding="utf-8")
    try:
        with ExitStack() as stack:
            stack.enter_context(processes.joined())
            if rank != "0":
                silence = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stdout(silence))
                stack.enter_context(redirect_stderr(silence))
            yield
    except RuntimeError as error:
        if not processes.lost_another(error):
            raise
        sys.exit(1)  # the one that died is what is to be told
    finally:
        mark.unlink()


def _end_with_the_launcher() -> None:
    """torchrun puts processes into sessions of their own, where what kills torchrun does not reach them."""
    launcher = os.getppid()
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def end(sentence: str) -> None:
    """End a stage with a sentence; of several processes the first that fails tells it the one that started them."""
    if MARKS not in os.environ:
        sys.exit(sentence)
    try:
        with Path(os.environ[MARKS], ERROR).open("x", encoding="utf-8") as file:
            file.write(sentence)
    except FileExistsError:
        pass
    sys.exit(1)
