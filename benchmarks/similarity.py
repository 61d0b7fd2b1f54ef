"""Similarity of all pairs of layers: `gram_matrices` and `cka_matrix` against a forward pass, the definition and peers.

Both peers hook modules of a network and compare the layers pair by pair. They get inputs for which their results are
correct. ckatorch 1.0.3 expects activations [batches, samples, features], so activations are flattened for it; it keeps
only the last batch of an epoch, so there is only one batch. torch-cka 0.21 has the correct formula if its two loaders
do not shuffle, but it multiplies uncentred activations in float32: its results are compared on a network in float64,
and the page gives its error in float32.
"""

import copy
import io
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sglp
from benchmarks.side_by_side import Row, in_turn

TITLE = "Similarity"
FORWARD_GOAL = 1 / 1.5  # at most 1.5 times as long as the bare forward pass
FLOAT64 = "the rest is products in float64; in float32, similarities would be off by 2e-8 with 64 samples"


class _Flatten(nn.Module):
    """Flatten each sample, for ckatorch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[None]


class _Hookable(nn.Module):
    """An identity that the peers can hook."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = _Flatten()

    def forward(self, x: Tensor) -> Tensor:
        self.flat(x)
        return x


class Images:
    """A random ResNet-56 with fitted batch-norm statistics, and a batch of random images."""

    def __init__(self, small: bool):
        samples, side, kwargs = (8, 8, {"depth": 8}) if small else (128, 32, {"depth": 56})
        self.batch = torch.randn(samples, 3, side, side, generator=torch.Generator().manual_seed(0))
        self.network = sglp.build("sglp.networks.cifar_resnet:resnet", kwargs, seed=0)
        sglp.recalibrate(self.network, [self.batch])
        self.layers = sglp.find_layers(self.network.eval(), self.batch[:1])
        self.hookable = copy.deepcopy(self.network)
        for name in ("layer1", "layer2", "layer3"):
            blocks = [nn.Sequential(block, _Hookable()) for block in self.hookable.get_submodule(name).children()]
            # The stem is not a module: its output is the input of layer1.
            first = [_Hookable()] if name == "layer1" else []
            setattr(self.hookable, name, nn.Sequential(*first, *blocks))
        self.names = [name for name, module in self.hookable.named_modules() if isinstance(module, _Hookable)]

    def bare(self) -> None:
        """Run the forward pass."""
        with torch.no_grad():
            self.network(self.batch)

    def ours(self) -> Tensor:
        """Compute the similarities [layers, layers]."""
        return sglp.cka_matrix(sglp.gram_matrices(self.network, self.layers, [self.batch]))

    def definition(self) -> Tensor:
        """Compute the similarities by the definition."""
        return _definition([output.flatten(1) for output in _outputs(self.hookable, self.names, {"x": self.batch})])

    def ckatorch(self) -> Callable[[], Tensor]:
        """Return a function that computes the similarities with ckatorch."""
        with _quiet():
            from ckatorch import CKA

            peer = CKA(self.hookable, self.hookable, [f"{name}.flat" for name in self.names])

        def similarity() -> Tensor:
            with _quiet():
                return peer(self._loader(), epochs=1)

        return similarity

    def torch_cka(self) -> Callable[[], Tensor]:
        """Return a function that computes the similarities with torch-cka."""
        with _quiet():
            from torch_cka import CKA

            peer = CKA(self.hookable, self.hookable, model1_layers=self.names, model2_layers=self.names)

        def similarity() -> Tensor:
            with _quiet():
                peer.compare(self._loader(), self._loader())
            return peer.export()["CKA"]

        return similarity

    def _loader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.batch), len(self.batch))


class Texts:
    """A random Llama of the size of SmolLM2-135M, and a batch of random sequences."""

    def __init__(self, small: bool):
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes: dict[str, Any] = {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "vocab_size": 49152,
        }
        if small:
            sizes = {"hidden_size": 36, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 64}
        config = LlamaConfig(**sizes, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = LlamaForCausalLM(config).eval()
            self.batch = {"input_ids": torch.randint(config.vocab_size, (8, 16 if small else 256))}
        self.layers = sglp.find_layers(self.network, {"input_ids": self.batch["input_ids"][:1]})

    def bare(self) -> None:
        """Run the forward pass."""
        with torch.no_grad():
            self.network(**self.batch)

    def ours(self) -> Tensor:
        """Compute the similarities [layers, layers] of the means over tokens."""
        return sglp.cka_matrix(sglp.gram_matrices(self.network, self.layers, [self.batch], "mean"))

    def definition(self) -> Tensor:
        """Compute the similarities by the definition."""
        names = [layer.modules[-1] for layer in self.layers]
        return _definition([output.double().mean(dim=1) for output in _outputs(self.network, names, self.batch)])


def measure(small: bool) -> list[Row]:
    """Compare the results of all versions, then time them.

    Raises:
        AssertionError: two versions give different similarities.
    """
    images = Images(small)
    texts = Texts(small)
    ckatorch = images.ckatorch()
    torch_cka = images.torch_cka()
    similarities = images.ours()
    _same("the definition, on a ResNet", similarities, images.definition(), 1e-9)
    _same("the definition, on a Llama", texts.ours(), texts.definition(), 1e-9)
    _same("ckatorch", similarities, ckatorch(), 1e-6)  # its result is float32
    _same_in_float64()
    resnet = f"CKA, {len(images.layers)} layers of a ResNet, {len(images.batch)} images"
    llama = "CKA, {} layers of a Llama, {} x {} tokens".format(len(texts.layers), *texts.batch["input_ids"].shape)
    many, few = (1, 1) if small else (9, 3)
    peak = {version: _peak(version, small) for version in ("bare", "ours", "ckatorch", "torch_cka")}
    memory = f"peak memory {peak['ours']} MiB"
    error = _difference(similarities, torch_cka())
    forward = in_turn(images.ours, images.bare, many)
    slow = in_turn(images.ours, torch_cka, few)
    cause = (
        f"torch-cka takes {slow.other / forward.other:.0f} times as long as the bare forward pass, which ours needs too"
    )
    torch_cka_note = f"{memory}, {peak['torch_cka']} MiB for torch-cka, whose error is {error:.0e}; {cause}"
    return [
        Row(
            resnet,
            "the bare forward pass",
            forward,
            FORWARD_GOAL,
            f"{memory}, {peak['bare']} MiB for the bare pass; {FLOAT64}",
        ),
        Row(llama, "the bare forward pass", in_turn(texts.ours, texts.bare, few), FORWARD_GOAL),
        Row(resnet, "the definition in float64", in_turn(images.ours, images.definition, many)),
        Row(
            resnet, "ckatorch", in_turn(images.ours, ckatorch, few), 5, f"{memory}, {peak['ckatorch']} MiB for ckatorch"
        ),
        Row(resnet, "torch-cka", slow, 20, torch_cka_note),
    ]


def _same_in_float64() -> None:
    """Compare with torch-cka in float64, which it uses for its sums if this is torch's default."""
    images = Images(small=True)
    default_dtype = torch.get_default_dtype()
    images.batch = images.batch.double()
    for network in (images.network, images.hookable):
        network.double()
    try:
        torch.set_default_dtype(torch.float64)
        theirs = images.torch_cka()()
    finally:
        torch.set_default_dtype(default_dtype)
    _same("torch-cka", images.ours(), theirs, 1e-9)


def _definition(activations: list[Tensor]) -> Tensor:
    """Compute the unbiased HSIC of every pair (Song et al. 2012) term by term in float64, then CKA as their ratio.

    Activations are centred. This does not change HSIC, but avoids cancellation where samples share an offset, which
    also occurs in float64.
    """
    centred = [x.double() - x.double().mean(dim=0) for x in activations]
    kernels = [x @ x.T for x in centred]
    n = len(kernels[0])
    for K in kernels:
        K.fill_diagonal_(0)
    hsic = torch.empty(len(kernels), len(kernels), dtype=torch.float64)
    for i, K in enumerate(kernels):
        for j, L in enumerate(kernels):
            product = K @ L
            sums = K.sum() * L.sum() / ((n - 1) * (n - 2))
            hsic[i, j] = (product.trace() + sums - 2 / (n - 2) * product.sum()) / (n * (n - 3))
    return hsic / hsic.diag().outer(hsic.diag()).sqrt()


def _outputs(network: nn.Module, names: list[str], batch: dict[str, Tensor]) -> list[Tensor]:
    """Return the outputs of modules in one forward pass."""
    outputs: list[Tensor] = []
    handles = [
        network.get_submodule(name).register_forward_hook(lambda module, args, output: outputs.append(output))
        for name in names
    ]
    with torch.no_grad():
        network(**batch)
    for handle in handles:
        handle.remove()
    return outputs


def _same(other: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    difference = _difference(ours, theirs)
    if not difference <= tolerance:
        raise AssertionError(
            f"the similarities differ by {difference:.1e} from those of {other}: at most {tolerance:.0e}"
        )


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the peers' progress bars and warnings inside a context; they warn if a model is compared with itself."""
    with redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _peak(version: str, small: bool) -> int:
    """Measure the peak resident memory in MiB of a new process that runs one version once."""
    command = [sys.executable, "-m", "benchmarks.similarity", version, *(["small"] if small else [])]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main(version: str, size: str = "") -> None:
    """Run one version, and print the peak memory of this process in MiB."""
    images = Images(size == "small")
    work = getattr(images, version)
    (work() if version in ("ckatorch", "torch_cka") else work)()
    # The peak in getrusage starts at the peak of the parent process.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
