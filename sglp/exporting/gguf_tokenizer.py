"""Write a byte-level BPE tokenizer (such as those of GPT-2, SmolLM, Llama 3 and Qwen) as metadata of a GGUF file."""

import json
from pathlib import Path
from typing import Any

from sglp.errors import CheckpointError, first_line

TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"
_GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
_DIGITS = "\\p{N}"
_LLAMA3 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
_QWEN2 = _LLAMA3.replace("\\p{N}{1,3}", "\\p{N}")
# The names in llama.cpp for how text is split before merging, and for whether whole words take precedence over merges.
_NAMES = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGITS, _GPT2), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_QWEN2,), False): "qwen2",
}


def add_tokenizer(writer: Any, folder: Path, size: int) -> None:
    """Add the tokenizer of a folder to a `gguf.GGUFWriter`.

    Args:
        writer: the writer to add the metadata to.
        folder: a folder with tokenizer.json, and optionally tokenizer_config.json and a chat template.
        size: the number of tokens in the model's embedding; tokens that the tokenizer lacks are marked as unused.

    Raises:
        CheckpointError: there is no tokenizer, or llama.cpp would not split text in the same way.
    """
    import gguf
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {TOKENIZER}: save the model's tokenizer into it with save_pretrained")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no subclass
        raise CheckpointError(f"{path} is broken: {first_line(error)}") from error
    content = json.loads(tokenizer.to_str())
    name = _name(folder, content)
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    largest = max(tokenizer.get_vocab().values())
    if largest >= size:
        raise CheckpointError(f"{path} has a token with the id {largest}, but the model has only {size} tokens")
    for token, i in content["model"]["vocab"].items():
        tokens[i] = token
        types[i] = gguf.TokenType.NORMAL
    for token in content["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=size)
    if (folder / TEMPLATE).is_file():
        special.chat_template = (folder / TEMPLATE).read_text(encoding="utf-8")
    # "False" must be written too: without an entry, llama.cpp decides by the name and adds a start token for some.
    ids = tokenizer.encode("a").ids
    begins, ends = (special.special_token_ids.get(kind) for kind in ("bos", "eos"))
    special.add_special_token = {"bos": ids[:1] == [begins], "eos": ids[-1:] == [ends]}
    special.add_to_gguf(writer, quiet=True)


def _name(folder: Path, content: dict) -> str:
    """Return the name in llama.cpp for how a tokenizer splits text."""
    model = content["model"]
    steps = _steps(content["pre_tokenizer"])
    if model["type"] != "BPE" or not steps or steps[-1]["type"] != "ByteLevel":
        raise CheckpointError(
            f"the tokenizer in {folder} is not a byte-level BPE such as those of SmolLM, Llama 3 and Qwen: "
            "llama.cpp's convert_hf_to_gguf.py may support it and reads the same folder"
        )
    splitting = (tuple(filter(None, map(_pattern, steps))), model["ignore_merges"])
    # llama.cpp never composes characters (NFC), not even for Qwen, whose tokenizer does: most text is already composed.
    if splitting not in _NAMES or content["normalizer"] not in (None, {"type": "NFC"}):
        raise CheckpointError(
            f"the tokenizer in {folder} does not split text like any of {', '.join(_NAMES.values())}: "
            "llama.cpp's convert_hf_to_gguf.py may support it and reads the same folder"
        )
    return _NAMES[splitting]


def _steps(pre_tokenizer: dict | None) -> list[dict]:
    if pre_tokenizer is None:
        return []
    return pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def _pattern(step: dict) -> str:
    """Return the expression by which a step splits text, or "" if it only maps bytes to letters."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}:
            return _GPT2 if use_regex else ""
        case {"type": "Digits", "individual_digits": True}:
            return _DIGITS
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return pattern
    return str(step)
