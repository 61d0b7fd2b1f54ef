"""The Hugging Face hub, or its absence."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fail_fast_offline() -> Iterator[None]:
    """Without a hub, what is cached or an error at once: its client would try again for half a minute, a task each."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    offline = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # of whichever HTTP library is used, or that HF_HUB_OFFLINE is set
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
