"""Networks that are not available in torchvision or timm."""
