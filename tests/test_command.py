"""The command line: tables of layers, exports, and errors in one sentence."""

import re
import subprocess
import sys

import pytest
import torch
from language import tiny_llama
from pipeline import ROOT

import sglp
from sglp.commands.app import main
from sglp.cost import count_macs, count_parameters
from sglp.discovery.inspection import inspect, layer_table

RESNET = "sglp.networks.cifar_resnet:resnet"
USERS = """
from torch import nn
def build(width=4): return nn.Sequential(*(nn.Linear(width, width) for _ in range(3)), nn.Linear(width, 2))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.count("\n") == 1
    return printed.err.strip()


def test_rows_agree_with_find_layers_and_the_modules(network, digits):
    x = digits[0][:2]
    rows = inspect(network, x)
    layers = sglp.find_layers(network, x)
    assert [(r.name, r.parameters, r.macs, r.removable, r.reason) for r in rows] == [
        (layer.name, layer.parameters, layer.macs, layer.removable, layer.reason) for layer in layers
    ]
    assert [row.number for row in rows] == list(range(10))
    assert [row.kind for row in rows] == ["Conv2d+BatchNorm2d", *["BasicBlock"] * 9]
    assert [row.output_shape for row in rows] == [*[(16, 8, 8)] * 4, *[(32, 4, 4)] * 3, *[(64, 2, 2)] * 3]
    outputs = network.layer2[:1](network.layer1(torch.relu(network.bn1(network.conv1(x)))))
    assert tuple(outputs.shape[1:]) == rows[4].output_shape
    assert not any(module._forward_hooks for module in network.modules())


def test_the_table_is_aligned_and_ends_with_the_whole_network(network, digits):
    lines = layer_table(network, digits[0][:2]).splitlines()
    assert len(lines) == 1 + 10 + 2
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "MACs", "removable"]
    column = lines[0].index("removable")
    assert [line[column:] for line in lines[1:4]] == ["no: stem", "yes", "yes"]
    assert lines[5][column:] == "no: changes the shape from 16x8x8 to 32x4x4"
    assert [line[: lines[0].index("MACs") + 4].split()[-1] for line in lines[1:4]] == ["9,216", "294,912", "294,912"]
    assert lines[-1] == (
        f"10 layers, 7 removable; including its head, the CifarResNet has {count_parameters(network):,} parameters and "
        f"{count_macs(network, digits[0][:1]):,} MACs per sample"
    )


def test_a_workload_with_embedded_data_needs_no_input(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    main(["inspect", "resnet20-digits"])
    out = capsys.readouterr().out
    expected = sglp.build(RESNET, {"depth": 20, "in_channels": 1}, seed=0)
    assert out == layer_table(expected, torch.zeros(1, 1, 8, 8)) + "\n"


def test_a_workloads_language_model_reads_samples_of_the_workloads_length(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    main(["inspect", "llama-tiny"])
    assert "LlamaDecoderLayer  64x32 " in capsys.readouterr().out


def test_a_users_factory_is_found_in_the_current_folder(folder, capsys):
    (folder / "users_nets_of_command.py").write_text(USERS)
    main(["inspect", "users_nets_of_command:build", "--kwargs", '{"width": 5}', "--input", "5"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("4 layers")
    assert lines[1].split()[1:4] == ["0", "Linear", "5"]


def test_a_saved_folder_shows_the_kept_layers(network, digits, capsys):
    names = [layer.name for layer in sglp.find_layers(network, digits[0][:2])]
    pruned = sglp.prune(network, sglp.Plan([n for n in names if n != "layer1.1"], ["layer1.1"]))
    sglp.save(pruned, "saved")
    main(["inspect", "saved", "--input", "1x8x8"])
    assert capsys.readouterr().out == layer_table(pruned, digits[0][:1]) + "\n"


def test_a_saved_language_model_needs_no_input_but_accepts_a_length(capsys):
    sglp.save(tiny_llama(2), "saved")
    main(["inspect", "saved"])
    assert "64x16" in capsys.readouterr().out
    main(["inspect", "saved", "--input", "9"])
    assert "9x16" in capsys.readouterr().out


def test_export_writes_beside_the_folder_or_to_a_given_file(folder, capsys):
    (folder / "users_nets_of_command.py").write_text(USERS)
    sys.path.append(str(folder))
    name = "users_nets_of_command:build"
    network = sglp.build(name).eval()
    sglp.save(network, "saved")
    options = ["--to", "torch-export", "--input", "4"]
    assert "not from a known library" in refused(capsys, "export", "saved", *options)
    main(["export", "saved", *options, "--trust", name])
    assert "saved.pt2 (0.0 MB)" in capsys.readouterr().out
    main(["export", "saved", "other.pt2", *options, "--trust", "all"])
    x = torch.randn(3, 4)
    for file in ("saved.pt2", "other.pt2"):
        assert torch.equal(torch.export.load(file).module()(x), network(x))


REFUSED = {
    (
        "inspect",
        "nothing",
    ): "sglp inspect: nothing is not a factory .*, a folder or a workload: models/nothing.yaml does not exist",
    ("inspect", "my:net"): "my:net: the module my can't be imported",
    ("inspect", RESNET): "sglp.networks.cifar_resnet:resnet can't build a network from {}",
    ("inspect", RESNET, "--kwargs", '{"depth": 21}'): "depth=21 is not the depth of a CIFAR ResNet",
    ("inspect", RESNET, "--kwargs", '{"depth": 20}'): "not known which inputs this CifarResNet takes",
    ("inspect", RESNET, "--kwargs", '{"depth": 20}', "--input", "1x8x8"): r"can't be run on inputs .* \[1, 1, 8, 8\]",
    (
        "inspect",
        "nothing",
        "--kwargs",
        "{}",
    ): r"--kwargs needs a factory \(package.module:function\), and nothing is not one",
    ("inspect", "."): "is not a saved network: it has no architecture.json",
    ("inspect", "broken"): "models/broken.yaml is not a valid workload: set model: broken in params.yaml and run",
    ("export", ".", "--to", "tflite"): "sglp export: a network can't be exported to 'tflite'",
    ("export", ".", "--to", "gguf"): "is not the folder of a language model",
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.items(), ids=map(" ".join, REFUSED))
def test_errors_are_one_sentence(folder, capsys, arguments, message):
    (folder / "models").mkdir()
    (folder / "models/broken.yaml").write_text("task: image_classification")
    error = refused(capsys, *arguments)
    assert error.startswith(f"sglp {arguments[0]}: ")
    assert re.search(message, error), error


def test_a_workload_with_data_elsewhere_asks_for_an_input_shape(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert "pass the shape of one sample, such as --input 3x224x224" in refused(capsys, "inspect", "resnet20-cifar10")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "3x0"], "'3x0' is not a shape: write sizes joined by x, such as 3x224x224"),
        (["--kwargs", "{"], "'{' is not valid JSON"),
        (["--kwargs", "[1]"], "is not a JSON object: write names and values"),
    ],
)
def test_arguments_that_cannot_be_parsed_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", "x:y", *arguments])
    assert message in capsys.readouterr().err


def test_the_module_runs_the_command_and_reports_errors_in_one_line():
    command = [sys.executable, "-W", "error", "-m", "sglp"]
    done = subprocess.run([*command, "export", "nowhere", "--to", "onnx"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "sglp export: nowhere is not a saved network: it has no architecture.json\n"
    assert "inspect" in subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
