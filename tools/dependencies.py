"""Write the code that each stage depends on into dvc.yaml: ``python -m tools.dependencies``."""

from pathlib import Path

from ruamel.yaml import YAML

from sglp.files import new_file
from tools.closure import closure

ROOT = Path(__file__).resolve().parents[1]


def with_code(pipeline: dict, root: Path) -> dict:
    """Append the sorted import closure of each stage to its other dependencies, and keep comments and other keys.

    Args:
        pipeline: content of dvc.yaml; changed in place and returned.
        root: folder of the project.
    """
    for name, stage in pipeline["stages"].items():
        entry = stage.get("do", stage)
        data = [dependency for dependency in entry["deps"] if not dependency.endswith(".py")]
        entry["deps"][:] = data + sorted(closure(root / f"stages/{name}.py", root))
    return pipeline


def main(root: Path = ROOT) -> None:
    """Rewrite dvc.yaml with ruamel.yaml, as DVC does, which keeps comments."""
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096
    path = root / "dvc.yaml"
    pipeline = with_code(yaml.load(path.read_text(encoding="utf-8")), root)
    with new_file(path) as new, new.open("w", encoding="utf-8") as file:
        yaml.dump(pipeline, file)


if __name__ == "__main__":
    main()
