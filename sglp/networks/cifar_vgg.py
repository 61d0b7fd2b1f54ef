"""VGGs with batch norm for small images, as used in the pruning literature (Li et al. 2017, arXiv 1608.08710).

Convolutions and pooling follow Simonyan and Zisserman 2015 (arXiv 1409.1556, table 1), with batch norm after each
convolution and a single linear layer as classifier. Modules have the names of the widely used CIFAR-10 code
(kuangliu/pytorch-cifar), so its checkpoints can be loaded. Weights are initialised as in the first of these networks
(szagoruyko/cifar.torch) and in torchvision: He et al. 2015, by the number of outputs (fan-out).
"""

from torch import Tensor, nn

from sglp.errors import ArchitectureError

# Convolutions in each of the five stages, by depth. The depth counts the three linear layers of the ImageNet networks.
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (1, 2, 4, 8, 8)


class CifarVGG(nn.Module):
    """A VGG with batch norm for images of 32x32 pixels.

    Smaller images are accepted, but once a feature map is a single pixel, further convolutions see no context: enlarge
    such images to 32x32.

    Args:
        depth: 11, 13, 16 or 19.
        num_classes: number of classes.
        in_channels: 3 for colour images, 1 for grey images.
        width: channels of the first stage (64 in the papers); the other stages have 2, 4, 8 and 8 times that number.

    Raises:
        ArchitectureError: the depth is not one of these.
    """

    def __init__(self, depth: int = 16, num_classes: int = 10, in_channels: int = 3, width: int = 64):
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ArchitectureError(f"depth={depth} is not the depth of a VGG: it must be 11, 13, 16 or 19")
        modules: list[nn.Module] = []
        for convolutions, times in zip(CONVOLUTIONS[depth], WIDTHS, strict=True):
            channels = times * width
            for _ in range(convolutions):
                modules += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
                in_channels = channels
            # Rounded up, as in the first of these networks: no difference at 32x32, and a single pixel stays a pixel.
            modules.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*modules)
        self.classifier = nn.Linear(in_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [samples, in_channels, height, width] to logits [samples, num_classes]."""
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def vgg(depth: int = 16, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> CifarVGG:
    """Build a VGG with batch norm for small images; see `CifarVGG`."""
    return CifarVGG(depth, num_classes, in_channels, width)
