"""Transforms of images, by the names that torchvision.transforms.v2 gives them."""

from collections.abc import Callable, Sequence

from sglp.errors import DataError, first_line


def make_transforms(entries: Sequence[dict]) -> list[Callable]:
    """The transforms with these names and arguments, in this order; torchvision is imported where there are any.

    Raises:
        DataError: there is no such transform, or it can't take the arguments.
    """
    if not entries:
        return []
    from torchvision.transforms import v2  # takes longer to import than torch

    made = []
    for entry in entries:
        ((name, arguments),) = entry.items()
        kind = getattr(v2, name, None)
        if not (isinstance(kind, type) and issubclass(kind, v2.Transform)):
            raise DataError(f"{name!r} is no transform of torchvision.transforms.v2")
        if kind is v2.RandomErasing and arguments.get("value") == "random":
            raise DataError(
                "RandomErasing can't take value: random, noise around 0, as pixels here are 0 to 255: give a number"
            )
        try:
            made.append(kind(**arguments))
        except (TypeError, ValueError) as error:
            raise DataError(f"the transform {name} can't take {arguments}: {first_line(error)}") from error
    return made
