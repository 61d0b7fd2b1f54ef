"""Saves and loads networks of transformers as folders for plain `from_pretrained`, checked before they are there."""

import copy
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from sglp.errors import CheckpointError
from sglp.files import new_folder
from sglp.hugging_face.equality import first_difference
from sglp.hugging_face.networks import configs_of, reads_images
from sglp.record import ARCHITECTURE, Architecture, saved_architecture
from sglp.running import device_of

CONFIG = "config.json"
LIBRARY = "transformers:"


def save_pretrained(network: nn.Module, folder, tokenizer, architecture: Architecture, files: dict[str, str]) -> None:
    """Save a network of transformers, its tokenizer, and further files (a model card) by their names and texts.

    Raises:
        CheckpointError: plain `from_pretrained` would make another network of the folder, or none.
    """
    name, ordinary = type(network).__name__, dequantized(with_own_config(network))
    with new_folder(folder) as new, no_progress_bars():
        try:
            ordinary.save_pretrained(new)
            if tokenizer is not None:
                tokenizer.save_pretrained(new)
            with only_errors():
                reloaded = _reloaded(ordinary, architecture, new)
            difference = first_difference(ordinary, reloaded)
        except Exception as error:  # whatever transformers raises, the user needs one sentence
            reason = sentence(error).replace(str(new), "the folder")
            raise CheckpointError(f"{name} can't be saved as a from_pretrained folder: {reason}") from error
        if difference:
            raise CheckpointError(f"{name} would not be the same after from_pretrained: {difference}")
        for file, text in files.items():
            (new / file).write_text(text, encoding="utf-8")


def architecture_in(folder: Path) -> tuple[Architecture, bool]:
    """How to read a folder for `from_pretrained`, and whether `sglp.save` wrote it; else its config names the class.

    Raises:
        CheckpointError: the folder holds no network.
    """
    if not (folder / ARCHITECTURE).exists() and (folder / CONFIG).is_file():
        try:
            names = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["architectures"]
            return Architecture(f"{LIBRARY}{names[0]}"), False
        except (ValueError, LookupError, TypeError):
            pass  # it is no config of transformers
    return saved_architecture(folder), True


def load_pretrained(folder: Path, architecture: Architecture, trust: bool, dtype, device_map) -> nn.Module:
    """Load what `save_pretrained` wrote, in eval mode.

    Raises:
        CheckpointError: the folder is broken, is no network of transformers, or brings code that is not trusted.
    """
    kind, foreign = reader_of(folder, architecture, trust)
    network = read(
        kind,
        folder,
        pretrained_model_name_or_path=folder,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=foreign,
        dtype=dtype or "auto",
        device_map=device_map,
    )
    if reads_images(network) and device_map is None:
        # The file in memory lies anywhere, and a CPU's kernels add up in an order that follows where tensors lie.
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data = tensor.data.clone()
    return network.eval()


def reader_of(folder: Path, architecture: Architecture, trust: bool) -> tuple[type, bool]:
    """The class that reads a folder for `from_pretrained`, and whether it runs code that the folder brings.

    Raises:
        CheckpointError: the folder is broken, is no network of transformers, or brings code that is not trusted.
    """
    import transformers

    try:
        foreign = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("auto_map")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / CONFIG} is broken: it does not hold a config of transformers") from error
    if foreign and trust is not True:
        raise CheckpointError(
            f"{folder} brings code of its own ({', '.join(sorted(foreign))}), which loading it runs: say trust=True if "
            "you trust it"
        )
    name = architecture.factory.removeprefix(LIBRARY)
    kind = getattr(transformers, name, None) if architecture.factory.startswith(LIBRARY) else None
    if not (foreign and kind and name.startswith("AutoModel")):
        _check_network(kind, architecture.factory, folder)
    return kind, bool(foreign)


def read(kind, folder: Path, **arguments) -> nn.Module:
    """What a class's `from_pretrained` makes of these arguments, which stand for a folder.

    Raises:
        CheckpointError: nothing, or there are weights too few or too many.
    """
    with no_progress_bars():
        try:
            network, report = kind.from_pretrained(**arguments, output_loading_info=True)
        except Exception as error:  # whatever transformers raises, the user needs one sentence
            raise CheckpointError(f"{folder} can't be loaded as {kind.__name__}: {sentence(error)}") from error
    faults = [f"{fault.replace('_', ' ')} {sorted(keys)[0]}" for fault, keys in report.items() if keys]
    if faults:
        raise CheckpointError(f"{folder} does not hold the weights of its {kind.__name__}: {faults[0]}")
    return network


def from_config(folder: Path, architecture: Architecture) -> nn.Module:
    """The dense network of a folder that is not for `from_pretrained`, with random weights.

    Raises:
        CheckpointError: the folder names no network of transformers, or its config makes none.
    """
    import transformers

    name = architecture.factory.removeprefix(LIBRARY)
    kind = getattr(transformers, name, None)
    _check_network(kind, architecture.factory, folder)
    try:
        with torch.random.fork_rng():
            return kind(kind.config_class.from_dict(architecture.kwargs["config"]))
    except Exception as error:  # whatever transformers raises, the user needs one sentence
        raise CheckpointError(f"{folder} is broken: its config makes no {name} ({sentence(error)})") from error


def dequantized(network: nn.Module) -> nn.Module:
    """Make an ordinary network, in place, of one whose weights were unpacked from a GGUF file.

    transformers takes it for a quantized one: it neither trains nor saves it.

    Raises:
        CheckpointError: its weights are still quantized.
    """
    if getattr(network, "hf_quantizer", None) is None:
        return network
    method = getattr(network.quantization_method, "value", network.quantization_method)
    if method != "gguf" or not all(p.is_floating_point() for p in network.parameters()):
        raise CheckpointError(
            f"this {type(network).__name__}'s weights are quantized ({method}): load it with plain weights "
            "(from a GGUF file with quantization_config=GgufConfig(dequantize=True))"
        )
    network.hf_quantizer.remove_quantization_config(network)
    for name in ("hf_quantizer", "is_quantized"):
        vars(network).pop(name, None)
    for config in configs_of(network.config):
        vars(config).pop("_is_quantized", None)
    return network


def _check_network(kind, factory: str, folder: Path) -> None:
    from transformers import PreTrainedModel

    theirs = getattr(kind, "__module__", "").startswith("transformers.models.")
    if not (theirs and isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise CheckpointError(f"{folder} is built by {factory}, which is no network of transformers")


def with_own_config(network: nn.Module) -> nn.Module:
    """The same network, sharing all modules, with a config of its own, without names of local folders and old code."""
    copied = copy.copy(network)
    copied.config = copy.deepcopy(network.config)
    for config in configs_of(copied.config):
        config._name_or_path = ""
    if type(network)._auto_class is None:
        vars(copied.config).pop("auto_map", None)
    return copied


def _reloaded(network: nn.Module, architecture: Architecture, folder: Path) -> nn.Module:
    """What somebody without this package gets from the folder, on the devices of the network."""
    import transformers
    from transformers.models.auto import modeling_auto

    name, foreign = architecture.factory.removeprefix(LIBRARY), type(network)._auto_class is not None
    for reader, names in (
        ("AutoModelForCausalLM", modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        ("AutoModelForImageClassification", modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
    ):
        known = names.get(network.config.model_type, ())
        if name in ((known,) if isinstance(known, str) else known):
            name = reader
            break
    places = getattr(network, "hf_device_map", None)
    reloaded = getattr(transformers, name).from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=foreign,
        attn_implementation=network.config._attn_implementation,
        ignore_mismatched_sizes=True,  # the comparison says which
        device_map=places and {path: "cpu" if place == "disk" else place for path, place in places.items()},
    )
    return reloaded if places else reloaded.to(device_of(network))


def sentence(error: Exception) -> str:
    """What another library's error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def only_errors() -> Iterator[None]:
    """No reports of what is missing in a folder: the comparison says it in one sentence."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    try:
        logging.set_verbosity_error()
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """No progress bars of transformers where nobody watches."""
    from transformers.utils import logging

    silence = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    try:
        if silence:
            logging.disable_progress_bar()
        yield
    finally:
        if silence:
            logging.enable_progress_bar()
