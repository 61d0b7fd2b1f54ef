"""A byte-level BPE tokenizer (as those of GPT-2, SmolLM, Llama 3, Qwen) as metadata of a GGUF file."""

import json
from pathlib import Path

from sglp.errors import CheckpointError, first_line

TOKENIZER, TEMPLATE = "tokenizer.json", "chat_template.jinja"
_GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
_DIGITS = "\\p{N}"
_LLAMA3 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
_QWEN2 = _LLAMA3.replace("\\p{N}{1,3}", "\\p{N}")
# llama.cpp knows by a name how text is split before merging, and whether whole words go before merges.
_NAMES = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGITS, _GPT2), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_QWEN2,), False): "qwen2",
}


def add_tokenizer(writer, folder: Path, size: int) -> None:
    """Add a folder's tokenizer to a `gguf.GGUFWriter`.

    Args:
        writer: what the metadata are added to.
        folder: holds tokenizer.json, and, if there are any, tokenizer_config.json and the chat template.
        size: how many tokens the model's embedding has; those that the tokenizer lacks are marked as unused.

    Raises:
        CheckpointError: there is no tokenizer, or llama.cpp would not split text as it does.
    """
    import gguf
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {TOKENIZER}: save the model's tokenizer into it with save_pretrained")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more special
        raise CheckpointError(f"{path} is broken: {first_line(error)}") from error
    content = json.loads(tokenizer.to_str())
    name = _name(folder, content)
    tokens, types = [f"[PAD{i}]" for i in range(size)], [gguf.TokenType.UNUSED] * size
    largest = max(tokenizer.get_vocab().values())
    if largest >= size:
        raise CheckpointError(f"{path} has the token {largest}, but the model has only {size} tokens")
    for token, i in content["model"]["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
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
    # A "no" must be said too: llama.cpp goes by the name where it is told nothing, and begins texts for some.
    ids = tokenizer.encode("a").ids
    begins, ends = (special.special_token_ids.get(kind) for kind in ("bos", "eos"))
    special.add_special_token = {"bos": ids[:1] == [begins], "eos": ids[-1:] == [ends]}
    special.add_to_gguf(writer, quiet=True)


def _name(folder: Path, content: dict) -> str:
    """What llama.cpp calls the way in which a tokenizer splits text."""
    model, steps = content["model"], _steps(content["pre_tokenizer"])
    if model["type"] != "BPE" or not steps or steps[-1]["type"] != "ByteLevel":
        raise CheckpointError(
            f"the tokenizer in {folder} is no byte-level BPE, as those of SmolLM, Llama 3 and Qwen are: "
            "llama.cpp's convert_hf_to_gguf.py may know it and takes the folder as it is"
        )
    way = (tuple(filter(None, map(_pattern, steps))), model["ignore_merges"])
    # llama.cpp never composes characters (NFC), not even for Qwen, whose tokenizer does: most text comes composed.
    if way not in _NAMES or content["normalizer"] not in (None, {"type": "NFC"}):
        raise CheckpointError(
            f"the tokenizer in {folder} splits text as none of {', '.join(_NAMES.values())} does: "
            "llama.cpp's convert_hf_to_gguf.py may know it and takes the folder as it is"
        )
    return _NAMES[way]


def _steps(pre_tokenizer: dict | None) -> list[dict]:
    if pre_tokenizer is None:
        return []
    return pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def _pattern(step: dict) -> str:
    """The expression by which a step splits text; none where it only maps bytes to letters."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}:
            return _GPT2 if use_regex else ""
        case {"type": "Digits", "individual_digits": True}:
            return _DIGITS
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return pattern
    return str(step)
