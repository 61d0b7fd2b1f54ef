"""Transforms of images, by their names in torchvision.transforms.v2."""

from collections.abc import Callable, Sequence

from sglp.errors import DataError, first_line


def make_transforms(entries: Sequence[dict]) -> list[Callable]:
    """Create transforms from names and arguments, in order; torchvision is imported only if there are any.

    Raises:
        DataError: a name is not a transform, or a transform can't take its arguments.
    """
    if not entries:
        return []
    from torchvision.transforms import v2  # takes longer to import than torch

    transforms = []
    for entry in entries:
        ((name, arguments),) = entry.items()
        kind = getattr(v2, name, None)
        if not (isinstance(kind, type) and issubclass(kind, v2.Transform)):
            raise DataError(f"{name!r} is not a transform of torchvision.transforms.v2")
        if kind is v2.RandomErasing and arguments.get("value") == "random":
            raise DataError(
                "RandomErasing can't take value: random (noise around 0): pixels are 0 to 255, so use a number"
            )
        try:
            transforms.append(kind(**arguments))
        except (TypeError, ValueError) as error:
            raise DataError(f"the transform {name} can't take {arguments}: {first_line(error)}") from error
    return transforms
