"""Safeguards for running layers again with other weights: shared parameters, caches of keys and values."""

from contextlib import contextmanager

from torch import nn


def shared_parameters(network: nn.Module) -> list[str]:
    """Find the paths of parameters that several modules have: a change in one layer would change another."""
    paths: dict[nn.Parameter, list[str]] = {}
    for path, parameter in network.named_parameters(remove_duplicate=False):
        paths.setdefault(parameter, []).append(path)
    return [path for same in paths.values() if len(same) > 1 for path in same]


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
