"""The embedding network: pixel scaling, trunk, projection, L2 normalisation."""

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.errors import CheckpointError
from stages.network.conv import SMALLEST
from stages.network.digest import state_digest
from stages.network.pretrained import LibraryTrunk, make_trunk, projection_head, trunk_blocks

TRUNK_RATE = 0.1  # of the learning rate, for a pretrained trunk


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

    channels, size: of the images (C, S, S). dim: length of the vectors. name: of the network, see `make_trunk`.
    trunk: what of it training moves, as in `EmbedSettings`. pretrained: whether the trunk starts from given weights; then its
    BatchNorm layers keep their statistics, which a few photos would only spoil, and learn their scale and shift alone.
    mean, std: of pixels in [0, 1], one value a channel; buffers, so that every user of the weights feeds images scaled alike.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: int,
        size: int,
        dim: int,
        *,
        name: str = "conv",
        trunk: str = "tune",
        pretrained: bool = False,
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ):
        super().__init__()
        self.config = {
            "name": name,
            "channels": channels,
            "size": size,
            "dim": dim,
            "trunk": trunk,
            "pretrained": pretrained,
        }
        self.trunk, features = make_trunk(name, channels, size)
        bands = 3 if isinstance(self.trunk, LibraryTrunk) else channels
        for buffer, value in (
            ("mean", torch.zeros(1) if mean is None else mean),
            ("std", torch.ones(1) if std is None else std),
        ):
            self.register_buffer(buffer, value.float().view(-1, 1, 1).expand(bands, 1, 1).clone())
        self.project = (
            projection_head(features, dim)
            if isinstance(self.trunk, LibraryTrunk)
            else nn.Linear(features, dim)
        )
        blocks = trunk_blocks(self.trunk)
        kept = (
            0
            if trunk == "tune"
            else len(blocks)
            if trunk == "frozen"
            else max(0, len(blocks) - int(trunk.removeprefix("last-")))
        )
        self._kept = kept  # blocks that training leaves alone
        if kept:
            self.trunk.requires_grad_(False)
            for block in blocks[kept:]:
                block.requires_grad_(True)
        self._digest: str | None = None

    def train(self, mode: bool = True) -> Self:
        """As in torch, but what isn't trained stays in evaluation mode: no dropout, no BatchNorm statistics that drift."""
        super().train(mode)
        fixed = (
            [m for m in self.trunk.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            if self.config["pretrained"]
            else []
        )
        kept = (
            [self.trunk]
            if self.config["trunk"] == "frozen"
            else trunk_blocks(self.trunk)[: self._kept]
        )
        for module in (*kept, *fixed):
            module.eval()
        return self

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """What an optimiser trains: a pretrained trunk at a tenth of the rate of the rest."""
        slow: list[nn.Parameter] = []
        fast: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (slow if self.config["pretrained"] and name.startswith("trunk.") else fast).append(
                    parameter
                )
        groups = (fast, rate), (slow, rate * TRUNK_RATE)
        return [{"params": parameters, "lr": each} for parameters, each in groups if parameters]

    def load_trunk(self, tensors: Mapping[str, Tensor], *, where: str) -> None:
        """Start the trunk from a library's weights, its classifier and auxiliary heads left out.

        where: their name for the message. Raises CheckpointError if a tensor is missing, left over or of another shape.
        """
        assert isinstance(self.trunk, LibraryTrunk)
        body, left_out = self.trunk.body, self.trunk.heads
        expected = body.state_dict()
        given = {name: value for name, value in tensors.items() if not name.startswith(left_out)}
        # BatchNorm's counter came to torch late: old files lack it, and nothing uses it.
        missing = [
            name
            for name in expected
            if name not in given and not name.endswith("num_batches_tracked")
        ]
        unknown = [name for name in given if name not in expected]
        misshapen = [
            f"{name} {tuple(given[name].shape)} for {tuple(expected[name].shape)}"
            for name in expected
            if name in given and given[name].shape != expected[name].shape
        ]
        found = (("lacks", missing), ("also has", unknown), ("has other shapes:", misshapen))
        if wrong := [
            f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}"
            for what, names in found
            if names
        ]:
            raise CheckpointError(
                f"{where}: not the weights of {self.config['name']} at size {self.config['size']}: it {'; it '.join(wrong)}; "
                "give the file of that very network, or another --network or --size"
            )
        for (
            name,
            value,
        ) in (
            expected.items()
        ):  # not load_state_dict, which for some wants more than tensors and names
            value.copy_(given.get(name, value))
        self._digest = None

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        self._digest = None
        return super().load_state_dict(*arguments, **options)

    def trunk_digest(self) -> str | None:
        """Names what a frozen trunk makes of pixels: of its weights and the pixel scaling. None for a trunk that training moves."""
        if self.config["trunk"] == "frozen" and self._digest is None:
            self._digest = state_digest(
                {
                    name: value
                    for name, value in self.state_dict().items()
                    if not name.startswith("project.")
                }
            )
        return self._digest

    def features(self, images: Tensor) -> Tensor:
        """What the trunk makes of images. images: uint8, or floating point in [0, 255], (N, C, S, S). Returns (N, F)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config["trunk"] != "frozen"):
            pixels = (
                images.to(self.mean.dtype) / 255 - self.mean
            ) / self.std  # one grey channel becomes three alike for three means
            if pixels.shape[-1] < SMALLEST:
                pixels = F.interpolate(
                    pixels, size=(SMALLEST, SMALLEST), mode="bilinear", align_corners=False
                )
            found: Tensor = self.trunk(pixels.contiguous(memory_format=torch.channels_last))
            return found

    def forward(self, images: Tensor) -> Tensor:
        """Unit vectors, float32 (N, dim), of images as `features` takes them, or of features (N, F)."""
        return unit_rows(self.project(images if images.ndim == 2 else self.features(images)))


def to_device(network: nn.Module, device: torch.device) -> Any:
    """The network where it will run, in the memory layout that convolutions like; moved in place."""
    return network.to(device).to(memory_format=torch.channels_last)


def build_network(config: Mapping[str, Any]) -> EmbeddingNet:
    """The network that a checkpoint's `network` record describes, its weights not yet loaded."""
    return EmbeddingNet(**config)
