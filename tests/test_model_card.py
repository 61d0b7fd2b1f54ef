"""The model card of a saved network, and the complete one from the report."""

import pytest
import torch
from huggingface_hub import ModelCard
from ruamel.yaml import YAML
from torch import nn

import sglp
from sglp.checkpoints.model_card import Figures, card_of, model_card
from sglp.record import Architecture

PRUNED = """---
library_name: transformers
base_model: some-one/Llama-0.1
tags:
- sglp
- layer-pruning
---

# Llama-0.1 without 2 of 3 layers

This is [some-one/Llama-0.1](https://huggingface.co/some-one/Llama-0.1) with whole layers removed: an ordinary, \
shallower LlamaForCausalLM.

- Removed layers: `model.layers.2`, `model.layers.0`
- Kept layers: `model.layers.1`
- Parameters: 1,234,567

## Use

```python
from transformers import LlamaForCausalLM

network = LlamaForCausalLM.from_pretrained("this folder")
```

Layer names refer to the dense network. Made with SGLP ([paper](https://arxiv.org/abs/2410.14720)).
"""
LLAMA = Architecture(
    "transformers:LlamaForCausalLM",
    {},
    ("model.layers.1",),
    ("model.layers.2", "model.layers.0"),
    base_model="some-one/Llama-0.1",
)
RESNET = Architecture("sglp.networks.cifar_resnet:resnet", {"depth": 8}, ("conv1+bn1", "layer1.0"), ("layer2.0",))
FIGURES = Figures(
    task="image-classification",
    dataset="some-one/digits: small",
    measured="450 test samples",
    metrics={"accuracy": 0.9866666666666667, "macs": 123456, "loss": 5e-05},
    rows=[["accuracy (top-1)", "98.00 %", "98.67 %", "+0.67 points"], ["MACs per sample", "2 M", "1 M", "-50 %"]],
)
COMMAND = "dvc exp run -S model=resnet20-digits -S k=3"


def header(card: str) -> dict:
    """The YAML between the first two lines of three dashes, read by another library."""
    first, second, _ = card.split("---\n", 2)
    assert first == ""
    return YAML(typ="safe", pure=True).load(second)


def python_of(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


def test_the_card_of_a_pruned_network_lists_the_removed_layers():
    assert model_card(LLAMA, 1_234_567) == PRUNED


def test_the_card_of_a_dense_network_removes_nothing_and_invents_no_base():
    card = model_card(Architecture("transformers:BertModel"), 10)
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- sglp\n---\n\n# BertModel\n\n")
    assert not any(word in card for word in ("base_model", "removed", "Removed", "Kept", "pruning", "shallower"))
    assert "- Parameters: 10\n" in card


def test_results_and_the_command_are_in_the_card_if_they_are_known():
    card = model_card(LLAMA, 7, FIGURES, COMMAND)
    assert header(card).keys() - header(PRUNED).keys() == {"model-index"}
    assert "\nMeasured on 450 test samples of `some-one/digits: small`.\n" in card
    assert (
        "\n| | dense | this network | change |\n|---|---:|---:|---:|\n| accuracy (top-1) | 98.00 % | 98.67 % |" in card
    )
    hint = "Run this in the project that made the network, with all other parameters unchanged:"
    assert f"\n## Reproduce\n\n{hint}\n\n```\n{COMMAND}\n```\n" in card
    assert card.index("- Parameters: 7") < card.index("## Results") < card.index("## Reproduce") < card.index("## Use")
    assert model_card(LLAMA, 7, FIGURES, COMMAND) == card


def test_the_hubs_own_library_reads_the_results():
    card = ModelCard(model_card(RESNET, 7, FIGURES, COMMAND))
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == dict(FIGURES.metrics)
    assert {result.task_type for result in card.data.eval_results} == {"image-classification"}
    assert {result.dataset_name for result in card.data.eval_results} == {"some-one/digits: small"}
    assert card.data.model_name == "resnet without 1 of 3 layers"


def test_networks_of_other_libraries_are_loaded_by_ours():
    card = model_card(RESNET, 7)
    assert header(card) == {"library_name": "sglp", "tags": ["sglp", "layer-pruning"]}
    assert "transformers" not in card
    assert python_of(card) == 'import sglp\n\nnetwork = sglp.load("this folder")\n'
    users = model_card(Architecture("my_nets:build"), 7)
    assert python_of(users) == 'import sglp\n\nnetwork = sglp.load("this folder", trust=["my_nets:build"])\n'


def test_the_card_says_why_plain_transformers_can_not_load_a_folder():
    card = model_card(LLAMA, 7, not_plain="one block is another")
    assert header(card)["library_name"] == "sglp"
    assert python_of(card) == 'import sglp\n\nnetwork = sglp.load("this folder")\n'
    assert "\nPlain `from_pretrained` can't load this folder: one block is another.\n" in card


class Users(nn.Module):
    """A network that a user wrote."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize("factory", ["sglp.networks.cifar_resnet:resnet", f"{__name__}:Users"])
def test_the_code_in_the_card_loads_the_network(factory, tmp_path, monkeypatch):
    network = sglp.build(factory, {"depth": 8} if "resnet" in factory else {}, seed=0).eval()
    sglp.save(network, tmp_path / "this folder")
    card = (tmp_path / "this folder/README.md").read_text()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert f"- Parameters: {count:,}\n" in card
    assert card_of(tmp_path / "this folder", count) == card
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(python_of(card), names)  # our own text
    for name, tensor in names["network"].state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])
