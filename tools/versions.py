"""Write versions.txt, the installed versions of the libraries that affect results: ``python -m tools.versions``."""

from pathlib import Path

from stages.support.stage import installed

LIBRARIES = (
    "accelerate",
    "datasets",
    "gguf",
    "lm-eval",
    "numpy",
    "peft",
    "pillow",
    "scikit-learn",
    "scipy",
    "timm",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
)


def main() -> None:
    """Write one line per installed library."""
    lines = [f"{name}=={version}\n" for name in LIBRARIES if (version := installed(name))]
    Path("versions.txt").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
