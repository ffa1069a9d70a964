"""The networks: pixels to unit vectors, and unit vectors to class probabilities."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.processes import gather_rows, place
from stages.records import Embeddings, Split

ADAPTIVE_ABOVE = 64  # pixels; beyond it the map is pooled to what a 64-pixel image has, or the last layer grows huge
SMALLEST = 28  # pixels; below it the four halvings leave nothing to see, so smaller images are enlarged first


def unit_rows(features: Tensor) -> Tensor:
    """Divide each row by its Euclidean length; a row of (nearly) zeros becomes the constant unit vector.

    features: floating point (N, D). Returns float32 or float64 (N, D), finite, with finite gradients
    (zero through a zero row: normalising one would multiply its gradient by 1e12).
    """
    features = features if features.dtype == torch.float64 else features.float()
    empty = features.norm(dim=1, keepdim=True) < 1e-6  # (N, 1)
    return F.normalize(torch.where(empty, torch.ones_like(features), features), dim=1)


class EmbeddingNet(nn.Module):
    """Pixels to unit vectors: pixel scaling, a trunk that makes features, fully connected layers to `dim`, L2-normalisation.

    channels, size: of the images (C, S, S). dim: length of the vectors. name: of the trunk, one of `TRUNKS`.
    mean, std: of the training pixels in [0, 1], one value a channel; buffers, so that every user of the
    weights feeds images scaled alike.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, size: int, dim: int, *, name: str = "conv", mean: Tensor | None = None, std: Tensor | None = None):
        super().__init__()
        self.config = {"name": name, "channels": channels, "size": size, "dim": dim}
        self.register_buffer("mean", (torch.zeros(channels) if mean is None else mean).float().view(-1, 1, 1))
        self.register_buffer("std", (torch.ones(channels) if std is None else std).float().view(-1, 1, 1))
        self.trunk, features = TRUNKS[name](channels, size)
        self.project = nn.Linear(features, dim)

    def features(self, images: Tensor) -> Tensor:
        """What the trunk makes of images. images: uint8, or floating point in [0, 255], (N, C, S, S). Returns (N, F)."""
        pixels = (images.to(self.project.weight.dtype) / 255 - self.mean) / self.std
        if pixels.shape[-1] < SMALLEST:
            pixels = F.interpolate(pixels, size=(SMALLEST, SMALLEST), mode="bilinear", align_corners=False)
        found: Tensor = self.trunk(pixels.contiguous(memory_format=torch.channels_last))
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Unit vectors of images as `features` takes them, float32 (N, dim)."""
        return unit_rows(self.project(self.features(images)))


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
        layers += [nn.Conv2d(inside, 32, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)]
        side, inside = -(-side // stride), 32
    for outside in (64, 128, 256):
        layers.append(_Residual(inside, outside))
        side, inside = (side + 1) // 2, outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4) if side != 4 else nn.Identity(), nn.Flatten()), inside * 16


TRUNKS: dict[str, Callable[[int, int], tuple[nn.Module, int]]] = {"conv": conv_trunk, "conv-deep": deep_trunk}


class Head(nn.Module):
    """Dropout + linear + log-softmax on unit vectors."""

    def __init__(self, dim: int, classes: int, *, dropout: float = 0.5):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, classes)

    def forward(self, vectors: Tensor) -> Tensor:
        """vectors: float32 (N, D). Returns log-probabilities, float32 (N, classes)."""
        return F.log_softmax(self.linear(self.dropout(vectors)), dim=1)


def to_device(network: nn.Module, device: torch.device) -> Any:
    """The network where it will run, in the memory layout that convolutions like; moved in place."""
    # torch's types know this call for tensors only, though modules take it too.
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def build_network(config: Mapping[str, Any]) -> EmbeddingNet:
    """The network that a checkpoint's `network` record describes, its weights not yet loaded."""
    return EmbeddingNet(config["channels"], config["size"], config["dim"], name=config["name"])


def pixel_statistics(split: Split) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pixels in [0, 1], one value a channel.

    Returns two float32 (C,). Worked out from the histogram, so it is exact and needs no floating-point copy of the
    images; a constant channel gets deviation 1.
    """
    channels = split.store.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for images in split.blocks():
        for c in range(channels):
            counts[c] += torch.bincount(images[:, c].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    shares = counts / counts.sum(1, keepdim=True)  # (C, 256)
    mean = shares @ levels
    std = (shares @ levels.square() - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(std < 1e-4, torch.ones_like(std), std).float()


def embed_images(network: nn.Module, blocks: Iterable[Tensor], *, device: torch.device) -> Tensor:
    """Embed images in evaluation mode, float32 whatever the autocast, without gradients.

    blocks: uint8 (b, C, S, S) each, anywhere, at least one. Returns float32 (N, D) on the CPU.
    The network is left in the mode it came in.
    """
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return torch.cat([network(images.to(device)).cpu() for images in blocks])
    finally:
        network.train(training)


def embed_split(network: nn.Module, split: Split, *, device: torch.device, block: int = 512) -> Embeddings:
    """Embed a split, `block` images at a time, as `embed_images` does; the processes of a run share the work."""
    rank, world = place()
    share = -(-len(split) // world)
    rows = torch.arange(rank * share, (rank + 1) * share).clamp(max=len(split) - 1)  # equal shares: the end is padded
    own = embed_images(network, (split.take(part) for part in rows.split(block)), device=device)
    return Embeddings(gather_rows(own)[: len(split)], split.labels, split.classes)


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names, dtypes, shapes and values, whatever their memory layout, order or device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
