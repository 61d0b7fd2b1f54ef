"""The numbers that a network takes, against torchvision's own transforms, to the bit."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from sglp.tasks.image_classification.augmentation import TrainingImages
from sglp.tasks.image_classification.images import Images
from sglp.tasks.image_classification.pixels import eight_bits, normalized, pixels, to_unit_float
from sglp.tasks.schemas.image_classification import ImagePreparation
from sglp.tasks.schemas.workload import Source

AUGMENT = [{"RandomCrop": {"size": 12, "padding": 2}}, {"ColorJitter": {"brightness": 0.4}}, {"Resize": {"size": 10}}]
ERASE = [{"RandomErasing": {"p": 1.0, "inplace": True}}]


@pytest.fixture(scope="module", params=["L", "RGB"])
def pictures(request) -> list[Image.Image]:
    shape = (12, 14) if request.param == "L" else (12, 14, 3)
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)) for _ in range(6)]


class Coloured:
    """A data set of pictures, as `Images` takes it."""

    pictures: tuple = ()
    targets = (0, 1, 0, 1, 0, 1)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return self.pictures[index], self.targets[index]


def opened(pictures: list, transforms: list) -> Images:
    channels = len(pictures[0].getbands())
    prepare = ImagePreparation(
        image_column="image",
        label_column="label",
        classes=2,
        channels=channels,
        transforms=transforms,
        mean=[0.3, 0.4, 0.5][:channels],
        std=[0.2, 0.3, 0.7][:channels],
    )
    Coloured.pictures = pictures
    return Images(Source(loader=f"{__name__}:Coloured", name=None, revision=None), {}, prepare)


def torchvisions(images: Images, transforms: list) -> v2.Compose:
    made = [getattr(v2, name)(**arguments) for entry in transforms for name, arguments in entry.items()]
    prepare = images.prepare
    return v2.Compose(
        [v2.ToImage(), *made, v2.ToDtype(torch.float32, scale=True), v2.Normalize(prepare.mean, prepare.std)]
    )


@pytest.mark.parametrize("transforms", [[], [{"Resize": {"size": 9}}, {"CenterCrop": {"size": 8}}]])
def test_an_image_is_what_torchvision_makes_of_it(pictures, transforms):
    images = opened(pictures, transforms)
    expected = torchvisions(images, transforms)
    for index, picture in enumerate(pictures):
        assert torch.equal(images[index][0], expected(picture))


@pytest.mark.parametrize("augment", [[], AUGMENT, ERASE], ids=["none", "random", "in-place"])
def test_an_augmented_image_is_what_torchvision_makes_of_it(pictures, augment):
    images = opened(pictures, [])
    expected = torchvisions(images, augment)
    samples = TrainingImages(images, np.arange(6), augment, seed=3)
    for epoch in (0, 1):
        for index, picture in enumerate(pictures):
            state = np.random.SeedSequence([3, epoch, index]).generate_state(1, np.uint64)
            torch.default_generator.manual_seed(int(state[0] >> np.uint64(1)))
            assert torch.equal(samples[epoch, index][0], expected(picture))


def test_scaling_and_rounding_are_those_of_torchvision():
    random = torch.Generator().manual_seed(0)
    for values in (torch.arange(256, dtype=torch.uint8), torch.randint(0, 2**15, (500,), generator=random).short()):
        assert torch.equal(
            to_unit_float(values), v2.functional.to_dtype(values[None, None], torch.float32, scale=True)[0, 0]
        )
    fractions = torch.rand(5000, generator=random)
    assert torch.equal(to_unit_float(fractions), fractions)
    expected = v2.functional.to_dtype(fractions[None, None], torch.uint8, scale=True)[0, 0]
    assert torch.equal(eight_bits(fractions), expected)
    assert torch.equal(
        eight_bits(to_unit_float(torch.arange(256, dtype=torch.uint8))), torch.arange(256, dtype=torch.uint8)
    )
    batch = torch.rand(4, 3, 5, 6, generator=random)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    assert torch.equal(normalized(batch, mean, std), v2.functional.normalize(batch, mean, std))


def test_a_picture_of_one_band_has_one_channel():
    assert pixels(Image.new("L", (3, 2), 7)).tolist() == [[[7, 7, 7], [7, 7, 7]]]


def test_a_workload_without_transforms_needs_no_torchvision():
    code = (
        "import sys; from sglp.tasks.image_classification import data as task;"
        "from sglp.tasks.schemas.workload import Source; "
        "prepare = dict(image_column='image', label_column='label', classes=10, channels=1, transforms=[], mean=[0.3],"
        " std=[0.4]); source = Source(loader='sglp.tasks.digits:Digits', name=None, revision=None);"
        "images = task.open_split(source, {'train': False}, prepare, None, None, None); images.batch([0, 1]);"
        "print(*(name for name in ('torchvision', 'torch._dynamo') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
