"""Networks of transformers without weights: all that can be known of a folder for `from_pretrained` before reading it.

transformers renames tensors when it loads them, and may join several to one (as experts). Names in files are what it
undoes that to when it saves.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sglp.errors import CheckpointError
from sglp.hugging_face.pretrained import CONFIG, no_progress_bars, read, reader_of, sentence, with_own_config
from sglp.record import Architecture


def skeleton(folder: Path, architecture: Architecture, trust: bool, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network that `load_pretrained` loads, on the meta device: it has no memory for weights.

    Args:
        folder: for `from_pretrained`; its weights are not read.
        architecture: which class reads it.
        trust: whether code that the folder brings may run.
        tensors: what is in its files, by name, on the meta device.

    Raises:
        CheckpointError: the folder is broken, is no network of transformers, brings code that is not trusted, or its
            files do not hold what the network has.
    """
    import transformers

    kind, foreign = reader_of(folder, architecture, trust)
    try:
        if foreign and not issubclass(kind, nn.Module):
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
            with torch.device("meta"):
                kind = type(kind.from_config(config, trust_remote_code=True))
        config = kind.config_class.from_pretrained(folder)
    except Exception as error:  # whatever transformers raises, the user needs one sentence
        raise CheckpointError(f"{folder / CONFIG} makes no {kind.__name__}: {sentence(error)}") from error
    arguments = {"config": config, "state_dict": dict(tensors), "device_map": "meta"}
    return read(kind, folder, pretrained_model_name_or_path=None, **arguments).eval()


def saved_state(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a skeleton that are saved, tied ones once, by the network's names."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    return remove_tied_weights_from_state_dict(network.state_dict(), network)


def in_files(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """These tensors of a skeleton as they are in the files of the network that is saved, by the files' names."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(network, dict(state))


def save_config(network: nn.Module, folder: Path) -> None:
    """Write all that transformers saves of a network but its weights."""
    with no_progress_bars():
        with_own_config(network).save_pretrained(folder, state_dict={})
