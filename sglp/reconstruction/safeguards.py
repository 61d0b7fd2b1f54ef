"""Safeguards for running layers again with other weights: shared parameters, caches of keys and values."""

from contextlib import contextmanager

from torch import nn


def shared_parameters(network: nn.Module) -> set[nn.Parameter]:
    """Find parameters that several modules have: a change in one layer would change another."""
    seen: set[nn.Parameter] = set()
    shared: set[nn.Parameter] = set()
    for _, parameter in network.named_parameters(remove_duplicate=False):
        (shared if parameter in seen else seen).add(parameter)
    return shared


@contextmanager
def without_cache(network: nn.Module):
    """Disable the cache of keys and values of a Hugging Face model: every run of a layer would add to it."""
    config = getattr(network, "config", None)
    uses = getattr(config, "use_cache", None)
    if config is None or uses is None:
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = uses
