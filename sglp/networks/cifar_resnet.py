"""ResNets for small images (He et al. 2016, arXiv 1512.03385, section 4.2): 6n+2 layers in three stages.

Shortcuts have no parameters (option A: every second pixel, zeros for the new channels). Modules have the names of the
widely used CIFAR-10 checkpoints (akamaster/pytorch_resnet_cifar10), so these can be loaded.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sglp.errors import ArchitectureError

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut that has no parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [samples, in_channels, height, width] to [samples, channels, height / stride, width / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.new_channels:
            left = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, left, self.new_channels - left))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """A ResNet with a stem, three stages of blocks with 16, 32 and 64 channels, and a linear head.

    Args:
        depth: 6n+2 for n blocks per stage (the paper uses 20, 32, 44, 56, 110 and 1202).
        num_classes: number of classes.
        in_channels: 3 for colour images, 1 for grey images.

    Raises:
        ArchitectureError: the depth is not 6n+2.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3):
        super().__init__()
        blocks, remainder = divmod(depth - 2, 6)
        if remainder or blocks < 1:
            raise ArchitectureError(
                f"depth={depth} is not the depth of a CIFAR ResNet: it must be 6n+2, such as 20, 32, 44, 56 or 110"
            )
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = self._stage(WIDTHS[0], WIDTHS[0], blocks, 1)
        self.layer2 = self._stage(WIDTHS[0], WIDTHS[1], blocks, 2)
        self.layer3 = self._stage(WIDTHS[1], WIDTHS[2], blocks, 2)
        self.linear = nn.Linear(WIDTHS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map [samples, in_channels, height, width] to logits [samples, num_classes]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean(dim=(2, 3)))


def resnet(depth: int, num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Build a CIFAR ResNet of depth 6n+2; see `CifarResNet`."""
    return CifarResNet(depth, num_classes, in_channels)
