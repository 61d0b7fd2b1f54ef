"""Keep the per-layer lists that a config's class computes by a rule, such as the kinds of layers of Jamba.

If the rule does not give the right list for the layers that are left, the config gets a subclass of its own class in
which the list is a constant: caches and masks are made from these lists. The file of such a config can't hold the list.
"""

from typing import Any

_CONSTANTS = "_sglp_constants"
_PLAIN = (str, int, float, bool, type(None))


def computed_lists(config: Any, depth: int) -> dict[str, list]:
    """Return the lists that the class of a config computes, or holds as constants, with one plain entry per layer."""
    names = {
        name
        for base in type(config).__mro__
        if not base.__module__.startswith("transformers.") or base.__module__.startswith("transformers.models.")
        for name, value in vars(base).items()
        if isinstance(value, property)
    }
    lists: dict[str, list] = {}
    for name in sorted(names | set(getattr(config, _CONSTANTS, {}))):
        try:
            value = getattr(config, name)
        except Exception:  # noqa: S112 - a property that does not apply to this config
            continue
        if isinstance(value, list | tuple) and len(value) == depth and all(isinstance(v, _PLAIN) for v in value):
            lists[name] = list(value)
    return lists


def set_computed_lists(config: Any, lists: dict[str, list]) -> None:
    """Give a config these lists, in place, where its class computes others."""
    constants = {name: value for name, value in lists.items() if not _gives(config, name, value)}
    if not constants:
        return
    before: dict[str, list] = getattr(config, _CONSTANTS, {})
    base = type(config).__mro__[1] if before else type(config)
    config.__class__ = _with_constants(base, before | constants)


def _gives(config: Any, name: str, value: list) -> bool:
    try:
        return list(getattr(config, name)) == value
    except Exception:  # the rule does not fit the number of layers
        return False


def _with_constants(base: type, constants: dict[str, list]) -> type:
    """Return a subclass with constant lists, whose objects can be copied and pickled."""

    def reduce(self: Any, protocol: Any) -> tuple:
        return _restored, (base, constants, dict(vars(self)))

    attributes = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "__reduce_ex__": reduce,
        _CONSTANTS: constants,
    }
    return type(base.__name__, (base,), attributes | constants)


def _restored(base: Any, constants: dict[str, list], state: dict) -> Any:
    config: Any = base.__new__(base)
    vars(config).update(state)
    config.__class__ = _with_constants(base, constants)
    return config
