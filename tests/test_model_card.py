"""The README.md that a saved network of transformers has."""

from sglp.architecture import Architecture
from sglp.model_card import model_card

PRUNED = """---
library_name: transformers
base_model: some-one/Llama-0.1
tags:
- sglp
- layer-pruning
---

# Llama-0.1 without 2 of 3 layers

Whole layers were taken out of [some-one/Llama-0.1](https://huggingface.co/some-one/Llama-0.1); what is left is an \
ordinary, shallower LlamaForCausalLM.

- Layers that went: `model.layers.2`, `model.layers.0`
- Layers that stayed: `model.layers.1`
- Parameters: 1,234,567

## Use

```python
from transformers import LlamaForCausalLM

network = LlamaForCausalLM.from_pretrained("this folder")
```

Names of layers are those of the dense network. Made by SGLP ([the method](https://arxiv.org/abs/2410.14720)).
"""


def test_the_card_of_a_pruned_network_says_what_went():
    removed = ("model.layers.2", "model.layers.0")
    architecture = Architecture(
        "transformers:LlamaForCausalLM", {}, ("model.layers.1",), removed, base_model="some-one/Llama-0.1"
    )
    assert model_card(architecture, 1_234_567) == PRUNED


def test_the_card_of_a_dense_network_removes_nothing_and_invents_no_base():
    card = model_card(Architecture("transformers:BertModel"), 10)
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- sglp\n---\n\n# BertModel\n\n")
    assert not any(word in card for word in ("base_model", "went", "stayed", "pruning", "shallower"))
    assert "- Parameters: 10\n" in card
