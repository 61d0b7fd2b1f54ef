"""Try models of transformers at a tiny size: prune, compare, generate, save and load."""

import copy
import gc
import json
import resource
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers.models.auto import configuration_auto, modeling_auto

import sglp
from sglp.errors import NotPlainWarning, SGLPError
from sglp.layer import Layer
from sglp.surgery.bypass import Bypass
from tools.transformers_configs import VOCABULARY, tiny

TASKS: dict[str, Any] = {
    "Causal language models": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "Masked language models": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "Image classifiers": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}
CAUSAL = "Causal language models"
MOST_PARAMETERS = 4_000_000
LENGTH, NEW = 12, 3
MEMORY = 8 << 30  # bytes that one process may use


class Case(NamedTuple):
    """A model to try."""

    task: str
    model_type: str
    class_name: str


class Verdict(NamedTuple):
    """The outcome of a trial: "right", "refused", "fault" or "unbuilt", with the sentence or the fault."""

    case: Case
    kind: str
    text: str = ""
    layers: int = 0
    removable: int = 0
    folder: str = ""
    stays: str = ""


class TrialError(Exception):
    """A pruned model that is not as it must be."""


def cases() -> list[Case]:
    """Return all models of the three tasks, each class once."""
    found: dict[str, Case] = {}
    for task, mapping in TASKS.items():
        for model_type, names in mapping.items():
            for name in (names,) if isinstance(names, str) else names:
                found.setdefault(name, Case(task, model_type, name))
    return list(found.values())


def main() -> None:
    """Try the classes that standard input names, one a line; write a line of JSON for each."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    known = {case.class_name: case for case in cases()}
    for line in sys.stdin:
        case = known[line.strip()]
        try:
            verdict = _verdict(case)
        except Exception as error:  # one model's fault must not hide the others'
            verdict = Verdict(case, "fault", _line(error))
        answers.write(json.dumps(verdict[1:]) + "\n")
        answers.flush()
        gc.collect()


def _verdict(case: Case) -> Verdict:
    try:
        network, inputs = _built(case)
    except Exception as error:  # a config that needs more than sizes
        return Verdict(case, "unbuilt", _line(error))
    try:
        layers = sglp.find_layers(network, inputs)
    except SGLPError as error:
        return Verdict(case, "refused", _line(error))
    removable = [i for i, layer in enumerate(layers) if layer.removable]
    stays = "; ".join(f"{layer.name}: {layer.reason}" for layer in layers if layer.reason and not layer.is_stem)
    found = Verdict(case, "right", "", len(layers), len(removable), "", stays[:200])
    if not removable:
        return found._replace(kind="refused", text="no removable layers")
    folders = set()
    try:
        generates = case.task == CAUSAL and _generates(network)
        for removed in _plans(removable):
            try:
                folders.add(_tried(network, inputs, layers, removed, generates))
            except Exception as error:
                raise TrialError(f"without {[layers[i].name for i in removed]}: {_line(error)}") from error
    except TrialError as error:
        return found._replace(kind="fault", text=_line(error))
    return found._replace(folder=" or ".join(sorted(folders)))


def _plans(removable: list[int]) -> Iterator[list[int]]:
    seen = set()
    for removed in (removable[:1], removable[len(removable) // 2 :][:1], removable[-1:], removable[::2]):
        if removed and tuple(removed) not in seen:
            seen.add(tuple(removed))
            yield removed


def _tried(network: Any, inputs: dict, layers: list[Layer], removed: list[int], generates: bool) -> str:
    """Check one plan; return who can read the saved folder."""
    bypass = Bypass(network, layers, inputs)
    with bypass.without(removed):
        expected = _outputs(network, inputs)
    if len(removed) == len(layers):
        return ""
    small = sglp.prune(network, sglp.Plan.without(layers, removed)).eval()
    outputs = _outputs(small, inputs)
    difference, largest = float((outputs - expected).abs().max()), float(expected.abs().max())
    if not difference <= 1e-4 * largest:
        raise TrialError(f"outputs differ by {difference:.2g} of {largest:.2g}")
    if generates and not _generates(small):
        raise TrialError("generate with a cache gives another text than without")
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sglp.save(small, Path(name) / "saved")
        loaded = sglp.load(Path(name) / "saved")
        # Weights in a mapped file make CPUs sum in another order.
        if not torch.equal(_outputs(copy.deepcopy(loaded), inputs), outputs):
            raise TrialError("other outputs after loading")
    is_plain = not any(issubclass(w.category, NotPlainWarning) for w in caught)
    return "from_pretrained" if is_plain else "sglp.load"


def _outputs(network: Any, inputs: dict) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        output = network(**inputs)
    return output.logits if hasattr(output, "logits") else output[0]


def _generates(network: Any) -> bool:
    """Check that the model generates the same greedy text with and without a cache."""
    ids = _ids(1)
    try:
        options: Any = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
        generated = network.generate(ids, attention_mask=torch.ones_like(ids), **options)
        for _ in range(NEW):
            logits = _outputs(network, {"input_ids": ids, **_uncached(network)})
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    except Exception:  # whatever a model without a working cache raises
        return False
    return torch.equal(generated, ids)


def _uncached(network: Any) -> dict:
    return {"use_cache": False} if hasattr(network.config.get_text_config(), "use_cache") else {}


def _ids(batch: int) -> Tensor:
    return torch.randint(4, VOCABULARY - 1, (batch, LENGTH), generator=torch.Generator().manual_seed(1))


def _built(case: Case) -> tuple[Any, dict]:
    """Build a tiny model in eval mode under whose weights every layer has an effect, and an input."""
    model_class = getattr(transformers, case.class_name)
    last: Exception | None = None
    for level in range(3):
        for kind in dict.fromkeys((model_class.config_class, _config_class(case))):
            try:
                config = tiny(kind, level)
                with torch.device("meta"):
                    count = sum(p.numel() for p in model_class(copy.deepcopy(config)).parameters())
                if count > MOST_PARAMETERS:
                    raise TrialError(f"{count / 1e6:.0f} M parameters")
                return _initialised(model_class, config, case)
            except Exception as error:
                last = last or error
    assert last is not None
    raise last


def _config_class(case: Case) -> Any:
    return getattr(transformers, configuration_auto.CONFIG_MAPPING_NAMES[case.model_type])


def _initialised(model_class: Any, config: Any, case: Case) -> tuple[Any, dict]:
    if case.task == CAUSAL and getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    torch.manual_seed(0)
    network = model_class(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                else:
                    parameter.mul_(2)
    if case.task == "Image classifiers":
        sizes = (32, 64, 224)
        options = [{"pixel_values": torch.randn(2, 3, size, size)} for size in sizes]
    else:
        options = [{"input_ids": _ids(2), **_uncached(network)}]
    for inputs in options:
        try:
            if torch.isfinite(_outputs(network, inputs)).all():
                return network, inputs
        except Exception as error:
            last = error
    raise last


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text if isinstance(error, SGLPError | TrialError) else f"{type(error).__name__}: {text}")[:400].replace(
        "|", "/"
    )


if __name__ == "__main__":
    main()
