"""What find_layers calls removable in a Hugging Face model can be removed, runs with a cache, and can be saved."""

import pickle
import warnings

import pytest
import torch
import transformers as hf
from hugging_face_families import DEPTH, EXPERTS, GROUPED, HEADS, TOKENS, VOCABULARY, WIDE, outputs, tokens

import sglp
from sglp.architecture import architecture_of
from sglp.errors import LayerError, NotPlainWarning, PlanError
from sglp.surgery.pretrained_trials import LAST_OF_ITS_KIND, NEEDED_BY_OTHERS

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_heads": 4}
BART = {
    **{"vocab_size": VOCABULARY, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": DEPTH},
    **{"decoder_layers": DEPTH, "encoder_attention_heads": 4, "decoder_attention_heads": 4, **SPECIAL},
    "decoder_start_token_id": 1,
}


def build(kind, **arguments):
    torch.manual_seed(0)
    network = kind(kind.config_class(**arguments)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(2)
    return network


def jamba(**more):
    state = {"mamba_d_state": 8, "mamba_dt_rank": 4, "num_experts": 2, "attn_layer_period": 3, "attn_layer_offset": 1}
    return build(hf.JambaForCausalLM, **GROUPED | SPECIAL | state | more)


def recurrent_gemma():
    return build(hf.RecurrentGemmaForCausalLM, **GROUPED | SPECIAL, head_dim=8, lru_width=32, attention_window_size=16)


def lfm2():
    kinds = ["conv", "full_attention", "conv", "conv", "full_attention", "conv"]
    return build(hf.Lfm2ForCausalLM, **GROUPED | SPECIAL, layer_types=kinds)


def bamba():
    sizes = {"mamba_d_head": 16, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_chunk_size": 8}
    return build(hf.BambaForCausalLM, **GROUPED | SPECIAL | sizes, attn_layer_indices=[2, 4])


def moe(kind, **more):
    return build(kind, **HEADS | SPECIAL | EXPERTS, num_experts=4, decoder_sparse_step=2, **more)


def ernie():
    sizes = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_num_shared_experts": 1}
    interval = {"moe_layer_interval": 2, "moe_layer_start_index": 1, "moe_layer_end_index": -1}
    return build(hf.Ernie4_5_MoeForCausalLM, **GROUPED | SPECIAL | sizes | interval)


def scaled_gpt2():
    sizes = {"n_embd": 32, "n_layer": DEPTH, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY, **TOKENS}
    return build(hf.GPT2LMHeadModel, **sizes, scale_attn_by_inverse_layer_idx=True)


def esm():
    return build(hf.EsmForMaskedLM, **WIDE | {"pad_token_id": 1}, mask_token_id=3, position_embedding_type="rotary")


def modern_bert():
    ids = {"cls_token_id": 1, "sep_token_id": 2}
    return build(hf.ModernBertForMaskedLM, **WIDE | SPECIAL | ids)


def pruned(network, removed, inputs):
    layers = sglp.find_layers(network, inputs)
    assert all(layers[i].removable for i in removed)
    return sglp.prune(network, sglp.Plan.without(layers, removed)).eval()


def inputs_of(network):
    inputs = {"input_ids": tokens(12, seed=2).clamp(min=4)}
    return inputs | ({"use_cache": False} if network.can_generate() else {})


def is_skipped(network, removed, inputs, expected):
    """Check outputs against those of the dense network whose layers return their input."""
    layers = sglp.find_layers(network, inputs)

    def hook(module, args, kwargs, output):
        first = args[0] if args else kwargs["hidden_states"]
        return first if isinstance(output, torch.Tensor) else (first, *output[1:])

    handles = [network.get_submodule(layers[i].name).register_forward_hook(hook, with_kwargs=True) for i in removed]
    dense = outputs(network, inputs)
    for handle in handles:
        handle.remove()
    assert torch.allclose(expected, dense, atol=1e-5 * float(dense.abs().max()))


@pytest.mark.filterwarnings("ignore::sglp.errors.NotPlainWarning")
@pytest.mark.parametrize("removed", [[0], [3, 5], [0, 3, 5]], ids=str)
@pytest.mark.parametrize("make", [jamba, recurrent_gemma, lfm2])
def test_a_hybrid_generates_the_text_without_a_cache(make, removed, tmp_path):
    network = make()
    inputs = inputs_of(network)
    small = pruned(network, removed, inputs)
    is_skipped(network, removed, inputs, outputs(small, inputs))
    ids = inputs["input_ids"]
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    generated = small.generate(ids, **options)
    for _ in range(3):
        ids = torch.cat([ids, outputs(small, {"input_ids": ids, "use_cache": False})[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, ids)
    sglp.save(small, tmp_path / "saved")
    assert torch.equal(outputs(sglp.load(tmp_path / "saved"), inputs), outputs(small, inputs))
    assert torch.equal(sglp.load(tmp_path / "saved").generate(inputs["input_ids"], **options), generated)


def test_lists_that_a_config_computes_are_kept_through_copies_and_rounds():
    network = jamba()
    kinds = network.config.layer_types
    once = pruned(network, [0, 2], inputs_of(network))
    assert once.config.layer_types == [kinds[i] for i in (1, 3, 4, 5)]
    assert isinstance(once.config, hf.JambaConfig)
    assert pickle.loads(pickle.dumps(once.config)).layer_types == once.config.layer_types
    twice = pruned(once, [1], inputs_of(network))
    assert twice.config.layer_types == [kinds[i] for i in (1, 4, 5)]
    assert twice.config.layers_num_experts == [network.config.layers_num_experts[i] for i in (1, 4, 5)]
    assert network.config.layer_types == kinds
    assert type(network.config) is hf.JambaConfig


def test_recurrent_gemma_gets_an_explicit_list_that_plain_transformers_reads(tmp_path):
    network = recurrent_gemma()
    small = pruned(network, [0, 1], inputs_of(network))
    assert small.config.block_types == ["attention", "recurrent", "recurrent", "attention"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotPlainWarning)
        sglp.save(small, tmp_path / "saved")


@pytest.mark.parametrize(("make", "attention"), [(lfm2, [1, 4]), (bamba, [2, 4]), (recurrent_gemma, [2, 5])])
def test_one_attention_layer_of_a_hybrid_stays(make, attention):
    network = make()
    layers = sglp.find_layers(network, inputs_of(network))
    assert [layers[i].reason for i in attention] == [LAST_OF_ITS_KIND, ""]
    with pytest.raises(PlanError, match=r"can't lose .* together: what is left does not run with a cache \(ValueError"):
        sglp.prune(network, sglp.Plan.without(layers, attention))
    removable = [i for i, layer in enumerate(layers) if layer.removable]
    small = sglp.prune(network, sglp.Plan.without(layers, removable[:-1])).eval()
    with torch.no_grad():
        assert small(inputs_of(network)["input_ids"]).logits.isfinite().all()


def test_a_first_block_that_computes_for_the_others_stays():
    network = build(hf.T5EncoderModel, **T5, decoder_start_token_id=0)
    inputs = {"input_ids": tokens()}
    layers = sglp.find_layers(network, inputs)
    assert [layer.reason for layer in layers] == [NEEDED_BY_OTHERS, "", "", ""]
    small = sglp.prune(network, sglp.Plan.without(layers, [1, 3]))
    is_skipped(network, [1, 3], inputs, outputs(small, inputs))


@pytest.mark.parametrize(
    ("make", "removed", "is_plain"),
    [
        (lambda: moe(hf.Qwen3MoeForCausalLM), [0, 3], True),
        (lambda: moe(hf.Qwen2MoeForCausalLM, shared_expert_intermediate_size=8), [0], True),
        (ernie, [0], False),
        (ernie, [1, 2], True),
        (scaled_gpt2, [0, 2], False),
        (esm, [0, 4], True),
        (modern_bert, [0, 3], False),
    ],
)
def test_what_is_removable_can_be_saved(make, removed, is_plain, tmp_path):
    network = make()
    inputs = inputs_of(network)
    small = pruned(network, removed, inputs)
    expected = outputs(small, inputs)
    is_skipped(network, removed, inputs, expected)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sglp.save(small, tmp_path / "saved")
    assert any(w.category is NotPlainWarning for w in caught) != is_plain
    loaded = sglp.load(tmp_path / "saved")
    assert torch.equal(outputs(loaded, inputs), expected)
    assert architecture_of(loaded).removed == architecture_of(small).removed
    if is_plain:
        assert torch.equal(outputs(type(small).from_pretrained(tmp_path / "saved"), inputs), expected)


def test_the_contact_head_of_esm_reads_the_attention_of_the_kept_layers(tmp_path):
    network = esm()
    small = pruned(network, [0, 4], inputs_of(network))
    head, dense = small.esm.contact_head, network.esm.contact_head
    columns = dense.regression.weight.view(1, DEPTH, 4)[:, [1, 2, 3, 5]].flatten(1)
    assert (head.in_features, head.regression.in_features) == (16, 16)
    assert torch.equal(head.regression.weight, columns)
    small.set_attn_implementation("eager")
    ids = inputs_of(network)["input_ids"]
    assert small.predict_contacts(ids, torch.ones_like(ids)).isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: build(hf.T5ForConditionalGeneration, **T5, decoder_start_token_id=0),
        lambda: build(hf.BartForConditionalGeneration, **BART),
        lambda: build(hf.BartModel, **BART),
    ],
)
def test_an_encoder_with_a_decoder_is_refused_as_what_it_is(make):
    inputs = {"input_ids": tokens(), "decoder_input_ids": tokens(), "use_cache": False}
    with pytest.raises(LayerError, match="can't lose layers: it is an encoder with a decoder"):
        sglp.find_layers(make(), inputs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: build(hf.BartModel, **BART).get_encoder(),
        # It has a copy of its config in the stack.
        lambda: build(hf.UMT5EncoderModel, **T5 | {"num_layers": DEPTH}, decoder_start_token_id=0),
    ],
)
def test_an_encoder_alone_loses_layers(make):
    network = make()
    inputs = {"input_ids": tokens()}
    small = pruned(network, [0, 3], inputs)
    assert small.config.num_hidden_layers == DEPTH - 2
    is_skipped(network, [0, 3], inputs, outputs(small, inputs))


def test_a_decoder_alone_is_counted_as_such(tmp_path):
    network = build(hf.BartForCausalLM, **BART | {"encoder_layers": 2})
    small = pruned(network, [0, 3], inputs_of(network))
    assert (small.config.encoder_layers, small.config.decoder_layers) == (2, DEPTH - 2)
    sglp.save(small, tmp_path / "saved")
    loaded = hf.BartForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(outputs(loaded, inputs_of(network)), outputs(small, inputs_of(network)))
