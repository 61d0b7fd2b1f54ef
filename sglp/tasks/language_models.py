"""Factories of causal language models and their tokenizers: from the hub, a folder, a GGUF file or a configuration."""

from pathlib import Path

from sglp.errors import ArchitectureError, CheckpointError, first_line
from sglp.hugging_face.pretrained import dequantized, no_progress_bars
from sglp.tasks.hub import fail_fast_offline
from sglp.tasks.local_files import CODE, read_local, refuse_code


def causal_lm(pretrained: str | None = None, revision: str | None = None, trust_remote_code: bool = False, **config):
    """Load a pretrained causal language model, or build one with random weights from a configuration.

    Args:
        pretrained: a name on the hub, a folder of safetensors with config.json, a GGUF file, or a folder with one GGUF
            file. Weights keep their stored precision; GGUF weights become float32.
        revision: commit on the hub.
        trust_remote_code: whether code that comes with the model may run.
        config: configuration of a model with random weights, such as {"model_type": "llama", "hidden_size": 64, ...}.

    Raises:
        CheckpointError: the model can't be loaded, or needs code that may not run.
        ArchitectureError: the configuration is not valid.
    """
    import transformers

    if pretrained is None:
        return configured(transformers.AutoModelForCausalLM, "a language model", config)
    refuse(config)
    return dequantized(fetched(transformers.AutoModelForCausalLM, pretrained, revision, trust_remote_code))


def configured(kind, what: str, config: dict, *more: str):
    """Build a Hugging Face model with random weights from a configuration.

    Args:
        kind: Auto class of the model.
        what: description of the model for errors.
        config: entries of the configuration; unknown entries are refused.
        more: entries that the configuration stores under another name.

    Raises:
        ArchitectureError: the configuration is not valid.
    """
    import transformers

    try:
        configuration = transformers.AutoConfig.for_model(**config)
        unknown = sorted(
            set(config) - {"model_type", *configuration.attribute_map, *type(configuration)().to_dict(), *more}
        )
        if unknown:
            raise ValueError(f"{type(configuration).__name__} has no entry {', '.join(unknown)}")
        return kind.from_config(configuration)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArchitectureError(f"architecture.kwargs={config} do not make {what}: {first_line(error)}") from error


def refuse(config: dict) -> None:
    """Refuse a configuration besides pretrained weights, which bring their own.

    Raises:
        ArchitectureError: the configuration has entries.
    """
    if config:
        raise ArchitectureError(
            f"architecture.kwargs has {', '.join(sorted(config))}, but pretrained weights bring their own "
            f"configuration: only {CODE} is allowed"
        )


def tokenizer(pretrained, revision: str | None = None, trust_remote_code: bool = False):
    """Load the tokenizer of a model.

    Raises:
        CheckpointError: the tokenizer can't be loaded.
    """
    import transformers

    return fetched(transformers.AutoTokenizer, str(pretrained), revision, trust_remote_code)


def byte_tokenizer():
    """Create a tokenizer whose tokens are bytes, for models that the pipeline trains from scratch."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer(extra_ids=0)


def fetched(kind, name: str, revision: str | None, trust: bool):
    """Load a model or tokenizer from a folder, a GGUF file or the hub.

    Raises:
        CheckpointError: the model can't be loaded, or needs code that may not run.
    """
    if Path(name).exists():
        return read_local(kind, name, trust)
    try:
        with no_progress_bars(), fail_fast_offline():
            return kind.from_pretrained(name, revision=revision or "main", **{CODE: trust})
    except Exception as error:  # whatever transformers raises, the user needs one sentence
        refuse_code(name, error)
        raise CheckpointError(
            f"{name} is not a folder here and can't be downloaded from the hub ({first_line(error)}): download the "
            "model's folder (safetensors) or GGUF file elsewhere and set files.weights.path to it, with "
            "weights.source: file and weights.kwargs: {}"
        ) from error
