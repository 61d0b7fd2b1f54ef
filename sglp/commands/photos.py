"""A folder of images as a data-set class, with the names of its subfolders as classes."""

from pathlib import Path

from PIL import Image

from sglp.errors import DataError

EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Photos:
    """The images of a folder, in the order of their paths.

    Args:
        folder: a folder with one subfolder per class, or with images alone.

    Attributes:
        classes: names of the classes in alphabetical order; empty if the images lie in the folder itself.
        targets: the class of each image; 0 where there are no classes.

    Raises:
        DataError: there are no images, or some lie in the folder itself and others in subfolders.
    """

    def __init__(self, folder: str | Path):
        root = Path(folder)
        if not root.is_dir():
            raise DataError(f"{folder} is not a folder of images")
        self.files = sorted(file for file in root.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
        if not self.files:
            raise DataError(f"{folder} has no images: they end in {', '.join(sorted(EXTENSIONS))}")
        homes = [file.relative_to(root).parts[0] if file.parent != root else "" for file in self.files]
        if "" in homes and len(set(homes)) > 1:
            raise DataError(
                f"{folder} has images beside folders of images ({self.files[homes.index('')].name}): put each image "
                "into the folder of its class, or all into one folder"
            )
        self.classes = sorted(set(homes) - {""})
        self.targets = [self.classes.index(home) if home else 0 for home in homes]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = Image.open(self.files[index])
        return image, self.targets[index]
