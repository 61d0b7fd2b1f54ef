"""DVC in a process that does not outlive the one that started it: a killed sweep leaves nothing running.

Started with a pipe as its input, which nobody writes to: it ends when the starter does, in whatever way.
"""

import os
import signal
import sys
import threading


def _end_with_the_starter() -> None:
    """Kill this process and the stage that it runs, which is of the same group."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    from dvc.cli import main

    sys.exit(main(sys.argv[1:]))
