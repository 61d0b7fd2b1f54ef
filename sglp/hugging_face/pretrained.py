"""Save and load Hugging Face models as folders for plain `from_pretrained`, verified before they appear."""

import copy
import json
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sglp.errors import CheckpointError
from sglp.files import new_folder
from sglp.hugging_face.equality import first_difference
from sglp.hugging_face.networks import configs_of, reads_images
from sglp.record import ARCHITECTURE, Architecture, saved_architecture
from sglp.running import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG = "config.json"
LIBRARY = "transformers:"


def save_pretrained(
    network: "PreTrainedModel", folder: str | Path, tokenizer: Any, architecture: Architecture, files: dict[str, str]
) -> None:
    """Save a Hugging Face model and its tokenizer.

    Args:
        network: the model; a network unpacked from a GGUF file is saved as an ordinary one.
        folder: the folder to write; an existing one is replaced.
        tokenizer: its tokenizer or image processor, or None.
        architecture: how the model is built.
        files: the texts of further files (such as a model card), by file name.

    Raises:
        CheckpointError: plain `from_pretrained` can't load the folder, or would load another model.
    """
    name = type(network).__name__
    ordinary = dequantized(with_own_config(network))
    with new_folder(folder) as new, no_progress_bars():
        try:
            ordinary.save_pretrained(new)
            if tokenizer is not None:
                tokenizer.save_pretrained(new)
            with only_errors():
                reloaded = _reloaded(ordinary, architecture, new)
            difference = first_difference(ordinary, reloaded)
        except Exception as error:  # report any error of transformers in one sentence
            reason = one_line(error).replace(str(new), "the folder")
            raise CheckpointError(f"{name} can't be saved as a from_pretrained folder: {reason}") from error
        if difference:
            raise CheckpointError(f"{name} would not be the same after from_pretrained: {difference}")
        for file, text in files.items():
            (new / file).write_text(text, encoding="utf-8")


def architecture_in(folder: Path) -> tuple[Architecture, bool]:
    """Read how to load a folder, and whether `sglp.save` wrote it; for other folders, the config names the class.

    Raises:
        CheckpointError: the folder does not contain a saved network.
    """
    if not (folder / ARCHITECTURE).exists() and (folder / CONFIG).is_file():
        try:
            names = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["architectures"]
            return Architecture(f"{LIBRARY}{names[0]}"), False
        except (ValueError, LookupError, TypeError):
            pass  # not a config of transformers
    return saved_architecture(folder), True


def load_pretrained(
    folder: Path, architecture: Architecture, trust: bool | Collection[str], dtype: Any, device_map: Any
) -> nn.Module:
    """Load a folder that `save_pretrained` wrote, in eval mode.

    Raises:
        CheckpointError: the folder is broken, is not a Hugging Face model, or contains code that is not trusted.
    """
    model_class, has_code = reader_of(folder, architecture, trust)
    network = load_checked(
        model_class,
        folder,
        pretrained_model_name_or_path=folder,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=has_code,
        dtype=dtype or "auto",
        device_map=device_map,
    )
    if reads_images(network) and device_map is None:
        # A mapped file lies anywhere in memory, and CPU kernels sum in an order that depends on where tensors lie.
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data = tensor.data.clone()
    return network.eval()


def reader_of(folder: Path, architecture: Architecture, trust: bool | Collection[str]) -> tuple[Any, bool]:
    """Return the class whose `from_pretrained` loads a folder, and whether this runs code from the folder.

    Raises:
        CheckpointError: the folder is broken, is not a Hugging Face model, or contains code that is not trusted.
    """
    import transformers

    try:
        auto_map = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("auto_map")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / CONFIG} is broken: it is not a config of transformers") from error
    if auto_map and trust is not True:
        raise CheckpointError(
            f"{folder} contains its own code ({', '.join(sorted(auto_map))}), which runs when the model is loaded: "
            "pass trust=True if you trust it"
        )
    name = architecture.factory.removeprefix(LIBRARY)
    model_class = getattr(transformers, name, None) if architecture.factory.startswith(LIBRARY) else None
    if not (auto_map and model_class and name.startswith("AutoModel")):
        _check_class(model_class, architecture.factory, folder)
    return model_class, bool(auto_map)


def load_checked(model_class: Any, folder: Path, **arguments: Any) -> "PreTrainedModel":
    """Call `from_pretrained` of a class with these arguments, and check that all weights fit.

    Args:
        model_class: the class of the model, or an auto class.
        folder: the folder to name in errors.
        **arguments: the arguments of `from_pretrained`.

    Raises:
        CheckpointError: the model can't be loaded, or weights are missing or unexpected.
    """
    with no_progress_bars():
        try:
            network, report = model_class.from_pretrained(**arguments, output_loading_info=True)
        except Exception as error:  # report any error of transformers in one sentence
            raise CheckpointError(f"{folder} can't be loaded as {model_class.__name__}: {one_line(error)}") from error
    faults = [f"{fault.replace('_', ' ')} {sorted(keys)[0]}" for fault, keys in report.items() if keys]
    if faults:
        raise CheckpointError(f"{folder} does not hold the weights of its {model_class.__name__}: {faults[0]}")
    return network


def from_config(folder: Path, architecture: Architecture) -> nn.Module:
    """Build the dense network of a folder that is not for `from_pretrained`, with random weights.

    Raises:
        CheckpointError: the folder does not name a Hugging Face model, or its config does not build one.
    """
    import transformers

    name = architecture.factory.removeprefix(LIBRARY)
    model_class: Any = getattr(transformers, name, None)
    _check_class(model_class, architecture.factory, folder)
    try:
        with torch.random.fork_rng():
            return model_class(model_class.config_class.from_dict(copy.deepcopy(architecture.kwargs["config"])))
    except Exception as error:  # report any error of transformers in one sentence
        raise CheckpointError(f"{folder} is broken: its config can't build a {name} ({one_line(error)})") from error


def dequantized(network: "PreTrainedModel") -> "PreTrainedModel":
    """Turn a model whose weights were unpacked from a GGUF file into an ordinary one, in place.

    transformers treats such a model as quantized: it refuses to train or save it.

    Raises:
        CheckpointError: its weights are still quantized.
    """
    if getattr(network, "hf_quantizer", None) is None:
        return network
    quantizer: Any = network.hf_quantizer
    method = getattr(network.quantization_method, "value", network.quantization_method)
    if method != "gguf" or not all(p.is_floating_point() for p in network.parameters()):
        raise CheckpointError(
            f"the weights of this {type(network).__name__} are quantized ({method}): load it with plain weights "
            "(from a GGUF file with quantization_config=GgufConfig(dequantize=True))"
        )
    quantizer.remove_quantization_config(network)
    for name in ("hf_quantizer", "is_quantized"):
        vars(network).pop(name, None)
    for config in configs_of(network.config):
        vars(config).pop("_is_quantized", None)
    return network


def _check_class(model_class: Any, factory: str, folder: Path) -> None:
    """Refuse anything but a model class that transformers defines itself."""
    from transformers import PreTrainedModel

    is_of_transformers = getattr(model_class, "__module__", "").startswith("transformers.models.")
    if not (is_of_transformers and isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise CheckpointError(f"{folder} is built by {factory}, which is not a Hugging Face model")


def with_own_config(network: "PreTrainedModel") -> "PreTrainedModel":
    """Copy a model, sharing all modules, but with its own config, without names of local folders or of old code."""
    copied = copy.copy(network)
    copied.config = copy.deepcopy(network.config)
    for config in configs_of(copied.config):
        config._name_or_path = ""
    if type(network)._auto_class is None:
        vars(copied.config).pop("auto_map", None)
    return copied


def _reloaded(network: "PreTrainedModel", architecture: Architecture, folder: Path) -> "PreTrainedModel":
    """Load the folder as plain transformers does, onto the devices of the model."""
    import transformers
    from transformers.models.auto import modeling_auto

    name = architecture.factory.removeprefix(LIBRARY)
    has_code = type(network)._auto_class is not None
    mappings: tuple[tuple[str, Any], ...] = (
        ("AutoModelForCausalLM", modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        ("AutoModelForImageClassification", modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
    )
    for auto_class, class_names in mappings:
        names = class_names.get(network.config.model_type, ())
        if name in ((names,) if isinstance(names, str) else names):
            name = auto_class
            break
    device_map: Any = getattr(network, "hf_device_map", None)
    reloaded = getattr(transformers, name).from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=has_code,
        attn_implementation=network.config._attn_implementation,
        ignore_mismatched_sizes=True,  # the comparison reports them
        device_map=device_map and {path: "cpu" if place == "disk" else place for path, place in device_map.items()},
    )
    return reloaded if device_map else reloaded.to(device_of(network))


def one_line(error: Exception) -> str:
    """Return the message of another library's error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def only_errors() -> Iterator[None]:
    """Silence warnings about missing weights: the comparison reports them in one sentence."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    try:
        logging.set_verbosity_error()
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def no_progress_bars(also_in_terminals: bool = False) -> Iterator[None]:
    """Disable the progress bars of transformers when stderr is not a terminal, or always."""
    from transformers.utils import logging

    silence = logging.is_progress_bar_enabled() and (also_in_terminals or not sys.stderr.isatty())
    try:
        if silence:
            logging.disable_progress_bar()
        yield
    finally:
        if silence:
            logging.enable_progress_bar()
