"""Give freed memory back to the system."""

import ctypes
import sys


def return_memory() -> None:
    """Return freed memory to the system: glibc keeps it for the threads that allocated it, and they seldom need it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries do not have it
        if trim is not None:
            trim(0)
