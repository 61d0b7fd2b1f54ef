"""ONNX, by torch's exporter that translates a traced network; run by onnxruntime."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from sglp.errors import CheckpointError, first_line
from sglp.exporting.example_input import tensors_of

TOLERANCE = 1e-4
MOST_BYTES = 2**31 - 2**24  # a file of protobuf ends at 2 GiB, and the operations need some of it


def check(network: nn.Module) -> None:
    """Check that a file can hold the network.

    Raises:
        CheckpointError: it is too large or not float32.
    """
    tensors = [t for t in network.state_dict().values() if t.is_floating_point()]
    other = sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.dtype != torch.float32})
    if other:
        raise CheckpointError(
            f"ONNX is written of float32 networks, for onnxruntime computes little else on a CPU, but this "
            f"{type(network).__name__} is {' and '.join(other)}: make it float32 first, with float()"
        )
    size = sum(t.nbytes for t in tensors)
    if size > MOST_BYTES:
        raise CheckpointError(
            f"one file of ONNX holds less than 2 GiB, but the weights of this {type(network).__name__} are "
            f"{size / 2**30:.1f} GiB: export it to torch-export"
        )


def write(program: ExportedProgram, path: Path) -> None:
    """Write a traced network, its weights in the same file.

    Raises:
        CheckpointError: it has an operation that ONNX lacks.
    """
    names = list(program.example_inputs[1]) or ["input"]
    try:
        # Attention in steps while it is traced anew: of the fused kernel, strides are known that its steps don't have.
        with sdpa_kernel(SDPBackend.MATH):
            translated = torch.onnx.export(
                program, dynamo=True, input_names=names, output_names=["logits"], verbose=False
            )
    except Exception as error:  # whatever the exporter raises, the user needs one sentence
        raise CheckpointError(
            f"torch.onnx can't translate this network: {first_line(error.__cause__ or error)}"
        ) from error
    translated.save(path, external_data=False)


def read(path: Path) -> Callable:
    """What onnxruntime computes of a file on the CPU, as a function from inputs to logits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {n: t.numpy() for n, t in tensors_of(inputs).items()})[0])

    return run
