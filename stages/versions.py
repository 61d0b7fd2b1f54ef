"""Not a stage: writes versions.txt, the installed versions of what changes numbers. ``python -m stages.versions``."""

from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("lm-eval", "numpy", "peft", "pillow", "scipy", "tokenizers", "torch", "torchvision", "transformers")


def main() -> None:
    """One line a library; builds for other hardware ("+cpu") count as the same version."""
    lines = [f"{name}=={version(name).partition('+')[0]}\n" for name in LIBRARIES]
    Path("versions.txt").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
