"""A GGUF file holds the folder's model: transformers reads back the same weights, logits and token ids."""

import json
import os
import sys

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Regex, decoders, normalizers, processors, trainers
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, Sequence, Split, Whitespace
from transformers.integrations.gguf import gguf_tokenizer_mapping

from sglp.errors import CheckpointError
from sglp.exporting.gguf_format import export_gguf
from sglp.surgery.prune import drop_modules

gguf = pytest.importorskip("gguf")

# Older transformers split the text of all tokenizers in GGUF files as GPT-2's does.
READS_SPLITTINGS = hasattr(gguf_tokenizer_mapping, "GGUF_PRE_TOKENIZER_SPLITS")
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "Hello world, it's 2024! We'LL see; I don't.",
    "def f(x):\n    return x**2  # squared\n\n\tif x != 31337:\n\t\tpass\r\n",
    "café naïve Straße, 你好 мир مرحبا 😀 ½²  x\u00a0y",
    "<|begin|>hi<|end|> <tool>look</tool>",
    "  ",
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 330,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


def splitting(splitter):
    """The pre-tokenizer that splits text before bytes are merged."""
    first = {
        "gpt-2": [],
        "smollm": [Digits(individual_digits=True)],
        "llama-bpe": [Split(Regex(LLAMA3), "isolated")],
        "smaug-bpe": [Split(Regex(LLAMA3), "isolated")],
        "qwen2": [Split(Regex(QWEN2), "isolated")],
    }[splitter]
    last = ByteLevel(add_prefix_space=False, use_regex=splitter in ("gpt-2", "smollm"))
    return Sequence([*first, last]) if first else last


def begin(tokenizer):
    """Let a tokenizer begin each text with its first token."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", 0)]
    )


def make_tokenizer(splitter="qwen2", begins=False):
    """A byte-level BPE tokenizer that splits text like one of those that llama.cpp supports."""
    tokenizer = tokenizers.Tokenizer(BPE(ignore_merges=splitter == "llama-bpe"))
    tokenizer.pre_tokenizer = splitting(splitter)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, *TEXTS, "Hello hello return returns 2024 313 café мир"], trainer)
    if begins:
        begin(tokenizer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    fast.add_tokens(["<tool>", "</tool>"])
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return fast


def tokenizer_of(metadata):
    """The tokenizer in the metadata of a file, as llama.cpp reads it."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    splitter = metadata["tokenizer.ggml.pre"]
    model = BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]],
        ignore_merges=splitter == "llama-bpe",
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = splitting(splitter)
    tokenizer.add_special_tokens([t for t, k in zip(tokens, types, strict=True) if k == gguf.TokenType.CONTROL])
    tokenizer.add_tokens([t for t, k in zip(tokens, types, strict=True) if k == gguf.TokenType.USER_DEFINED])
    if metadata["tokenizer.ggml.add_bos_token"]:
        begin(tokenizer)
    return tokenizer


def make_model(kind="Llama", **changes):
    """A tiny language model with random weights, in which norms and biases matter too."""
    config = getattr(transformers, f"{kind}Config")(**SIZES | changes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else noise / 4)
    return model.eval()


def without_layers(model, *numbers):
    """Remove layers of a model, in place."""
    drop_modules(model, [f"model.layers.{number}" for number in numbers])
    model.config.num_hidden_layers -= len(numbers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: model.config.num_hidden_layers]
    return model


@pytest.fixture
def folder(tmp_path):
    """A function that saves a model and a tokenizer, by default a Llama and a tokenizer like Qwen's."""

    def save(model=None, tokenizer=None, name="tiny", **options):
        where = tmp_path / name
        (model or make_model()).save_pretrained(where, **options)
        (tokenizer or make_tokenizer()).save_pretrained(where)
        return where

    return save


def read(path):
    """The metadata and tensors of a GGUF file, from the reader of gguf."""
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


def logits(model):
    ids = torch.arange(3, 303).view(3, 100)
    with torch.no_grad():
        return model.eval()(ids).logits


MODELS = {
    "Llama": ("Llama", {}),
    "Llama with wide heads": ("Llama", {"head_dim": 16}),
    "Llama with one key for all heads": ("Llama", {"num_key_value_heads": 1}),
    "Llama whose head is the embedding": ("Llama", {"tie_word_embeddings": True}),
    "Llama with another base": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
    "Llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Qwen2": ("Qwen2", {}),
    "Qwen2 whose head is the embedding": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen3": ("Qwen3", {"head_dim": 16}),
}
# Settings that transformers does not read from GGUF files, and that must be passed.
UNREAD = {"Llama": ("attention_bias", "mlp_bias"), "Qwen3": ("head_dim",)}


@pytest.mark.parametrize("removed", [(), (1, 2)], ids=["whole", "pruned"])
@pytest.mark.parametrize(("kind", "changes"), MODELS.values(), ids=MODELS)
def test_transformers_reads_back_the_same_logits_and_token_ids(folder, tmp_path, kind, changes, removed):
    saved = folder(without_layers(make_model(kind, **changes), *removed))
    export_gguf(saved, tmp_path / "tiny.gguf")
    unread = {name: changes[name] for name in UNREAD.get(kind, ()) if name in changes}
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", **unread)
    original = transformers.AutoModelForCausalLM.from_pretrained(saved)
    assert len(back.model.layers) == 4 - len(removed)
    assert torch.equal(logits(back), logits(original))
    if READS_SPLITTINGS:
        tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
        tokenizer_back = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
        assert [tokenizer_back(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]


@pytest.mark.parametrize("begins", [False, True], ids=["", "begins"])
@pytest.mark.parametrize("splitter", ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2"])
def test_a_tokenizer_is_recognised_by_how_it_splits_text_and_keeps_its_ids(folder, tmp_path, splitter, begins):
    tokenizer = make_tokenizer(splitter, begins)
    saved = folder(tokenizer=tokenizer)
    change(saved / "tokenizer_config.json", chat_template="to transformers, the file beside it counts")
    export_gguf(saved, tmp_path / "tiny.gguf")
    metadata, _ = read(tmp_path / "tiny.gguf")
    assert metadata["tokenizer.ggml.pre"] == splitter
    # llama.cpp adds a start token for some of them by default, so False must be written too
    assert metadata["tokenizer.ggml.add_bos_token"] is begins
    assert metadata["tokenizer.ggml.add_eos_token"] is False
    back = tokenizer_of(metadata)
    assert [back.encode(text).ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]
    tokens = metadata["tokenizer.ggml.tokens"]
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        assert tokens[metadata[f"tokenizer.ggml.{key}_token_id"]] == getattr(tokenizer, f"{name}_token")
    assert metadata["tokenizer.chat_template"] == tokenizer.chat_template


def test_tokens_are_marked_by_type_and_the_vocabulary_is_padded(folder, tmp_path):
    tokenizer = make_tokenizer()
    export_gguf(folder(tokenizer=tokenizer), tmp_path / "tiny.gguf")
    metadata, tensors = read(tmp_path / "tiny.gguf")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert len(tokens) == len(set(tokens)) == tensors["token_embd.weight"].shape[1] == 330
    marked = {kind: [t for t, k in zip(tokens, types, strict=True) if k == kind] for kind in gguf.TokenType}
    assert marked[gguf.TokenType.CONTROL] == ["<|begin|>", "<|end|>"]
    assert marked[gguf.TokenType.USER_DEFINED] == ["<tool>", "</tool>"]
    assert marked[gguf.TokenType.UNUSED] == [f"[PAD{i}]" for i in range(len(tokenizer), 330)]
    assert sum(map(len, marked.values())) == 330
    vocabulary = tokenizer.get_vocab()
    assert all(tokens[i] == token for token, i in vocabulary.items())


def test_sizes_are_taken_from_the_configuration(folder, tmp_path):
    model = make_model("Mistral", head_dim=16, sliding_window=100, rope_parameters={"rope_theta": 500.0})
    export_gguf(folder(model, name="tiny-mistral"), tmp_path / "tiny.gguf")
    metadata, tensors = read(tmp_path / "tiny.gguf")
    assert metadata["general.name"] == "Tiny Mistral"
    assert {name.removeprefix("llama."): value for name, value in metadata.items() if name.startswith("llama.")} == {
        "vocab_size": 330,
        "context_length": 100,  # within 100 tokens, a window of 100 sees everything
        "embedding_length": 32,
        "block_count": 4,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "rope.dimension_count": 16,
        "rope.freq_base": 500.0,
    }
    assert len(tensors) == len(model.state_dict())
    assert sum(t.n_elements for t in tensors.values()) == sum(p.numel() for p in model.parameters())


def test_llama_3s_position_scaling_is_written_as_divisors_of_frequencies(folder, tmp_path):
    model = make_model(head_dim=16, rope_parameters=LLAMA3_ROPE)
    export_gguf(folder(model), tmp_path / "tiny.gguf")
    metadata, tensors = read(tmp_path / "tiny.gguf")
    waves = 2 * np.pi * 10000.0 ** (np.arange(8) / 8)
    weights = np.clip((64 / waves - 1) / (4 - 1), 0, 1)  # of the unscaled frequency, against an eighth of it
    assert 0 < weights[2] < 1
    assert tensors["rope_freqs.weight"].data == pytest.approx(1 / ((1 - weights) / 8 + weights), rel=1e-6)
    assert "llama.rope.scaling.type" not in metadata


def test_linear_scaling_of_positions_is_metadata(folder, tmp_path):
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    export_gguf(folder(make_model("Qwen2", rope_parameters=rope)), tmp_path / "tiny.gguf")
    metadata, tensors = read(tmp_path / "tiny.gguf")
    assert (metadata["qwen2.rope.scaling.type"], metadata["qwen2.rope.scaling.factor"]) == ("linear", 4.0)
    assert "rope_freqs.weight" not in tensors


@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_matrices_keep_their_precision_and_vectors_are_float32(folder, tmp_path, dtype, kind):
    saved = folder(make_model("Qwen2", tie_word_embeddings=True).to(dtype))
    export_gguf(saved, tmp_path / "tiny.gguf")
    metadata, tensors = read(tmp_path / "tiny.gguf")
    assert metadata["general.file_type"] == gguf.LlamaFileType[f"MOSTLY_{kind}"]
    assert {t.tensor_type.name for t in tensors.values() if len(t.shape) > 1} == {kind}
    assert {t.tensor_type.name for t in tensors.values() if len(t.shape) == 1} == {"F32"}
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=dtype)
    state = load_file(saved / "model.safetensors")
    assert set(state) == {name for name, _ in back.named_parameters()}
    assert all(torch.equal(value, state[name]) for name, value in back.named_parameters())


def test_weights_in_several_files_give_the_same_bytes_as_in_one(folder, tmp_path):
    whole, parts = folder(name="one/tiny"), folder(name="many/tiny", max_shard_size="50KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    assert not (parts / "model.safetensors").exists()
    export_gguf(whole, tmp_path / "one.gguf")
    export_gguf(parts, tmp_path / "deep/er/many.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "deep/er/many.gguf").read_bytes()


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(saved, **changes):
    state = load_file(saved / "model.safetensors")
    for name, value in changes.items():
        name = name.replace("__", ".")
        state.pop(name)
        if value is not None:
            state[name] = value
    save_file(state, saved / "model.safetensors")


def change_tokenizer(saved, **changes):
    tokenizer = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save(str(saved / "tokenizer.json"))


def enlarge_tokenizer(saved, count):
    tokenizer = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
    tokenizer.add_tokens([f"<{i}>" for i in range(count)])
    tokenizer.save(str(saved / "tokenizer.json"))


NORM = "model__norm__weight"
REFUSED = {
    "no config.json": (
        lambda f: (f / "config.json").unlink(),
        r"tiny is not the folder of a language model: it has no",
    ),
    "a broken config.json": (lambda f: (f / "config.json").write_text("{"), "it does not name an architecture"),
    "a wrong config.json": (
        lambda f: change(f / "config.json", hidden_size="wide"),
        r"config\.json is broken: .*hidden",
    ),
    "another architecture": (
        lambda f: change(f / "config.json", architectures=["GemmaForCausalLM"]),
        "only LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM can be written as GGUF, "
        r"but .*tiny holds a GemmaForCausalLM: llama.cpp's convert_hf_to_gguf\.py may support it",
    ),
    "another activation": (
        lambda f: change(f / "config.json", hidden_act="gelu"),
        "the activation is gelu, but .* silu in llama",
    ),
    "positions scaled as YaRN": (
        lambda f: change(f / "config.json", rope_parameters=YARN),
        r"position scaling of the type 'yarn' can't be written for llama: llama.cpp's convert_hf_to_gguf\.py",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"tiny has no weights: neither model\.safetensors"),
    "broken weights": (
        lambda f: os.truncate(f / "model.safetensors", 99),
        r"tiny/model\.safetensors is missing or broken",
    ),
    "a missing weight": (lambda f: change_weights(f, **{NORM: None}), r"incomplete: model\.norm\.weight is missing"),
    "a missing layer": (
        lambda f: change(f / "config.json", num_hidden_layers=5),
        r"incomplete: model\.layers\.4\..* is mis",
    ),
    "a weight of another shape": (
        lambda f: change_weights(f, **{NORM: torch.ones(31)}),
        r"model\.norm\.weight has the shape \[31\] in .*tiny, but its config\.json says \[32\]",
    ),
    "a quantized weight": (
        lambda f: change_weights(f, **{NORM: torch.ones(32, dtype=torch.int8)}),
        r"model\.norm\.weight in .*tiny is I8, but only F32, F16, BF16 can be written",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        r"tiny has no tokenizer\.json: save the model's tokenizer",
    ),
    "a broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), r"tokenizer\.json is broken: "),
    "a tokenizer of pieces": (
        lambda f: change_tokenizer(f, pre_tokenizer=Metaspace()),
        "the tokenizer in .*tiny is not a byte-level BPE such as those of SmolLM, Llama 3 and Qwen: llama.cpp's",
    ),
    "a tokenizer that splits nothing": (
        lambda f: change(f / "tokenizer.json", pre_tokenizer=None),
        "is not a byte-level BPE",
    ),
    "a tokenizer of words": (
        lambda f: change_tokenizer(f, model=WordPiece({"a": 0}, unk_token="a")),
        "is not a byte-level BPE",
    ),
    "another splitting": (
        lambda f: change_tokenizer(f, pre_tokenizer=Sequence([Whitespace(), splitting("gpt-2")])),
        "in .*tiny does not split text like any of gpt-2, smollm, llama-bpe, smaug-bpe, qwen2: llama.cpp's",
    ),
    "a space before texts": (
        lambda f: change_tokenizer(f, pre_tokenizer=ByteLevel(add_prefix_space=True)),
        "does not split text like any of",
    ),
    "a normalizer": (
        lambda f: change_tokenizer(f, normalizer=normalizers.Lowercase()),
        "does not split text like any of",
    ),
    "words before merges": (
        lambda f: change_tokenizer(f, pre_tokenizer=splitting("gpt-2"), model=BPE(ignore_merges=True)),
        "does not split text like any of",
    ),
    "more tokens than the model": (
        lambda f: enlarge_tokenizer(f, 9),
        r"tokenizer\.json has a token with the id 330, but the model has only 330 tokens",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_unsupported_folders_are_refused_in_one_sentence_and_leave_nothing(folder, tmp_path, spoil, message):
    saved = folder()
    spoil(saved)
    (tmp_path / "tiny.gguf").write_bytes(b"an older file")
    with pytest.raises(CheckpointError, match=message) as refusal:
        export_gguf(saved, tmp_path / "tiny.gguf")
    assert "\n" not in str(refusal.value)
    assert (tmp_path / "tiny.gguf").read_bytes() == b"an older file"
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "tiny.gguf"}


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("Qwen2", {"rope_parameters": LLAMA3_ROPE}, "position scaling of the type 'llama3' can't be written for qwen2"),
        ("Qwen3", {"attention_bias": True}, "attention has biases, which llama.cpp does not support in qwen3"),
    ],
)
def test_settings_that_llama_cpp_does_not_support_are_refused(folder, tmp_path, kind, changes, message):
    with pytest.raises(CheckpointError, match=message):
        export_gguf(folder(make_model(kind, **changes)), tmp_path / "tiny.gguf")


@pytest.mark.parametrize("package", ["gguf", "transformers"])
def test_a_missing_package_is_named_with_what_installs_it(folder, tmp_path, monkeypatch, package):
    saved = folder()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        CheckpointError, match=rf"export to gguf needs the package {package}: pip install 'sglp\[llm\]'"
    ):
        export_gguf(saved, tmp_path / "tiny.gguf")
