"""The embedding network: pixel scaling, trunk, projection, L2 normalisation."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.errors import SettingsError
from stages.network.conv import MIN_SIDE, OWN_TRUNKS
from stages.network.digest import state_digest
from stages.network.library_weights import fit_weights
from stages.network.pretrained import (
    UNRECORDED,
    LibraryTrunk,
    make_trunk,
    projection_head,
    trunk_blocks,
)
from stages.network.projection import ResidualProjection

# Learning rate of the matrices of conv and conv-deep, as a multiple of that of the other weights.
MATRIX_LEARNING_RATE_FACTOR = 16
TRUNK_LEARNING_RATE_FACTOR = 0.1  # learning rate of a pretrained trunk over that of the projection


def unit_rows(features: Tensor) -> Tensor:
    """Divide each row by its Euclidean norm.

    Rows that are (nearly) zero become the constant unit vector and receive no gradient. Dividing
    by their norm would multiply the gradient by up to 1e12.

    Args:
        features: Floating point, shape (N, D).

    Returns:
        Unit vectors, float32 (float64 for float64 input), shape (N, D), with finite gradients.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.7071, 0.7071]])
    """
    features = features if features.dtype == torch.float64 else features.float()
    is_zero = features.norm(dim=1, keepdim=True) < 1e-6  # (N, 1)
    return F.normalize(torch.where(is_zero, torch.ones_like(features), features), dim=1)


class EmbeddingNet(nn.Module):
    """Network that embeds images as unit vectors.

    It scales pixels, computes features with a trunk, projects them to ``dim`` dimensions and
    L2-normalises the result. ``mean`` and ``std`` are buffers, so that pixels are scaled in the
    same way wherever the weights are used.

    Args:
        channels: Number of image channels.
        size: Side of the square images in pixels.
        dim: Dimension of the embedding.
        name: Name of the trunk, see :func:`stages.network.pretrained.make_trunk`.
        trunk: Layers of the trunk to train: ``tune``, ``frozen`` or ``last-N``, see
            :class:`stages.settings.EmbedSettings`.
        pretrained: True if pretrained weights will be loaded into the trunk. Its BatchNorm layers
            then keep their running statistics in training, because statistics of a few images are
            worse. Their scale and shift are trained.
        mean: Mean of the pixels in [0, 1], one value, or one per channel. Default: 0.
        std: Standard deviation of these pixels, one value, or one per channel. Default: 1.
        side: Side to which a library trunk resizes the images. None: the smallest possible one.
        projection: ``residual``: :class:`stages.network.projection.ResidualProjection`. None:
            :func:`stages.network.pretrained.projection_head` for library networks, as in all
            checkpoints without this entry, and a linear layer for the others.

    Raises:
        SettingsError: If the trunk cannot be built or has fewer blocks than ``trunk`` names.

    Example:
        >>> network = EmbeddingNet(channels=1, size=28, dim=16).eval()
        >>> images = torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8)
        >>> network(images).shape
        torch.Size([3, 16])
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
        side: int | None = None,
        projection: str | None = None,
    ):
        super().__init__()
        self.config: dict[str, Any] = {
            "name": name,
            "channels": channels,
            "size": size,
            "dim": dim,
            "trunk": trunk,
            "pretrained": pretrained,
        }
        if projection is not None:
            self.config["projection"] = projection
        self.trunk, features = make_trunk(name, channels, size, side)
        is_library = isinstance(self.trunk, LibraryTrunk)
        if isinstance(self.trunk, LibraryTrunk) and side != UNRECORDED:
            self.config["side"] = self.trunk.side
        trunk_channels = 3 if is_library else channels
        self._register_statistic("mean", torch.zeros(1) if mean is None else mean, trunk_channels)
        self._register_statistic("std", torch.ones(1) if std is None else std, trunk_channels)
        self.project: nn.Module
        if projection is not None:
            self.project = ResidualProjection(features, dim)
        elif is_library:
            self.project = projection_head(features, dim)
        else:
            self.project = nn.Linear(features, dim)
        blocks = trunk_blocks(self.trunk)
        self._frozen_block_count = _frozen_block_count(name, trunk, len(blocks))
        if self._frozen_block_count:
            # Parameters outside the blocks, such as a class token, are frozen too.
            self.trunk.requires_grad_(False)
            for block in blocks[self._frozen_block_count :]:
                block.requires_grad_(True)
        self._trunk_digest: str | None = None

    def _register_statistic(self, name: str, value: Tensor, channels: int) -> None:
        per_channel = value.float().view(-1, 1, 1).expand(channels, 1, 1)
        # Without a memory format, clone imports sympy on the meta device, which takes a second.
        copy = per_channel.clone(memory_format=torch.contiguous_format)
        self.register_buffer(name, copy)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode, but keep the layers that are not trained in evaluation mode.

        Frozen layers apply no dropout, and their BatchNorm statistics do not change.

        Args:
            mode: True for training mode, False for evaluation mode.

        Returns:
            The network itself.
        """
        super().train(mode)
        if self.config["trunk"] == "frozen":
            self.trunk.eval()
            return self  # everything below is in evaluation mode already, and the loops are slow
        for block in trunk_blocks(self.trunk)[: self._frozen_block_count]:
            block.eval()
        if self.config["pretrained"]:
            for module in self.trunk.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """Return the trainable parameters as parameter groups of an optimiser.

        Args:
            rate: Learning rate. A pretrained trunk gets a tenth of it, the matrices of our own
                networks 16 times as much.

        Returns:
            Groups with the keys ``params`` and ``lr``. The group of the weights that
            :class:`stages.embedding.muon.Muon` takes as matrices has ``orthogonal``, True.
        """
        trunk_parameters: list[nn.Parameter] = []
        other_parameters: list[nn.Parameter] = []
        matrices: list[nn.Parameter] = []
        # Networks of our own have BatchNorm or L2 normalisation after each layer.
        is_scale_free = self.config["name"] in OWN_TRUNKS
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            if self.config["pretrained"] and name.startswith("trunk."):
                trunk_parameters.append(parameter)
            elif is_scale_free and parameter.ndim > 1:
                matrices.append(parameter)
            else:
                other_parameters.append(parameter)
        groups = [
            {"params": other_parameters, "lr": rate},
            {"params": trunk_parameters, "lr": rate * TRUNK_LEARNING_RATE_FACTOR},
            {
                "params": matrices,
                "lr": min(1.0, rate * MATRIX_LEARNING_RATE_FACTOR),
                "orthogonal": True,
            },
        ]
        return [group for group in groups if group["params"]]

    def load_trunk(self, tensors: Mapping[str, Tensor], *, where: str) -> None:
        """Load pretrained weights into a library trunk.

        Args:
            tensors: Weights and buffers, see :func:`stages.network.library_weights.fit_weights`.
            where: Origin of the weights, for the error message.

        Raises:
            CheckpointError: If a tensor is missing, unknown or of another shape.
        """
        assert isinstance(self.trunk, LibraryTrunk)
        given = fit_weights(self.trunk, str(self.config["name"]), tensors, where=where)
        # Copy instead of load_state_dict: some networks require extra state there.
        for name, value in self.trunk.body.state_dict().items():
            value.copy_(given.get(name, value))
        self._trunk_digest = None

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights and buffers, see :meth:`torch.nn.Module.load_state_dict`."""
        self._trunk_digest = None
        state = OrderedDict(state_dict)
        # The versions of the layers: files have none, and torchvision's mnasnet needs its own.
        # torch keeps them in an attribute that its type does not have.
        state._metadata = self.state_dict()._metadata  # type: ignore[attr-defined]
        return super().load_state_dict(state, *args, **kwargs)

    def trunk_digest(self) -> str | None:
        """Compute the digest of the trunk's weights, of its side and of the pixel scaling.

        It identifies the features that a frozen trunk computes.

        Returns:
            The digest, or None if the trunk is trained.
        """
        if self.config["trunk"] == "frozen" and self._trunk_digest is None:
            tensors = {
                name: value
                for name, value in self.state_dict().items()
                if not name.startswith("project.")
            }
            if self.config.get("side", self.config["size"]) != self.config["size"]:
                tensors["side"] = torch.tensor(self.config["side"])
            self._trunk_digest = state_digest(tensors)
        return self._trunk_digest

    def features(self, images: Tensor) -> Tensor:
        """Compute trunk features, without gradients if the trunk is frozen.

        Args:
            images: uint8, or floating point in [0, 255], shape (N, C, S, S).

        Returns:
            Features, floating point, shape (N, F).
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config["trunk"] != "frozen"):
            # Library trunks have three means: grey images are broadcast to three channels.
            pixels = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
            if pixels.shape[-1] < MIN_SIDE:
                pixels = F.interpolate(
                    pixels, size=(MIN_SIDE, MIN_SIDE), mode="bilinear", align_corners=False
                )
            features: Tensor = self.trunk(pixels.contiguous(memory_format=torch.channels_last))
            return features

    def forward(self, images: Tensor) -> Tensor:
        """Embed images or trunk features.

        Args:
            images: Images, shape (N, C, S, S), or trunk features, shape (N, F), both as for
                :meth:`features`.

        Returns:
            Unit vectors, float32, shape (N, dim).
        """
        features = images if images.ndim == 2 else self.features(images)
        return unit_rows(self.project(features))


def _frozen_block_count(name: str, trunk: str, blocks: int) -> int:
    """Return how many of the trunk's blocks are not trained."""
    if trunk == "tune":
        return 0
    if trunk == "frozen":
        return blocks
    trained = int(trunk.removeprefix("last-"))
    if trained > blocks:
        problem = f"{name} has {blocks} blocks; use last-{blocks} or fewer"
        raise SettingsError("trunk", trunk, problem)
    return blocks - trained


def to_device(network: nn.Module, device: torch.device) -> Any:
    """Move a network to a device and to the channels-last layout, which convolutions run faster in.

    Args:
        network: Any network. It is moved in place.
        device: Target device.

    Returns:
        The same network.
    """
    return network.to(device).to(memory_format=torch.channels_last)


def build_network(config: Mapping[str, Any]) -> EmbeddingNet:
    """Build the network that a checkpoint describes, with random weights.

    Args:
        config: The ``network`` entry of the checkpoint's record, see ``EmbeddingNet.config``.

    Returns:
        The network.

    Raises:
        SettingsError: If the trunk cannot be built.
    """
    return EmbeddingNet(**{"side": UNRECORDED, **config})
