"""Brings causal language models of transformers, and their tokenizers: from the hub, a folder, a GGUF file, or a
configuration alone."""

from pathlib import Path

from sglp.errors import ArchitectureError, CheckpointError, first_line
from sglp.hugging_face.pretrained import dequantized, no_progress_bars
from sglp.tasks.hub import fail_fast_offline
from sglp.tasks.local_files import CODE, read_local, refuse_code


def causal_lm(pretrained: str | None = None, revision: str | None = None, trust_remote_code: bool = False, **config):
    """The factory of workloads: a pretrained model, or one of random weights from a configuration.

    Args:
        pretrained: a name on the hub, a folder of safetensors with config.json, a folder with one GGUF file, or such a
            file. Weights keep the precision that they are stored in; those of GGUF become float32.
        revision: the commit on the hub.
        trust_remote_code: whether code that comes with the model may run.
        config: of a model of random weights, as {"model_type": "llama", "hidden_size": 64, ...}.

    Raises:
        CheckpointError: it can't be had, is broken, or needs code that may not run.
        ArchitectureError: the configuration makes no model.
    """
    import transformers

    if pretrained is None:
        return configured(transformers.AutoModelForCausalLM, "language model", config)
    refuse(config)
    return dequantized(fetched(transformers.AutoModelForCausalLM, pretrained, revision, trust_remote_code))


def configured(kind, what: str, config: dict, *more: str):
    """What a class of transformers makes from a configuration, with random weights.

    Args:
        kind: the class.
        what: what it makes, in words.
        config: the entries of the configuration; others than it has are refused.
        more: names of entries that it has under another name.

    Raises:
        ArchitectureError: the configuration makes none.
    """
    import transformers

    try:
        made = transformers.AutoConfig.for_model(**config)
        unknown = sorted(set(config) - {"model_type", *made.attribute_map, *type(made)().to_dict(), *more})
        if unknown:
            raise ValueError(f"{type(made).__name__} knows no {', '.join(unknown)}")
        return kind.from_config(made)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArchitectureError(f"architecture.kwargs={config} make no {what}: {first_line(error)}") from error


def refuse(config: dict) -> None:
    """Refuse a configuration beside pretrained weights, which come with one.

    Raises:
        ArchitectureError: there is one.
    """
    if config:
        raise ArchitectureError(
            f"architecture.kwargs has {', '.join(sorted(config))}, but pretrained weights come with a configuration: "
            f"only {CODE} can stand there"
        )


def tokenizer(pretrained, revision: str | None = None, trust_remote_code: bool = False):
    """The tokenizer that goes with a model.

    Raises:
        CheckpointError: there is none.
    """
    import transformers

    return fetched(transformers.AutoTokenizer, str(pretrained), revision, trust_remote_code)


def byte_tokenizer():
    """Every byte is a token: for models that are trained here."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer(extra_ids=0)


def fetched(kind, name: str, revision: str | None, trust: bool):
    """What a class of transformers reads from a folder, a GGUF file or the hub.

    Raises:
        CheckpointError: it can't be had, is broken, or needs code that may not run.
    """
    if Path(name).exists():
        return read_local(kind, name, trust)
    try:
        with no_progress_bars(), fail_fast_offline():
            return kind.from_pretrained(name, revision=revision or "main", **{CODE: trust})
    except Exception as error:  # whatever transformers raises, the user needs one sentence
        refuse_code(name, error)
        raise CheckpointError(
            f"{name} is no folder here, and can't be had from the hub ({first_line(error)}): without it, fetch the "
            "model's folder (safetensors) or GGUF file elsewhere and name it as files.weights.path, with "
            "weights.source: file and weights.kwargs: {}"
        ) from error
