"""Write versions.txt, the installed versions of the libraries that change numbers: ``python -m tools.versions``."""

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
    """One line a library that is installed."""
    lines = [f"{name}=={found}\n" for name in LIBRARIES if (found := installed(name))]
    Path("versions.txt").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
