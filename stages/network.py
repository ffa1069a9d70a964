"""The networks: pixels to unit vectors, and unit vectors to class probabilities."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.errors import CheckpointError, SettingsError
from stages.processes import gather_rows, place
from stages.records import Embeddings, Split

ADAPTIVE_ABOVE = 64  # pixels; beyond it the map is pooled to what a 64-pixel image has, or the last layer grows huge
SMALLEST = 28  # pixels; below it the four halvings leave nothing to see, so smaller images are enlarged first
LARGEST_SIDE = 512  # pixels; up to here a size is looked for at which a library's network runs
TRUNK_RATE = 0.1  # of the learning rate, for a pretrained trunk
HIDDEN = 512  # of the new layers on a library's network
BLOCK = 128  # images embedded at once; on a CPU a fifth faster than 512


class Pretrained(NamedTuple):
    """A library network's weights.

    tensors: by the library's names. mean, std: float32 (3,), of pixels in [0, 1]. digest: of the tensors. origin: a file's full
    path, or `default`.
    """

    tensors: Mapping[str, Tensor]
    mean: Tensor
    std: Tensor
    digest: str
    origin: str


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
        self.config = {"name": name, "channels": channels, "size": size, "dim": dim, "trunk": trunk, "pretrained": pretrained}
        self.trunk, features = make_trunk(name, channels, size)
        bands = 3 if isinstance(self.trunk, Backbone) else channels
        for buffer, value in (("mean", torch.zeros(1) if mean is None else mean), ("std", torch.ones(1) if std is None else std)):
            self.register_buffer(buffer, value.float().view(-1, 1, 1).expand(bands, 1, 1).clone())
        self.project = new_layers(features, dim) if isinstance(self.trunk, Backbone) else nn.Linear(features, dim)
        blocks = trunk_blocks(self.trunk)
        kept = 0 if trunk == "tune" else len(blocks) if trunk == "frozen" else max(0, len(blocks) - int(trunk.removeprefix("last-")))
        self._kept = kept  # blocks that training leaves alone
        if kept:
            self.trunk.requires_grad_(False)
            for block in blocks[kept:]:
                block.requires_grad_(True)
        self._digest: str | None = None

    def train(self, mode: bool = True) -> Self:
        """As in torch, but what isn't trained stays in evaluation mode: no dropout, no BatchNorm statistics that drift."""
        super().train(mode)
        fixed = [m for m in self.trunk.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if self.config["pretrained"] else []
        kept = [self.trunk] if self.config["trunk"] == "frozen" else trunk_blocks(self.trunk)[: self._kept]
        for module in (*kept, *fixed):
            module.eval()
        return self

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """What an optimiser trains: a pretrained trunk at a tenth of the rate of the rest."""
        slow: list[nn.Parameter] = []
        fast: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (slow if self.config["pretrained"] and name.startswith("trunk.") else fast).append(parameter)
        groups = (fast, rate), (slow, rate * TRUNK_RATE)
        return [{"params": parameters, "lr": each} for parameters, each in groups if parameters]

    def load_trunk(self, tensors: Mapping[str, Tensor], *, where: str) -> None:
        """Start the trunk from a library's weights, its classifier and auxiliary heads left out.

        where: their name for the message. Raises CheckpointError if a tensor is missing, left over or of another shape.
        """
        assert isinstance(self.trunk, Backbone)
        body, left_out = self.trunk.body, self.trunk.heads
        expected = body.state_dict()
        given = {name: value for name, value in tensors.items() if not name.startswith(left_out)}
        # BatchNorm's counter came to torch late: old files lack it, and nothing uses it.
        missing = [name for name in expected if name not in given and not name.endswith("num_batches_tracked")]
        unknown = [name for name in given if name not in expected]
        misshapen = [
            f"{name} {tuple(given[name].shape)} for {tuple(expected[name].shape)}"
            for name in expected
            if name in given and given[name].shape != expected[name].shape
        ]
        found = (("lacks", missing), ("also has", unknown), ("has other shapes:", misshapen))
        if wrong := [f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}" for what, names in found if names]:
            raise CheckpointError(
                f"{where}: not the weights of {self.config['name']} at size {self.config['size']}: it {'; it '.join(wrong)}; "
                "give the file of that very network, or another --network or --size"
            )
        for name, value in expected.items():  # not load_state_dict, which for some wants more than tensors and names
            value.copy_(given.get(name, value))
        self._digest = None

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        self._digest = None
        return super().load_state_dict(*arguments, **options)

    def trunk_digest(self) -> str | None:
        """Names what a frozen trunk makes of pixels: of its weights and the pixel scaling. None for a trunk that training moves."""
        if self.config["trunk"] == "frozen" and self._digest is None:
            self._digest = state_digest({name: value for name, value in self.state_dict().items() if not name.startswith("project.")})
        return self._digest

    def features(self, images: Tensor) -> Tensor:
        """What the trunk makes of images. images: uint8, or floating point in [0, 255], (N, C, S, S). Returns (N, F)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config["trunk"] != "frozen"):
            pixels = (images.to(self.mean.dtype) / 255 - self.mean) / self.std  # one grey channel becomes three alike for three means
            if pixels.shape[-1] < SMALLEST:
                pixels = F.interpolate(pixels, size=(SMALLEST, SMALLEST), mode="bilinear", align_corners=False)
            found: Tensor = self.trunk(pixels.contiguous(memory_format=torch.channels_last))
            return found

    def forward(self, images: Tensor) -> Tensor:
        """Unit vectors, float32 (N, dim), of images as `features` takes them, or of features (N, F)."""
        return unit_rows(self.project(images if images.ndim == 2 else self.features(images)))


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


class Backbone(nn.Module):
    """A library's classification network without its classifier: pixels (N, 3, S, S) to features (N, F).

    side: what smaller images are enlarged to, since each network has a size below which it does not run.
    heads: where its weights' names begin that are left out: the classifier's last layer and auxiliary heads.
    """

    def __init__(self, body: nn.Module, side: int, heads: tuple[str, ...]):
        super().__init__()
        self.body, self.side, self.heads = body, side, heads

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[-1] != self.side:
            pixels = F.interpolate(pixels, size=(self.side, self.side), mode="bilinear", align_corners=False)
        found: Tensor = self.body(pixels)
        return found.flatten(1)


def make_trunk(name: str, channels: int, size: int) -> tuple[nn.Module, int]:
    """A network's trunk, its weights random, and how many features it makes.

    name: one of `TRUNKS`, torchvision:NAME, timm:NAME, or efficientnet-lite0. Raises SettingsError for a name that the
    library doesn't have, a library that isn't there, or a size at which the network doesn't run.
    """
    if name in TRUNKS:
        return TRUNKS[name](channels, size)
    library, _, model = name.partition(":")
    build = partial(_from_torchvision, model) if library == "torchvision" else partial(_from_timm, name, model or "tf_efficientnet_lite0")
    least = max(size, 32)
    reason = ""
    for side in (least, *range(32 * math.ceil((least + 1) / 32), max(LARGEST_SIDE, least) + 1, 32)):
        try:  # some take multiples of 16 or 32 alone, or 75 pixels at least, or one size
            body, heads = build(side)
            with torch.no_grad():
                features = body.eval()(torch.zeros(1, 3, side, side)).flatten(1).shape[1]
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = reason or " ".join(str(error).split())[:200]
            continue
        return Backbone(body.train(), side, heads), features
    raise SettingsError(f"--network {name}: does not run on images of {size} x {size} ({reason}); give another --size")


def _from_torchvision(name: str, side: int) -> tuple[nn.Module, tuple[str, ...]]:
    """The network without its last layer, and the names left out of its weights."""
    from torchvision import models  # slow to import

    if name not in (names := models.list_models(module=models)):
        near = ", ".join(get_close_matches(name, names, 5, 0.3)) or "resnet18, inception_v3"
        raise SettingsError(f"--network torchvision:{name}: torchvision has no such network for classification; it has {near} and others")
    options: dict[str, Any] = {"image_size": side} if name.startswith("vit_") else {}
    if name in ("inception_v3", "googlenet"):
        # Their weights want pixels scaled in another way than those of the others, and do so themselves.
        options = {"aux_logits": False, "transform_input": True, "init_weights": True}
    body: nn.Module = models.get_model(name, weights=None, **options)
    last = [path for path, module in body.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    body.set_submodule(last, nn.Identity())
    return body, (f"{last}.", "AuxLogits.", "aux1.", "aux2.")


def _from_timm(name: str, model: str, side: int) -> tuple[nn.Module, tuple[str, ...]]:
    try:
        import timm
    except ImportError as error:
        extra = "offline" if name == "efficientnet-lite0" else "timm"
        raise SettingsError(f"--network {name}: needs the package timm; pip install 'embedding-pipeline[{extra}]'") from error
    if not timm.is_model(model):
        near = ", ".join(get_close_matches(model, timm.list_models(), 5, 0.3)) or "resnet18, efficientnet_b0"
        raise SettingsError(f"--network {name}: timm has no such network; it has {near} and others")
    body: nn.Module = timm.create_model(model, pretrained=False, num_classes=0)
    config: Any = body.pretrained_cfg
    heads = config.get("classifier") or ()
    return body, tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))


def new_layers(features: int, dim: int) -> nn.Module:
    """The fully connected layers that take the place of a library network's last one."""
    hidden = (nn.Linear(features, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU())
    return nn.Sequential(nn.Dropout(0.5), *hidden, nn.Dropout(0.5), nn.Linear(HIDDEN, dim))


def trunk_blocks(trunk: nn.Module) -> list[nn.Module]:
    """A trunk's parts that hold weights, from the pixels on: sequences, and what holds over half of all weights, are opened."""
    half = _weights(trunk) / 2

    def parts(module: nn.Module) -> list[nn.Module]:
        opened = type(module) in (nn.Sequential, nn.ModuleList) or (_weights(module) > half and len(list(module.children())) > 0)
        if opened:
            return [part for child in module.children() for part in parts(child)]
        return [module] if _weights(module) else []

    return parts(trunk)


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


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
    return network.to(device).to(memory_format=torch.channels_last)


def build_network(config: Mapping[str, Any]) -> EmbeddingNet:
    """The network that a checkpoint's `network` record describes, its weights not yet loaded."""
    return EmbeddingNet(**config)


def with_new_layers(network: EmbeddingNet, seed: int) -> EmbeddingNet:
    """A network with a frozen trunk as training started it: this trunk, and the layers that the seed draws."""
    torch.manual_seed(seed)
    fresh = build_network(network.config)
    kept = {name: value for name, value in network.state_dict().items() if not name.startswith("project.")}
    fresh.load_state_dict({**fresh.state_dict(), **kept})
    return fresh


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

    blocks: uint8 (b, C, S, S) each, or what else the network takes, anywhere, at least one. Returns float32 (N, D) on
    the CPU. The network is left in the mode it came in.
    """
    return evaluate(network, network, blocks, device=device)


def evaluate(network: nn.Module, function: Callable[[Tensor], Tensor], blocks: Iterable[Tensor], *, device: torch.device) -> Tensor:
    """`embed_images` by a part of the network."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return torch.cat([function(images.to(device)).cpu() for images in blocks])
    finally:
        network.train(training)


def has_features(network: nn.Module, split: Split) -> bool:
    """Whether this network's trunk has seen the split's images already."""
    return split.features is not None and isinstance(network, EmbeddingNet) and split.features.digest == network.trunk_digest()


def take_input(network: nn.Module, split: Split, which: Tensor | slice) -> Tensor:
    """What the network takes of some of a split's images: their features where its trunk has made them, else pixels."""
    if split.features and has_features(network, split):
        return split.features.values[split.rows[which], 0]
    return split.take(which)


def embed_split(network: nn.Module, split: Split, *, device: torch.device) -> Embeddings:
    """Embed a split, as `embed_images` does; the processes of a run share the work.

    From its features where this network's trunk has made them.
    """
    rank, world = place()
    share = -(-len(split) // world)
    rows = torch.arange(rank, share * world, world).clamp(max=len(split) - 1)  # equal shares: the end is padded
    own = embed_images(network, (take_input(network, split, part) for part in rows.split(BLOCK)), device=device)
    return Embeddings(gather_rows(own)[: len(split)], split.labels, split.classes)


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names, dtypes, shapes and values, whatever their memory layout, order or device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
