"""What a workload names, brought to life: the user's code, its networks, its images."""

import sys
from importlib.metadata import version
from pathlib import Path

import torch

import sglp
from sglp.tasks.images import Images
from sglp.tasks.workload import ImagePreparation, Source
from stages.support.params import ParameterError, View
from stages.support.userfiles import locate


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_versions() -> None:
    """The libraries whose versions change numbers must be those that versions.txt says, for it stands in for them.

    Raises:
        ParameterError: one of them is another.
    """
    for line in Path("versions.txt").read_text(encoding="utf-8").split():
        name, _, wanted = line.partition("==")
        if version(name).partition("+")[0] != wanted:
            raise ParameterError(
                f"versions.txt says {line}, but {name} {version(name)} is installed: run 'make setup' to install what "
                "is locked, or 'make versions' to write down what you have (all stages will run again)"
            )


def use_code(params: View, workload: View) -> None:
    """Make the user's Python module or package importable, after its checksum was verified."""
    path = locate(params.model, "code", workload.files.code.sha256)
    if path is not None:
        sys.path.insert(0, str(Path(path).resolve().parent))


def load_network(folder: str, params: View, workload: View) -> torch.nn.Module:
    """A network that an earlier stage saved, on the device. The workload is the user's word for its factory."""
    check_versions()
    use_code(params, workload)
    return sglp.load(folder, trust=True).to(device())


def load_images(split: str, params: View, workload: View) -> Images:
    """A split ("train" or "test") of the workload's data."""
    path = locate(params.model, split, getattr(workload.files, split).sha256)
    data = workload.data
    source = Source.model_validate(data.source)
    return Images(source, getattr(data, split), ImagePreparation.model_validate(data.prepare), path)
