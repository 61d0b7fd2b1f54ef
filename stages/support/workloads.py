"""Load what a workload names: the user's code, networks and data."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

import sglp
from sglp.architecture import resolve
from sglp.tasks.data import find_data
from sglp.tasks.schemas.workload import Source
from stages.support.params import DeclaredParams, ParameterError
from stages.support.userfiles import project, verified_path

OWN_PACKAGES = ("sglp", "stages")


def device() -> torch.device:
    """Return the GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_code(params: DeclaredParams, workload: DeclaredParams, *names: str) -> None:
    """Import modules by name and the user's Python file or package, after its checksum was verified.

    Other code in the project's folder must not be imported. Imports inside functions are not detected.

    Args:
        params, workload: the parameters that the stage declares.
        names: dotted names that the stage will use, "package.module:attribute".

    Raises:
        ParameterError: code in the project's folder that has no checksum was imported.
        ArchitectureError: a module or attribute does not exist.
    """
    before = set(sys.modules)
    path = verified_path(params.model, "code", workload.files.code.sha256)
    if path is not None:
        _import(Path(path))
    for name in names:
        if ":" in name and name.partition(".")[0] not in OWN_PACKAGES:  # these are imported where they are used
            resolve(name)
    root = Path(project())
    allowed = [Path(folder) for folder in (sys.prefix, path) if folder]
    for name in [name for name in sys.modules if name not in before and name.partition(".")[0] not in OWN_PACKAGES]:
        file = Path(getattr(sys.modules[name], "__file__", None) or "built-in")
        if file.is_relative_to(root) and not any(file.is_relative_to(folder) for folder in allowed):
            raise ParameterError(
                f"{name} ({file.name}) is code in the project's folder without a checksum: put it and the code that it "
                f"imports into one package, set files.code.path in models/{params.model}.yaml to that package, and run "
                f"'python -m tools.checksums models/{params.model}.yaml'"
            )


def _import(path: Path) -> None:
    """Import a file or package under its own name."""
    file = path / "__init__.py" if path.is_dir() else path
    locations = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(path.stem, file, submodule_search_locations=locations)
    if spec is None or spec.loader is None:
        raise ParameterError(f"{path} can't be imported: it must be a .py file or a package (a folder of .py files)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # user code can raise anything; name the file
        del sys.modules[path.stem]
        raise ParameterError(f"{path} can't be imported: {type(error).__name__}: {error}") from error


def load_network(
    folder: str, params: DeclaredParams, workload: DeclaredParams, stored: bool = False, **loading: Any
) -> torch.nn.Module:
    """Load a network that an earlier stage saved, onto the device and in the precision that its task computes in.

    Only the factory that the workload names is trusted to build it.

    Args:
        folder: the folder that it was saved to.
        params, workload: the parameters that the stage declares.
        stored: load it in the stored precision, on the CPU.
        loading: further arguments for `sglp.load`.
    """
    architecture = workload.architecture
    use_code(params, workload, architecture["factory"])
    trust = architecture["kwargs"].get("trust_remote_code", False) or [architecture["factory"]]
    dtype = None if stored else find_data(workload.task).dtype(device())
    network = sglp.load(folder, trust=trust, dtype=dtype, **loading)
    placed = stored or getattr(network, "hf_device_map", None)
    return network if placed else network.to(device())


def spread(folder: str) -> dict[str, Any]:
    """Return arguments for `sglp.load` that spread a Hugging Face model over all GPUs and memory if it exceeds the GPU.

    This is not a parameter, because results do not depend on it.
    """
    size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    fits = not torch.cuda.is_available() or size < 0.8 * torch.cuda.mem_get_info()[0]
    return {} if fits or not (Path(folder) / "config.json").exists() else {"device_map": "auto"}


def load_split(split: str, params: DeclaredParams, workload: DeclaredParams, processor: Any) -> Any:
    """Load a split ("train" or "test") of the workload's data."""
    sha256 = getattr(workload.files, split).sha256
    path = verified_path(params.model, split, sha256)
    data = workload.data
    source = Source.model_validate(data.source)
    use_code(params, workload, source.loader)
    task = find_data(workload.task)
    return task.open_split(source, getattr(data, split), data.prepare, path, sha256, processor)
