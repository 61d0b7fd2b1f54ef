"""The ONNX format, written by torch's exporter from a traced network and run by onnxruntime."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from sglp.errors import CheckpointError, first_line
from sglp.exporting.example_shapes import tensors_of

TOLERANCE = 1e-4
MOST_BYTES = 2**31 - 2**24  # protobuf files are limited to 2 GiB, and the operations take part of it


def check(network: nn.Module) -> None:
    """Check that an ONNX file can hold the network.

    Raises:
        CheckpointError: the network is too large, or not float32.
    """
    tensors = [t for t in network.state_dict().values() if t.is_floating_point()]
    other = sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.dtype != torch.float32})
    if other:
        raise CheckpointError(
            "only float32 networks can be exported to ONNX, because onnxruntime supports little else on a CPU, but "
            f"this {type(network).__name__} is {' and '.join(other)}: convert it to float32 first, with float()"
        )
    size = sum(t.nbytes for t in tensors)
    if size > MOST_BYTES:
        raise CheckpointError(
            f"an ONNX file holds less than 2 GiB, but the weights of this {type(network).__name__} take "
            f"{size / 2**30:.1f} GiB: export it to torch-export"
        )


def write(program: ExportedProgram, path: Path, outputs: Sequence[str]) -> None:
    """Write a traced network and its weights to one file, with these names of its outputs.

    Raises:
        CheckpointError: the network has an operation that ONNX lacks.
    """
    args, kwargs = program.example_inputs
    names = list(tensors_of(kwargs or (args[0] if len(args) == 1 else args)))
    try:
        # Use unfused attention while the exporter traces again: the fused kernel has strides that its steps don't have.
        with sdpa_kernel(SDPBackend.MATH):
            translated = torch.onnx.export(
                program, dynamo=True, input_names=names, output_names=list(outputs), verbose=False
            )
    except Exception as error:  # report any error of the exporter in one sentence
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise CheckpointError(f"torch.onnx can't translate this network: {first_line(cause)}") from error
    assert translated is not None, "torch.onnx.export returns a program with dynamo=True"
    translated.save(path, external_data=False)


def read(path: Path) -> Callable[[Any], list[Tensor]]:
    """Load a file into onnxruntime on the CPU, and return the function from inputs to outputs that it computes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    used = {entry.name for entry in session.get_inputs()}  # without those that the network ignores

    def run(inputs: Any) -> list[Tensor]:
        arrays = {name: tensor.numpy() for name, tensor in tensors_of(inputs).items() if name in used}
        return [torch.as_tensor(array) for array in session.run(None, arrays)]

    return run
