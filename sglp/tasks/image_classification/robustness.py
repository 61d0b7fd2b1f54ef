"""Accuracy of an image classifier under attacks and corruptions, on the same images for every network."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sglp.distributed import processes
from sglp.errors import DataError
from sglp.robustness.attacks import fgsm, pgd, random_start
from sglp.robustness.corruptions import KINDS, corrupt
from sglp.running import call, device_of, eval_mode, logits_of
from sglp.tasks.drawing import draw
from sglp.tasks.image_classification.images import Images, stack
from sglp.tasks.image_classification.pixels import eight_bits, normalized, to_unit_float
from sglp.tasks.image_classification.transforms import make_transforms
from sglp.tasks.schemas.image_classification import Robustness

SEED = 0  # for the draw of images and the starts of PGD, which are the same for all networks


def robustness(network: nn.Module, images: Images, settings: Robustness, batch_size: int) -> dict:
    """Measure accuracies (0 to 1) on images drawn without replacement.

    Images are attacked and corrupted after the transforms of evaluation, in 8 bits, and before the normalisation, which
    attacks differentiate through. The result for an image depends on its index in the split, not on its batch.

    Args:
        network: runs in eval mode; its parameters get no gradients.
        images: the test split.
        settings: attacks and corruptions to measure.
        batch_size: images at a time; attacks need as much memory as training.

    Returns:
        "samples": number of images; "clean": accuracy on unchanged images; "fgsm" and "pgd": by eps; "corruptions": by
        severity, then by kind, with the "mean" over kinds. The kind "frost" can't be compared with published figures;
        see `sglp.robustness.corruptions`.

    Raises:
        DataError: an image can't be prepared or is too small to be corrupted, or the outputs are not finite.
    """
    samples = min(settings.samples, len(images))
    drawn = draw(len(images), samples, SEED, f"images in {images.name}")
    classifier = _Classifier(network, images)
    each = 1 + len(settings.fgsm) + len(settings.pgd) + len(settings.severities) * len(KINDS)
    batches = range(0, samples, batch_size)
    own = batches[processes.part(len(batches))]
    with eval_mode(network), tqdm(total=len(own) * each, desc="robustness", unit="batch", disable=None) as bar:

        def evaluate_batch(first: int) -> Counter:
            counts: Counter = Counter()
            indices = drawn[first : first + batch_size]
            pictures, labels = classifier.batch(indices)
            for name, pixels in _variants(classifier, pictures, labels, indices, settings):
                with torch.no_grad():
                    logits = classifier(pixels)
                if not logits.isfinite().all():
                    raise DataError(f"the network's outputs on {images.name} ({' '.join(name)}) are not finite")
                counts[name] += int((logits.argmax(-1) == labels).sum())
                bar.update()
            return counts

        hits: Counter = Counter()
        for counts in processes.shared_map(evaluate_batch, batches):
            hits.update(counts)
    return {"samples": samples} | _nested({name: count / samples for name, count in hits.items()})


class _Classifier:
    """A function from pixels to logits: the normalisation of `Images`, then the network."""

    def __init__(self, network: nn.Module, images: Images):
        self.network, self.images, self.device = network, images, device_of(network)
        self.steps = [*make_transforms(images.prepare.transforms), eight_bits]

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return 8-bit pictures [samples, channels, height, width] and labels [samples]."""
        images = self.images
        pictures, labels = stack([(images.prepared(i, self.steps), int(images.labels[i])) for i in indices])
        return pictures.to(self.device), labels.to(self.device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Compute the logits for pixels in 0..1."""
        prepare = self.images.prepare
        return logits_of(call(self.network, normalized(pixels, prepare.mean, prepare.std)))


def _variants(
    classifier: _Classifier, pictures: Tensor, labels: Tensor, indices: list[int], settings: Robustness
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Yield a batch unchanged, under each attack and under each corruption: names, and pixels in 0..1."""
    pixels = to_unit_float(pictures)
    yield ("clean",), pixels
    for eps in settings.fgsm:
        yield ("fgsm", str(eps)), fgsm(classifier, pixels, labels, eps)
    for eps in settings.pgd:
        start = random_start(pixels, eps, [(SEED, index) for index in indices])
        yield ("pgd", str(eps)), pgd(classifier, pixels, labels, eps, settings.pgd_steps, start)
    arrays = pictures.permute(0, 2, 3, 1).cpu().numpy()
    for severity in settings.severities:
        for kind in KINDS:
            pictures_of_kind = [corrupt(array, kind, severity, i) for array, i in zip(arrays, indices, strict=True)]
            corrupted = torch.from_numpy(np.stack(pictures_of_kind)).permute(0, 3, 1, 2).contiguous()
            yield ("corruptions", str(severity), kind), to_unit_float(corrupted.to(pictures.device))


def _nested(accuracies: dict[tuple[str, ...], float]) -> dict:
    """Nest accuracies by group, and add the mean over kinds of corruption."""
    nested: dict = {}
    for (*groups, last), accuracy in accuracies.items():
        group = nested
        for name in groups:
            group = group.setdefault(name, {})
        group[last] = accuracy
    for kinds in nested.get("corruptions", {}).values():
        kinds["mean"] = sum(kinds.values()) / len(kinds)
    return nested
