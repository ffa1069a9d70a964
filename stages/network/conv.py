"""Our own convolutional trunks: conv and conv-deep."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

ADAPTIVE_ABOVE = 64  # pixels; beyond it the map is pooled to what a 64-pixel image has, or the last layer grows huge


SMALLEST = 28  # pixels; below it the four halvings leave nothing to see, so smaller images are enlarged first


def conv_trunk(channels: int, size: int) -> tuple[nn.Module, int]:
    """The FaceNet-like network (Schroff et al. 2015, arXiv 1503.03832, table 1, its first two blocks), and how many features.

    conv 7x7/2 to 64, max-pool 3/2, conv 1x1 to 64, conv 3x3 to 192, max-pool 3/2; each convolution followed by BatchNorm
    and ReLU (after the pooling, where there is one: the same values at a quarter of the work).
    """
    side = min(max(size, SMALLEST), ADAPTIVE_ABOVE)
    for _ in range(3):  # three halvings, each rounding up
        side = (side + 1) // 2
    trunk = nn.Sequential(
        nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, 64, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, 192, 3, padding=1, bias=False),
        nn.BatchNorm2d(192),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(side) if size > ADAPTIVE_ABOVE else nn.Identity(),
        nn.Flatten(),
    )
    return trunk, 192 * side * side


class _Residual(nn.Module):
    """Two 3x3 convolutions at half the side, beside a shortcut; the last BatchNorm starts at zero, so the block starts as its shortcut."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        last = nn.BatchNorm2d(outside)
        nn.init.zeros_(last.weight)
        self.branch = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False),
            last,
        )
        self.shortcut = nn.Sequential(  # averaging first: a strided 1x1 convolution would see a quarter of the map
            nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(inside, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.branch(maps) + self.shortcut(maps))


def deep_trunk(channels: int, size: int) -> tuple[nn.Module, int]:
    """A residual network (He et al. 2015, arXiv 1512.03385; shortcuts as in ResNet-D, arXiv 1812.01187), and how many features.

    3x3 convolutions that bring any size to at most 40 pixels, then blocks of 64, 128 and 256 channels, each at half the side of
    the one before, and a 4 x 4 map of the last: neither the weights nor, beyond the first layers, the work grow with the size.
    """
    side, inside, layers = max(size, SMALLEST), channels, list[nn.Module]()
    while not layers or side > 40:
        stride = 2 if side > 40 else 1
        layers += [
            nn.Conv2d(inside, 32, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
        ]
        side, inside = -(-side // stride), 32
    for outside in (64, 128, 256):
        layers.append(_Residual(inside, outside))
        side, inside = (side + 1) // 2, outside
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(4) if side != 4 else nn.Identity(), nn.Flatten()
    ), inside * 16


OWN_TRUNKS: dict[str, Callable[[int, int], tuple[nn.Module, int]]] = {
    "conv": conv_trunk,
    "conv-deep": deep_trunk,
}
