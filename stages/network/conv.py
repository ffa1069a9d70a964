"""Convolutional trunks that are trained from scratch: conv and conv-deep."""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

# Smallest side of the input in pixels. Smaller images are enlarged before they enter the trunk.
MIN_SIDE = 28

# Largest side in pixels for which conv keeps its whole feature map. The maps of larger images are
# pooled to this size, or the projection layer would become huge.
MAX_UNPOOLED_SIDE = 64

# Largest side in pixels of the feature map that enters the residual blocks of conv-deep.
MAX_RESIDUAL_SIDE = 40


def conv_trunk(channels: int, size: int) -> tuple[nn.Module, int]:
    """Build the trunk ``conv``, the first two blocks of FaceNet.

    The layers are a 7x7 convolution with stride 2 to 64 channels, 3x3 max-pooling with stride 2, a
    1x1 convolution to 64 channels, a 3x3 convolution to 192 channels, and 3x3 max-pooling with
    stride 2. Each convolution is followed by BatchNorm and ReLU. Before a pooling layer, ReLU moves
    behind the pooling: the result is the same at a quarter of the cost.

    Args:
        channels: Number of image channels.
        size: Side of the square images in pixels.

    Returns:
        The trunk, which maps pixels (N, channels, size, size) to features (N, F), and F.

    References:
        Schroff et al., FaceNet, 2015, table 1. https://arxiv.org/abs/1503.03832
    """
    side = min(max(size, MIN_SIDE), MAX_UNPOOLED_SIDE)
    for _ in range(3):  # three layers with stride 2
        side = math.ceil(side / 2)
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
        nn.AdaptiveAvgPool2d(side) if size > MAX_UNPOOLED_SIDE else nn.Identity(),
        nn.Flatten(),
    )
    return trunk, 192 * side * side


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; the block halves the side of the feature map."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        last_norm = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(last_norm.weight)  # zero-initialised residual branch
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            last_norm,
        )
        # Average first: a 1x1 convolution with stride 2 would ignore three quarters of the map.
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.branch(maps) + self.shortcut(maps))


def deep_trunk(channels: int, size: int) -> tuple[nn.Module, int]:
    """Build the trunk ``conv-deep``, a residual network.

    3x3 convolutions reduce the image to at most 40 pixels. Residual blocks with 64, 128 and 256
    channels follow, and the last feature map is pooled to 4 x 4. The number of weights therefore
    hardly depends on the image size, and neither does the cost of the residual blocks.

    Args:
        channels: Number of image channels.
        size: Side of the square images in pixels.

    Returns:
        The trunk, which maps pixels (N, channels, size, size) to features (N, F), and F.

    References:
        He et al., Deep residual learning, 2015. https://arxiv.org/abs/1512.03385
        He et al., Bag of tricks (ResNet-D shortcuts), 2018. https://arxiv.org/abs/1812.01187
    """
    layers: list[nn.Module] = []
    side, in_channels = max(size, MIN_SIDE), channels
    while not layers or side > MAX_RESIDUAL_SIDE:
        stride = 2 if side > MAX_RESIDUAL_SIDE else 1
        layers += [
            nn.Conv2d(in_channels, 32, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
        ]
        side, in_channels = math.ceil(side / stride), 32
    for out_channels in (64, 128, 256):
        layers.append(_ResidualBlock(in_channels, out_channels))
        side, in_channels = math.ceil(side / 2), out_channels
    pool = nn.AdaptiveAvgPool2d(4) if side != 4 else nn.Identity()
    return nn.Sequential(*layers, pool, nn.Flatten()), in_channels * 4 * 4


# Trunk builders by network name.
OWN_TRUNKS: dict[str, Callable[[int, int], tuple[nn.Module, int]]] = {
    "conv": conv_trunk,
    "conv-deep": deep_trunk,
}
