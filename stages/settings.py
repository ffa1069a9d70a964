"""Settings: one frozen dataclass per stage, with every default written once.

The command line reads its defaults from here, so this module imports nothing slow.
"""

import dataclasses
import math
import re
from dataclasses import dataclass, fields
from typing import Any, get_args, get_origin

from stages.errors import SettingsError

AUTO = "auto"  # the network is chosen from the images
EFFICIENTNETS = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
NETWORKS = (AUTO, "conv", "conv-deep", *EFFICIENTNETS)
LIBRARIES = ("torchvision:", "timm:")  # prefixes of a library's network
PML = "pml:"  # prefix of a loss or miner of pytorch-metric-learning
MININGS = ("batch-all", "batch-hard", "semi-hard", "random")
# With a loss pml:NAME, which does not use them, these fields keep their default, now or in earlier
# versions, so that checkpoints of those still load.
UNUSED_VALUES = {"mining": ("semi-hard", "batch-all"), "margin": (0.2, 0.1)}
DISTANCES = ("euclidean", "squared")
RESIZES = ("pad-repeat", "pad", "crop", "stretch")
JPEGS = ("reduced", "full")
# Embeddings in use have at most some 4,000 dimensions. At this one, the projection of a conv
# network has 50 million weights, and training takes 1 GB for it.
MAX_DIM = 4096
REJECT = 0.05  # typicality below which an image is rejected as unknown, by default
MAX_ROUNDS = 1_000_000  # epochs or iterations; far more than any training needs
ADDED = {"added": True}  # metadata of a field that records of earlier versions do not have


def _check_types(settings: Any) -> None:
    """Raise SettingsError for a value that is not of its field's type."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        types = tuple(get_origin(kind) or kind for kind in get_args(field.type) or (field.type,))
        accepted = (*types, int) if float in types else types
        if isinstance(value, accepted) and (bool in types or not isinstance(value, bool)):
            continue
        names = {
            float: "a number",
            int: "a whole number",
            str: "a text",
            bool: "True or False",
            dict: "a table",
        }
        allowed = next(name for kind, name in names.items() if kind in types)
        problem = f"of type {type(value).__name__}; use {allowed}"
        raise SettingsError(field.name, repr(value)[:100], problem)


def _require(condition: bool, field: str, value: object, allowed: str) -> None:
    if not condition:
        raise SettingsError(field, value, f"out of range; use {allowed}")


def _require_count(settings: object, field: str, largest: int) -> None:
    value = getattr(settings, field)
    allowed = f"a whole number from 1 to {largest:,}"
    _require(value is None or 1 <= value <= largest, field, value, allowed)


def _is_pml(name: str) -> bool:
    """Return True for ``pml:NAME``, where NAME can be the name of a class."""
    return name.startswith(PML) and name.removeprefix(PML).isidentifier()


def _is_json(value: Any) -> bool:
    """Return True if a record can hold a value: JSON without infinite or very long numbers."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_json(item) for item in value)
    if isinstance(value, int | float):
        return abs(value) < 1e18 if isinstance(value, int) else math.isfinite(value)
    return value is None or isinstance(value, str)


def _require_seed(field: str, seed: int) -> None:
    _require(0 <= seed < 2**32, field, seed, "0 to 4294967295")


@dataclass(frozen=True)
class ReadSettings:
    """Settings for reading a data source: image format and split.

    Raises:
        SettingsError: If a value has the wrong type or is out of range.

    Attributes:
        size: Side of the square images in pixels, 4 to 1024. ``None``: the images' own size if
            all are squares of one size of at most 64 pixels, else 64.
        channels: Number of channels, 1 or 3. ``None``: 1 if every image is grey, else 3.
        resize: How an image is fitted to the square, one of ``RESIZES``.
        jpeg: How large JPEG images are decoded, one of ``JPEGS``: ``reduced`` to a half, a quarter
            or an eighth, which is faster, or in ``full``. A data set without an image that is
            large enough has ``full``. Records of earlier versions mean ``full``.
        split_seed: Seed of the random split.
        val: Share of the images for validation, if the source has no validation split; 0 for none.
        test: Share of the images for testing, if the source has no test split; 0 for none.
        max_unreadable: Largest share of unreadable images that may be skipped, 0 to 1.
        unseen_classes: Classes of which every image is tested and none is trained on: their
            number, at least 2, or as a float their share of the classes; 0 for none.
    """

    size: int | None = None
    channels: int | None = None
    resize: str = "pad-repeat"
    split_seed: int = 0
    val: float = 0.1
    test: float = 0.2
    max_unreadable: float = 0.25
    unseen_classes: int | float = 0
    jpeg: str = dataclasses.field(default="reduced", metadata=ADDED)

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self.size is None or 4 <= self.size <= 1024, "size", self.size, "4 to 1024 pixels")
        _require(self.channels in (None, 1, 3), "channels", self.channels, "1 or 3")
        _require_seed("split_seed", self.split_seed)
        _require(self.resize in RESIZES, "resize", self.resize, ", ".join(RESIZES))
        _require(self.jpeg in JPEGS, "jpeg", self.jpeg, ", ".join(JPEGS))
        for field in ("val", "test"):
            share = getattr(self, field)
            _require(0 <= share < 0.9, field, share, "a share from 0 to below 0.9")
        unreadable = self.max_unreadable
        _require(0 <= unreadable <= 1, "max_unreadable", unreadable, "a share from 0 to 1")
        unseen = self.unseen_classes
        possible = unseen >= 2 if isinstance(unseen, int) else 0 < unseen < 1
        allowed = "a whole number of at least 2, a share above 0 and below 1, or 0 for none"
        _require(unseen == 0 or possible, "unseen_classes", unseen, allowed)
        enough = self.val + self.test < 0.95
        _require(enough, "val", self.val, "shares that leave images for training")


@dataclass(frozen=True)
class EmbedSettings:
    """Settings of stage one: network, loss and training.

    ``None`` means that the value is chosen from the data.

    Raises:
        SettingsError: If a value has the wrong type or is out of range.

    Attributes:
        network: Architecture: one of ``NETWORKS``, ``torchvision:NAME`` or ``timm:NAME``. The
            commands replace ``auto`` by a network that suits the images; elsewhere it is ``conv``.
        weights: Initial weights of the trunk: ``none`` (random), ``default`` (the library's
            ImageNet weights) or a file.
        trunk: Layers of the trunk to train: ``tune`` (all), ``frozen`` (none) or ``last-N`` (the
            last N blocks).
        dim: Dimension of the embedding, at most ``MAX_DIM``.
        mining: Triplet mining mode, one of ``MININGS``; see
            :func:`stages.embedding.loss.triplet_loss`. With a loss of pytorch-metric-learning:
            ``semi-hard`` for no miner, or ``pml:NAME``, the class name of its miner.
        margin: Triplet margin, in the unit of ``distance``. ``None``: the soft margin.
        distance: Distance between unit vectors in the triplet loss, one of ``DISTANCES``.
        classes_per_batch: Classes per batch, P. ``None``: see
            :func:`stages.embedding.sampler.plan_batches`.
        images_per_class: Images per class and batch, K. ``None``: see ``plan_batches``.
        epochs: Number of epochs; each contains every training image at least once. ``None``: see
            :func:`stages.embedding.schedule.plan_training`.
        lr: Peak learning rate, reached by linear warm-up and followed by cosine decay to zero.
            The matrices of ``conv`` and ``conv-deep`` have 16 times this rate, see
            :class:`stages.embedding.muon.Muon`.
        augment: Shift, rotate and scale training images at random, less and less in the course of
            training.
        patience: Stop after this many epochs without a better validation score. ``None``: never.
            The learning rate decays to zero, so the last epochs are usually the best.
        seed: Random seed of training.
        loss: ``triplet``, or ``pml:NAME``, the class name of a loss of pytorch-metric-learning.
        loss_options: Parameters of a loss of pytorch-metric-learning, by name.
        mining_options: Parameters of a miner of pytorch-metric-learning, by name.
    """

    network: str = AUTO
    weights: str = "none"
    trunk: str = "tune"
    dim: int = 128
    mining: str = "semi-hard"
    margin: float | None = 0.2
    distance: str = "euclidean"
    classes_per_batch: int | None = None
    images_per_class: int | None = None
    epochs: int | None = None
    lr: float = 3e-3
    augment: bool = True
    patience: int | None = None
    seed: int = 0
    loss: str = dataclasses.field(default="triplet", metadata=ADDED)
    loss_options: dict[str, Any] | None = dataclasses.field(default=None, metadata=ADDED)
    mining_options: dict[str, Any] | None = dataclasses.field(default=None, metadata=ADDED)

    @property
    def architecture(self) -> str:
        """The network to build: ``conv`` for ``auto``, else ``network``."""
        return "conv" if self.network == AUTO else self.network

    @property
    def from_library(self) -> bool:
        """True if the network comes from torchvision or timm."""
        return not self.architecture.startswith("conv")

    def __post_init__(self) -> None:
        _check_types(self)
        self._check_network()
        _require_count(self, "dim", MAX_DIM)
        _require_count(self, "epochs", MAX_ROUNDS)
        _require_count(self, "patience", MAX_ROUNDS)
        self._check_loss()
        _require(self.distance in DISTANCES, "distance", self.distance, ", ".join(DISTANCES))
        farthest = 2 if self.distance == "euclidean" else 4  # between unit vectors
        possible = self.margin is None or 0 < self.margin <= farthest
        allowed = f"a distance above 0 and up to {farthest}, or soft"
        _require(possible, "margin", self.margin, allowed)
        for field in ("classes_per_batch", "images_per_class"):
            value = getattr(self, field)
            allowed = "at least 2: a triplet needs two classes, and two images of one of them"
            _require(value is None or value >= 2, field, value, allowed)
        _require(0 < self.lr <= 1, "lr", self.lr, "a rate above 0 and up to 1")
        _require_seed("seed", self.seed)

    def _check_loss(self) -> None:
        is_pml = _is_pml(self.loss)
        example = f", such as pml:{self.loss}" if self.loss.isidentifier() else ""
        allowed = f"triplet or pml:NAME{example}"
        _require(self.loss == "triplet" or is_pml, "loss", self.loss, allowed)
        known = self.mining in MININGS or _is_pml(self.mining)
        example = f", such as pml:{self.mining}" if self.mining.isidentifier() else ""
        _require(known, "mining", self.mining, f"{', '.join(MININGS)} or pml:NAME{example}")
        if _is_pml(self.mining) and not is_pml:
            problem = "works with a loss of pytorch-metric-learning only; use one, or another mode"
            raise SettingsError("mining", self.mining, problem)
        if is_pml and self.mining not in UNUSED_VALUES["mining"] and not _is_pml(self.mining):
            problem = "is a mode of the triplet loss; use a miner such as pml:MultiSimilarityMiner"
            raise SettingsError("mining", self.mining, problem)
        for field_name, owner in (("loss_options", self.loss), ("mining_options", self.mining)):
            options = getattr(self, field_name)
            if options and not _is_pml(owner):
                problem = f"{owner} has no parameters; they belong to pml:NAME"
                raise SettingsError(field_name, str(options)[:100], problem)
            if not _is_json(options):
                problem = "use a table of texts, truth values, finite numbers and lists of these"
                raise SettingsError(field_name, str(options)[:100], problem)
        for field_name in ("margin", "distance"):
            value = getattr(self, field_name)
            unused = UNUSED_VALUES.get(field_name, (getattr(EmbedSettings, field_name),))
            if is_pml and value not in unused:
                problem = "belongs to the triplet loss; give a loss pml:NAME its own loss options"
                raise SettingsError(field_name, "soft" if value is None else value, problem)

    def _check_network(self) -> None:
        library, _, name = self.network.partition(":")
        known = self.network in NETWORKS or (f"{library}:" in LIBRARIES and name != "")
        if not known:
            is_name = re.fullmatch(r"[A-Za-z][\w.]{2,99}", self.network) is not None
            example = self.network if is_name else "resnet18"
            problem = (
                f"unknown; use one of {', '.join(NETWORKS)}, or torchvision:NAME or timm:NAME for "
                f"a network of these libraries, such as timm:{example}"
            )
            raise SettingsError("network", self.network, problem)
        _require(self.weights != "", "weights", self.weights, "none, default or a file")
        if self.weights != "none" and self.network == AUTO:
            problem = "belongs to a network; name one, such as efficientnet-lite0"
            raise SettingsError("weights", self.weights, problem)
        if self.weights != "none" and not self.from_library:
            raise SettingsError(
                "weights",
                self.weights,
                f"network {self.network} has no pretrained weights; choose a network that has, "
                "such as torchvision:resnet18",
            )
        known = re.fullmatch(r"tune|frozen|last-[1-9][0-9]{0,3}", self.trunk) is not None
        _require(known, "trunk", self.trunk, "tune, frozen, or last-N such as last-2")


@dataclass(frozen=True)
class ClassifySettings:
    """Settings of stage two: dropout, a linear layer and log-softmax on frozen embeddings.

    Raises:
        SettingsError: If a value has the wrong type or is out of range.

    Attributes:
        dropout: Probability of zeroing each coordinate of an embedding in training, in [0, 1).
        max_iter: Largest number of L-BFGS iterations per weight decay. L-BFGS stops earlier if it
            has converged.
        balance: Weight classes inversely to their frequency.
        seed: Random seed of the dropout masks.
    """

    dropout: float = 0.5
    max_iter: int = 300
    balance: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _check_types(self)
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "a share from 0 to below 1")
        _require_count(self, "max_iter", MAX_ROUNDS)
        _require_seed("seed", self.seed)
