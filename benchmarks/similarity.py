"""Similarity of all pairs of layers: `gram_matrices` and `cka_matrix` against a forward pass, the definition and peers.

Both peers watch modules of a network and take the layers a pair at a time. They are given what their results are right
for: ckatorch 1.0.3 wants activations [batches, samples, features], so images can't be shown to it as they are, and it
keeps only the last batch of an epoch, so there is one. torch-cka 0.21 has the right formula as long as its two loaders
do not shuffle, but its products are float32, of activations that are not centred: its results are compared on a network
in float64, and how far they are off in float32 is said.
"""

import copy
import io
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sglp
from benchmarks.side_by_side import Row, in_turn

TITLE = "Similarity"
NEAR = 1 / 1.5  # at most 1.5 times as long as the bare forward pass
FLOAT64 = "the rest is products in float64: in float32, similarities are 2e-8 off with 64 samples"


class _Rows(nn.Module):
    """A sample's values in a row, as ckatorch wants them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[None]


class _Shown(nn.Module):
    """Passes on what it is given, for others to watch."""

    def __init__(self):
        super().__init__()
        self.rows = _Rows()

    def forward(self, x: Tensor) -> Tensor:
        self.rows(x)
        return x


class Images:
    """A ResNet-56 and a batch of images; random, but for the statistics of its batch norms."""

    def __init__(self, small: bool):
        samples, side, kwargs = (8, 8, {"depth": 8}) if small else (128, 32, {"depth": 56})
        self.batch = torch.randn(samples, 3, side, side, generator=torch.Generator().manual_seed(0))
        self.network = sglp.build("sglp.networks.cifar_resnet:resnet", kwargs, seed=0)
        sglp.recalibrate(self.network, [self.batch])
        self.layers = sglp.find_layers(self.network.eval(), self.batch[:1])
        self.shown = copy.deepcopy(self.network)
        for name in ("layer1", "layer2", "layer3"):
            blocks = getattr(self.shown, name)
            setattr(self.shown, name, nn.Sequential(*(nn.Sequential(block, _Shown()) for block in blocks)))
        self.shown.layer1.insert(0, _Shown())  # no module's output is that of the stem
        self.names = [name for name, module in self.shown.named_modules() if isinstance(module, _Shown)]

    def bare(self) -> None:
        """The forward pass."""
        with torch.no_grad():
            self.network(self.batch)

    def ours(self) -> Tensor:
        """[layers, layers] similarities."""
        return sglp.cka_matrix(sglp.gram_matrices(self.network, self.layers, [self.batch]))

    def definition(self) -> Tensor:
        """The same by the definition."""
        return _definition([seen.flatten(1) for seen in _outputs(self.shown, self.names, {"x": self.batch})])

    def ckatorch(self) -> Callable[[], Tensor]:
        """The same by ckatorch."""
        with _quiet():
            from ckatorch import CKA

            peer = CKA(self.shown, self.shown, [f"{name}.rows" for name in self.names])

        def similarity() -> Tensor:
            with _quiet():
                return peer(self._loader(), epochs=1)

        return similarity

    def torch_cka(self) -> Callable[[], Tensor]:
        """The same by torch-cka."""
        with _quiet():
            from torch_cka import CKA

            peer = CKA(self.shown, self.shown, model1_layers=self.names, model2_layers=self.names)

        def similarity() -> Tensor:
            with _quiet():
                peer.compare(self._loader(), self._loader())
            return peer.export()["CKA"]

        return similarity

    def _loader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.batch), len(self.batch))


class Texts:
    """A Llama of the sizes of SmolLM2-135M and a batch of sequences; random."""

    def __init__(self, small: bool):
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
        if small:
            sizes = {"hidden_size": 36, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 64}
        config = LlamaConfig(**sizes, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = LlamaForCausalLM(config).eval()
            self.batch = {"input_ids": torch.randint(config.vocab_size, (8, 16 if small else 256))}
        self.layers = sglp.find_layers(self.network, {"input_ids": self.batch["input_ids"][:1]})

    def bare(self) -> None:
        """The forward pass."""
        with torch.no_grad():
            self.network(**self.batch)

    def ours(self) -> Tensor:
        """[layers, layers] similarities of the means over tokens."""
        return sglp.cka_matrix(sglp.gram_matrices(self.network, self.layers, [self.batch], "mean"))

    def definition(self) -> Tensor:
        """The same by the definition."""
        names = [layer.modules[-1] for layer in self.layers]
        return _definition([seen.double().mean(dim=1) for seen in _outputs(self.network, names, self.batch)])


def measure(small: bool) -> list[Row]:
    """Compare the results of all ways, then time them.

    Raises:
        AssertionError: two ways give different similarities.
    """
    images, texts = Images(small), Texts(small)
    ckatorch, torch_cka = images.ckatorch(), images.torch_cka()
    found = images.ours()
    _same("the definition, of a ResNet", found, images.definition(), 1e-9)
    _same("the definition, of a Llama", texts.ours(), texts.definition(), 1e-9)
    _same("ckatorch", found, ckatorch(), 1e-6)  # which gives float32
    _same_in_float64()
    resnet = f"CKA, {len(images.layers)} layers of a ResNet, {len(images.batch)} images"
    llama = "CKA, {} layers of a Llama, {} x {} tokens".format(len(texts.layers), *texts.batch["input_ids"].shape)
    many, few = (1, 1) if small else (9, 3)
    peak = {way: _peak(way, small) for way in ("bare", "ours", "ckatorch", "torch_cka")}
    memory = f"peak memory {peak['ours']} MiB"
    off = _apart(found, torch_cka())
    forward, slow = in_turn(images.ours, images.bare, many), in_turn(images.ours, torch_cka, few)
    cause = f"all of torch-cka takes {slow.other / forward.other:.0f} times the bare forward pass, which ours needs too"
    return [
        Row(resnet, "the bare forward pass", forward, NEAR, f"{memory}, of the bare pass {peak['bare']}; {FLOAT64}"),
        Row(llama, "the bare forward pass", in_turn(texts.ours, texts.bare, few), NEAR),
        Row(resnet, "the definition in float64", in_turn(images.ours, images.definition, many)),
        Row(resnet, "ckatorch", in_turn(images.ours, ckatorch, few), 5, f"{memory}, of ckatorch {peak['ckatorch']}"),
        Row(resnet, "torch-cka", slow, 20, f"{memory}, of torch-cka {peak['torch_cka']}; it is {off:.0e} off; {cause}"),
    ]


def _same_in_float64() -> None:
    """Torch-cka takes the precision of its sums from torch's default."""
    images, before = Images(small=True), torch.get_default_dtype()
    images.batch = images.batch.double()
    for network in (images.network, images.shown):
        network.double()
    try:
        torch.set_default_dtype(torch.float64)
        theirs = images.torch_cka()()
    finally:
        torch.set_default_dtype(before)
    _same("torch-cka", images.ours(), theirs, 1e-9)


def _definition(activations: list[Tensor]) -> Tensor:
    """Unbiased HSIC of every pair (Song et al. 2012) term by term in float64, then the ratio.

    Activations are centred, which changes no HSIC, because in float64 too terms cancel where samples share an offset.
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
    """What the modules give."""
    seen: list[Tensor] = []
    handles = [
        network.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(output))
        for name in names
    ]
    with torch.no_grad():
        network(**batch)
    for handle in handles:
        handle.remove()
    return seen


def _same(other: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    apart = _apart(ours, theirs)
    if not apart <= tolerance:
        raise AssertionError(f"the similarities are {apart:.1e} from those of {other}: more than {tolerance:.0e}")


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the peers' progress bars and warnings (of one model that is compared with itself, in order)."""
    with redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _peak(way: str, small: bool) -> int:
    """Peak resident memory in MiB of a fresh process that goes one way once."""
    command = [sys.executable, "-m", "benchmarks.similarity", way, *(["small"] if small else [])]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main(way: str, size: str = "") -> None:
    """Go one way; print the peak memory of this process in MiB."""
    images = Images(size == "small")
    work = getattr(images, way)
    (work() if way in ("ckatorch", "torch_cka") else work)()
    # The peak that getrusage knows begins at that of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
