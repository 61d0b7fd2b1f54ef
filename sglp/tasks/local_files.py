"""Read Hugging Face models and tokenizers from a folder or a GGUF file."""

from pathlib import Path
from tempfile import TemporaryDirectory

from sglp.errors import CheckpointError, first_line
from sglp.hugging_face.pretrained import no_progress_bars

CODE = "trust_remote_code"


def read_local(kind, name: str, trust: bool):
    """Read a model or tokenizer from a folder or a GGUF file.

    Args:
        kind: the class of transformers, such as AutoTokenizer.
        name: path of the folder or file.
        trust: whether code in the folder may run.

    Raises:
        CheckpointError: the files are broken, or need code that may not run.
    """
    folder, file = _place(Path(name))
    arguments = {CODE: trust, "local_files_only": True} | ({"gguf_file": file} if file else {})
    if kind.__name__ != "AutoTokenizer" and not file:
        arguments["use_safetensors"] = True
    try:
        with no_progress_bars(), TemporaryDirectory() as scratch:
            if file:  # alone: files beside it have no checksum
                (Path(scratch) / file).symlink_to((folder / file).resolve())
                folder = Path(scratch)
            return kind.from_pretrained(str(folder), **arguments)
    except Exception as error:  # whatever transformers raises, the user needs one sentence
        refuse_code(name, error)
        raise CheckpointError(f"{name} can't be read by {kind.__name__}: {first_line(error)}") from error


def refuse_code(name: str, error: Exception) -> None:
    """Say what to do if an error of transformers is about code that may not run.

    Raises:
        CheckpointError: the error is about such code.
    """
    if CODE in str(error):
        raise CheckpointError(
            f"{name} needs code that comes with it: write architecture.kwargs.{CODE}: true in the workload if you "
            "trust that code"
        ) from error


def _place(path: Path) -> tuple[Path, str | None]:
    """Return the folder, and the name of its GGUF file if it is read from one."""
    if path.is_file():
        return path.parent, path.name
    if (path / "config.json").exists():
        return path, None
    files = sorted(file.name for file in path.glob("*.gguf"))
    if len(files) != 1:
        held = ", ".join(files) or "neither"
        raise CheckpointError(f"{path} must hold config.json and safetensors, or one GGUF file; it holds {held}")
    return path, files[0]
