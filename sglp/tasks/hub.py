"""Access to the Hugging Face hub that fails fast when there is no connection."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fail_fast_offline() -> Iterator[None]:
    """Without a connection, use cached files or fail at once: the client would retry every file for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    offline = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # of any HTTP library, or because HF_HUB_OFFLINE is set
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
