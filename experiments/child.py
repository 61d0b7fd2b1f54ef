"""DVC in a process that ends with the process that started it: a killed sweep leaves nothing running.

The standard input is a pipe to which nothing is written. It closes when the other process ends for any reason.
"""

import os
import signal
import sys
import threading


def _end_with_parent() -> None:
    """Kill this process and its stage, which is in the same group, when the input closes."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from dvc.cli import main

    sys.exit(main(sys.argv[1:]))
