"""Fill in the checksums of a workload's files: ``python -m tools.checksums models/NAME.yaml``."""

import sys
from pathlib import Path

from ruamel.yaml import YAML

from sglp.errors import SGLPError
from sglp.files import new_file
from sglp.tasks.schemas import schema_of
from stages.support.params import ParameterError, check, read_yaml
from stages.support.userfiles import checksum, resolve_path


def fill(path: Path) -> None:
    """Write the sha256 of each file of a workload into its YAML file, which keeps its comments and order.

    Args:
        path: the workload's YAML file.

    Raises:
        ParameterError: a file does not exist.
    """
    content = read_yaml(path)
    check(schema_of(content), content, path)
    yaml = YAML()
    yaml.preserve_quotes = True
    content = yaml.load(path.read_text(encoding="utf-8"))
    for name, file in content["files"].items():
        if file["path"] is None:
            file["sha256"] = None
            continue
        resolved = resolve_path(file["path"])
        if resolved is None:
            raise ParameterError(f"{path}: files.{name}.path={file['path']} does not exist: correct the path")
        file["sha256"] = checksum(resolved)
        print(f"{path}: files.{name} {file['sha256']} {file['path']}")
    with new_file(path) as new, new.open("w", encoding="utf-8") as out:
        yaml.dump(content, out)


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("no workload given: run python -m tools.checksums models/NAME.yaml")
    try:
        for argument in sys.argv[1:]:
            fill(Path(argument))
    except SGLPError as error:
        sys.exit(str(error))
