"""A Hugging Face model whose weights are in memory only while they are needed.

Hooks load the weights of a layer, and of each module outside the layers, when it runs, and drop them when all passes in
lockstep have left it.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from sglp.checkpoints.free_memory import return_memory
from sglp.checkpoints.open_folder import OpenFolder
from sglp.errors import CheckpointError
from sglp.hugging_face.loading import compute_buffers, load_part
from sglp.hugging_face.skeleton import by_file_name, saved_state
from sglp.reconstruction.passes import current_pass
from sglp.reconstruction.reconstruct import InMemory

ALIGNMENT = 64  # bytes, as torch allocates: kernels of the CPU sum in an order that depends on where tensors lie


class LazyWeights(InMemory):
    """The weights of a model on the meta device.

    Args:
        opened: the model and its files. The buffers that no file holds are computed.

    Attributes:
        network: the model.
        stored: the contents of its files, by name.
        files: the names in files of all tensors of the model, in the order in which they are saved.
        loaded: the names of the tensors that are in memory, as in the model.

    Raises:
        CheckpointError: the files do not hold a tensor of the model under the name that `save` gives it.
    """

    def __init__(self, opened: OpenFolder):
        self.network = network = opened.network
        self.stored = dict(opened.stored)
        self.files = list(by_file_name(network, saved_state(network)))
        missing = [name for name in self.files if name not in self.stored]
        if missing:
            raise CheckpointError(
                f"{opened.folder} does not hold the tensors that sglp.save writes for a {type(network).__name__} "
                f"({missing[0]} is missing): use sglp.load, sglp.reconstruct and sglp.save"
            )
        compute_buffers(network)
        self.loaded: set[str] = set()
        self._held: set[str] = set()
        self._empty: dict[str, Tensor] = network.state_dict(keep_vars=True)
        self._owners = {name: network.get_submodule(name.rpartition(".")[0]) for name in self._empty}
        # Tied tensors are in the files under one of their names.
        saved = {id(self._empty[name]): name for name in saved_state(network)}
        self._saved_names = {name: saved[id(tensor)] for name, tensor in self._empty.items()}

    @contextmanager
    def attached(self, layers: Collection[nn.Module]) -> Iterator[None]:
        """Load and drop weights by hooks inside a context; `layers` are modules that are loaded as a whole.

        Tensors of the modules around layers are loaded all the time.
        """
        units = dict.fromkeys(_units(self.network, set(layers)))
        inside = {name for unit in units for name in self.names_in([unit])}
        handles = []
        try:
            self._load(name for name in self._empty if name not in inside)
            for unit in units:
                handles += self._hook(unit)
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._held.clear()
            self._drop(self._empty)

    def hold(self, modules: Sequence[nn.Module]) -> None:
        """Load the weights of modules, and keep them until `store`."""
        names = self.names_in(modules)
        self._load(names)
        self._held.update(names)
        return_memory()

    def store(self, modules: Sequence[nn.Module]) -> None:
        """Keep the weights of modules only as long as passes need them."""
        self._held.difference_update(self.names_in(modules))

    def names_in(self, modules: Iterable[nn.Module]) -> list[str]:
        """Return the names of the tensors in modules."""
        inside = {inner for module in modules for inner in module.modules()}
        return [name for name, owner in self._owners.items() if owner in inside]

    def contents(self, modules: Iterable[nn.Module]) -> dict[str, Tensor]:
        """Return the loaded tensors of modules as they are in files, by their names there."""
        names = [name for name in self.names_in(modules) if self._saved_names[name] == name]
        return by_file_name(self.network, {name: self._get(name).detach() for name in names})

    def _hook(self, unit: nn.Module) -> list:
        names = self.names_in([unit])
        left = 0

        def before(*_) -> None:
            self._load(names)

        def after(*_) -> None:
            nonlocal left
            running = current_pass()
            left += 1
            if running is None or left == running.count:
                left = 0
                self._drop(names)

        return [unit.register_forward_pre_hook(before), unit.register_forward_hook(after)]

    def _load(self, names: Iterable[str]) -> None:
        wanted = [name for name in names if name not in self.loaded]
        sources = dict.fromkeys(self._saved_names[name] for name in wanted)
        if not sources:
            return
        files = by_file_name(self.network, {name: self._empty[name] for name in sources})
        load_part(self.network, {name: self.stored[name].unread() for name in files})
        values = {name: self._get(name) for name in sources}
        for name, value in values.items():
            if value.data_ptr() % ALIGNMENT:
                value.data = value.data.clone()
            if name not in self.loaded:
                self._set(name, self._empty[name])
        for name in wanted:
            self._set(name, values[self._saved_names[name]])
        self.loaded.update(wanted)

    def _drop(self, names: Iterable[str]) -> None:
        dropped = [name for name in names if name in self.loaded and name not in self._held]
        for name in dropped:
            self._set(name, self._empty[name])
        self.loaded.difference_update(dropped)
        if dropped:
            return_memory()

    def _get(self, name: str) -> Tensor:
        return getattr(self._owners[name], name.rpartition(".")[2])

    def _set(self, name: str, value: Tensor) -> None:
        setattr(self._owners[name], name.rpartition(".")[2], value)


def _units(module: nn.Module, layers: set[nn.Module]) -> Iterator[nn.Module]:
    """Yield the layers, and the largest modules without layers that can be called."""
    can_be_called = type(module).forward is not nn.Module.forward
    if module in layers or (can_be_called and layers.isdisjoint(module.modules())):
        yield module
    else:
        for child in module.children():
            yield from _units(child, layers)
