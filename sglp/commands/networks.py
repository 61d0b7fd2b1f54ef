"""Open the network that ``sglp compress`` is given: a folder, a file, or a name in a library or on the hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sglp.commands.options import import_from_current_folder, trusted
from sglp.errors import ArchitectureError, DataError

if TYPE_CHECKING:
    from torch import nn

LANGUAGE_MODEL = "sglp.tasks.language_models:causal_lm"
IMAGE_CLASSIFIER = "sglp.tasks.vision_models:image_classifier"
TIMM = "timm/"


class View(NamedTuple):
    """How a network sees an image.

    Attributes:
        size: height and width in pixels.
        resize: length of the shorter side before the centre is cropped.
        mean, std: of each channel, for pixels in 0..1.
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def changed(self, size: int | None, mean: list[float] | None, std: list[float] | None) -> "View":
        """Return a view with what the user asks for; images of another size are scaled to it, and not cropped.

        Raises:
            DataError: mean and std do not have one value, or three, each.
        """
        size, resize = (self.size, self.resize) if size is None else (size, size)
        means, deviations = tuple(mean or self.mean), tuple(std or self.std)
        if len(means) != len(deviations) or len(means) not in (1, 3):
            raise DataError(
                f"--mean has {len(means)} values and --std {len(deviations)}: give both, with three values for colour "
                "images, or one for grey ones"
            )
        return View(size, resize, means, deviations)


def open_language_model(model: str, revision: str | None) -> tuple["nn.Module", Any]:
    """Load a language model and its tokenizer from a folder, a GGUF file or the hub.

    Raises:
        CheckpointError: it can't be loaded.
    """
    from sglp.tasks.causal_lm.building import build, first_processor
    from sglp.tasks.schemas.workload import Architecture, Weights

    path = model if Path(model).exists() else None
    architecture = Architecture(factory=LANGUAGE_MODEL, kwargs={})
    arguments = {} if path else {"pretrained": model, "revision": revision}
    weights = Weights.model_construct(source="file" if path else "factory", kwargs=arguments, train=False)
    network = build(architecture, weights, path, seed=0).eval()
    return network, first_processor(architecture, weights, path, {"tokenizer": None})


def open_image_network(
    model: str, kwargs: dict | None, weights: str | None, revision: str | None, trust: list[str]
) -> tuple["nn.Module", View]:
    """Build an image classifier with trained weights.

    Args:
        model: a folder of `sglp.save` or `save_pretrained`, a factory (package.module:function), a name of torchvision,
            timm/NAME, or a name on the hub.
        kwargs: arguments of the factory or of the library's model.
        weights: a file of weights, or the name that torchvision gives to weights; None for the library's default.
        revision: commit on the hub.
        trust: factories that a folder may run.

    Raises:
        SGLPError: there is no such network, or it can't be built.
    """
    import sglp

    file = weights if weights is not None and Path(weights).exists() else None
    if Path(model).is_dir():
        _refuse("a folder brings its own architecture and weights", kwargs=kwargs, weights=weights)
        network = sglp.load(model, trust=trusted(trust))
        return network, _view_of_config(network)
    if ":" in model:
        import_from_current_folder()
        if file is None:
            raise ArchitectureError(f"{model} has random weights: pass --weights with the file of its trained weights")
        network, view = sglp.build(model, kwargs, seed=0), View()
    elif model.startswith(TIMM):
        arguments = {"model_name": model.removeprefix(TIMM), **(kwargs or {})}
        network = sglp.build("timm:create_model", arguments, seed=0, weights=None if file else {"pretrained": True})
        view = _view_of_timm(network)
    elif model in _torchvision_names():
        network, view = _torchvision_model(model, kwargs, weights, file)
    elif "/" in model:
        _refuse("a network on the hub brings its own", kwargs=kwargs, weights=weights)
        network = sglp.build(IMAGE_CLASSIFIER, {}, seed=0, weights={"pretrained": model, "revision": revision})
        view = _view_of_config(network)
    else:
        raise ArchitectureError(
            f"{model} is not a folder here, a network of torchvision, timm/NAME, a name on the hub (owner/name) or a "
            "factory (package.module:function)"
        )
    if file is not None:
        sglp.load_weights(network, file)
    return network.eval(), view


def _refuse(reason: str, **options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise ArchitectureError(f"--{name} can't be used here: {reason}")


def _torchvision_names() -> list[str]:
    from torchvision.models import list_models

    return list_models()


def _torchvision_model(model: str, kwargs: dict | None, weights: str | None, file: str | None):
    """Return a network of torchvision, and how its weights see an image."""
    from torchvision.models import get_model_weights

    import sglp

    if file is not None:
        return sglp.build(_factory(model), kwargs, seed=0), View()
    name = weights or "DEFAULT"
    known = get_model_weights(model)
    if not hasattr(known, name):
        raise ArchitectureError(
            f"--weights={name} is neither a file nor one of torchvision's weights for {model}: "
            f"{', '.join(known.__members__)}"
        )
    transforms = getattr(known, name).transforms()
    network = sglp.build(_factory(model), kwargs, seed=0, weights={"weights": name})
    view = View(transforms.crop_size[0], transforms.resize_size[0], tuple(transforms.mean), tuple(transforms.std))
    return network, view


def _factory(model: str) -> str:
    """Return the dotted name of a network of torchvision, which segmentation networks and others have elsewhere."""
    from torchvision.models import get_model_builder

    build = get_model_builder(model)
    return f"{build.__module__}:{build.__name__}"


def _view_of_timm(network: "nn.Module") -> View:
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=network)
    size = config["input_size"][-1]
    return View(size, round(size / config["crop_pct"]), tuple(config["mean"]), tuple(config["std"]))


def _view_of_config(network: "nn.Module") -> View:
    """Return the view of a Hugging Face model by its config and, if it has one, its image processor."""
    config = getattr(network, "config", None)
    size = getattr(config, "image_size", None) or View().size
    size = size if isinstance(size, int) else size[0]
    source = getattr(config, "_name_or_path", "")
    mean, std = View().mean, View().std
    if source:
        from transformers import AutoImageProcessor

        try:
            processor = AutoImageProcessor.from_pretrained(source)
        except (OSError, ValueError, ImportError):  # a folder without one
            processor = None
        if processor is not None and getattr(processor, "image_mean", None):
            mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return View(size, size, mean, std)
