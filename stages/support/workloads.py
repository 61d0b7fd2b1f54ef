"""What a workload names, brought to life: the user's code, its networks, its data."""

import importlib.util
import sys
from pathlib import Path

import torch

import sglp
from sglp.architecture import resolve
from sglp.tasks.data import find_data
from sglp.tasks.schemas.workload import Source
from stages.support.params import DeclaredParams, ParameterError
from stages.support.userfiles import project, verified_path

OURS = ("sglp", "stages")


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_code(params: DeclaredParams, workload: DeclaredParams, *names: str) -> None:
    """Import the user's Python file or package, its checksum verified, and modules by name; no code beside it.

    What a function imports only when it is called is not seen.

    Args:
        params, workload: what the stage declares.
        names: dotted names that the stage is going to use, "package.module:attribute".

    Raises:
        ParameterError: this imported code in the project's folder that has no checksum.
        ArchitectureError: there is no such module or attribute.
    """
    before = set(sys.modules)
    path = verified_path(params.model, "code", workload.files.code.sha256)
    if path is not None:
        _import(Path(path))
    for name in names:
        if ":" in name and name.partition(".")[0] not in OURS:  # ours are imported where they are used
            resolve(name)
    root, *checked = (Path(folder) for folder in (project(), sys.prefix, path) if folder)
    for name in [name for name in sys.modules if name not in before and name.partition(".")[0] not in OURS]:
        file = Path(getattr(sys.modules[name], "__file__", None) or "built-in")
        if file.is_relative_to(root) and not any(file.is_relative_to(known) for known in checked):
            raise ParameterError(
                f"{name} ({file.name}) is code in the project's folder without a checksum: give it, with all that goes "
                f"with it in one package, as files.code.path in models/{params.model}.yaml and run 'python -m "
                f"tools.checksums models/{params.model}.yaml'"
            )


def _import(path: Path) -> None:
    """Import one file or package under its own name."""
    file = path / "__init__.py" if path.is_dir() else path
    inside = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(path.stem, file, submodule_search_locations=inside)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is the user's code: whatever it raises, they need to know where
        del sys.modules[path.stem]
        raise ParameterError(f"{path} can't be imported: {type(error).__name__}: {error}") from error


def load_network(
    folder: str, params: DeclaredParams, workload: DeclaredParams, stored: bool = False, **loading
) -> torch.nn.Module:
    """A network that an earlier stage saved; only what the workload itself names is trusted to build it.

    It comes on the device, in the precision that its task computes in.

    Args:
        folder: where it was saved.
        params, workload: what the stage declares.
        stored: as it is stored, on the CPU.
        loading: further arguments of `sglp.load`.
    """
    architecture = workload.architecture
    use_code(params, workload, architecture["factory"])
    trust = architecture["kwargs"].get("trust_remote_code", False) or [architecture["factory"]]
    dtype = None if stored else find_data(workload.task).dtype(device())
    network = sglp.load(folder, trust=trust, dtype=dtype, **loading)
    placed = stored or getattr(network, "hf_device_map", None)
    return network if placed else network.to(device())


def spread(folder: str) -> dict:
    """How to load a network of transformers that is larger than the GPU: over all there are, and over memory.

    A network that fits is loaded like any other, and one that does not gives the same numbers: this is no dial.
    """
    size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    fits = not torch.cuda.is_available() or size < 0.8 * torch.cuda.mem_get_info()[0]
    return {} if fits or not (Path(folder) / "config.json").exists() else {"device_map": "auto"}


def load_split(split: str, params: DeclaredParams, workload: DeclaredParams, processor):
    """A split ("train" or "test") of the workload's data."""
    sha256 = getattr(workload.files, split).sha256
    path = verified_path(params.model, split, sha256)
    data = workload.data
    source = Source.model_validate(data.source)
    use_code(params, workload, source.loader)
    task = find_data(workload.task)
    return task.open_split(source, getattr(data, split), data.prepare, path, sha256, processor)
