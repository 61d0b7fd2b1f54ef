"""Networks that tests share, and helpers: logits, plans, noise."""

import copy

import torch
from torch import nn

import sglp


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plan_without(layers, removed):
    names = [layer.name for layer in layers]
    assert set(removed) <= {layer.name for layer in layers if layer.removable}
    return sglp.Plan([name for name in names if name not in removed], removed)


def logits(model, example):
    with torch.no_grad():
        output = model.eval()(**example).logits if isinstance(example, dict) else model.eval()(example)
        return output[0] if isinstance(output, tuple) else output


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x):
        return x + self.fc(x).relu()


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(5))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Attributes(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = Block(), Block(), Block()

    def forward(self, x):
        return self.three(self.two(self.one(x)))


class Keywords(Attributes):
    """Blocks that are called by name, with a second argument."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = Masked(), Masked(), Masked()

    def forward(self, x):
        mask = torch.ones(5)
        return self.three(x=self.two(self.one(x, mask), mask=mask), mask=mask)


class Masked(Block):
    def forward(self, x, mask):
        return super().forward(x) * mask


class Pairs(nn.Sequential):
    """A stream of pairs whose second item never changes."""

    def __init__(self):
        super().__init__(*(Pair() for _ in range(4)))


class Pair(Block):
    def forward(self, pair):
        x, mask = pair if isinstance(pair, tuple) else (pair, torch.ones(5))
        return super().forward(x) * mask, mask


class Unpacked(Listed):
    """A list of blocks that return an extra value."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Pair() for _ in range(5))

    def forward(self, x):
        for block in self.blocks:
            x, _ = block(x)
        return x


class Sized(Listed):
    """A list of blocks that pass a second value to each other."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Scaled() for _ in range(5))

    def forward(self, x):
        size = [2, 3]
        for block in self.blocks:
            x, size = block(x, size)
        return x


class Scaled(Block):
    def forward(self, x, size):
        return super().forward(x) * size[1], tuple(size)


class Halved(nn.Sequential):
    """A Sequential whose own forward does more than run its children in a row."""

    def __init__(self):
        super().__init__(*(Block() for _ in range(4)))

    def forward(self, x):
        for i in range(4):
            x = self[i](x) / 2
        return x


def units():
    convolution = [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()]
    return nn.Sequential(*(copy.deepcopy(module) for _ in range(4) for module in convolution))
