"""What a run can be told: one frozen dataclass a stage, each default written once.

The commands read their defaults from here, so this module imports nothing heavy.
"""

import re
from dataclasses import dataclass

from stages.errors import SettingsError

NETWORKS = ("conv", "conv-deep", "efficientnet-lite0")


LIBRARIES = ("torchvision:", "timm:")  # a network's name may follow


MININGS = ("batch-all", "batch-hard", "semi-hard", "random")


DISTANCES = ("euclidean", "squared")


RESIZES = ("pad-repeat", "pad", "crop", "stretch")


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise SettingsError(name, value, f"out of range; use {wanted}")


def _require_count(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _require(value is None or value >= 1, name, value, "a whole number of at least 1")


@dataclass(frozen=True)
class ReadSettings:
    """How a source becomes three splits of equally sized images.

    size: side of the square images in pixels; None: the images' own size if they share one square
        size of at most 64, else 64.
    channels: 1 or 3; None: 1 if every image is grey, else 3.
    resize: how an image fills the square, one of `RESIZES`.
    split_seed, val, test: the split of what the source does not split itself; shares of all images.
    max_unreadable: the largest share of unreadable images with which to go on without them.
    """

    size: int | None = None
    channels: int | None = None
    resize: str = "pad-repeat"
    split_seed: int = 0
    val: float = 0.1
    test: float = 0.2
    max_unreadable: float = 0.25

    def __post_init__(self) -> None:
        _require(self.size is None or 4 <= self.size <= 1024, "size", self.size, "4 to 1024 pixels")
        _require(self.channels in (None, 1, 3), "channels", self.channels, "1 or 3")
        _require(self.resize in RESIZES, "resize", self.resize, ", ".join(RESIZES))
        for name in ("val", "test"):
            share = getattr(self, name)
            _require(0 < share < 0.9, name, share, "a share between 0 and 0.9")
        _require(
            0 <= self.max_unreadable <= 1,
            "max_unreadable",
            self.max_unreadable,
            "a share from 0 to 1",
        )
        _require(
            self.val + self.test < 0.95, "val", self.val, "shares that leave images to train on"
        )


@dataclass(frozen=True)
class EmbedSettings:
    """Stage one. `None` means: chosen from the data, by the rule that the field's line states.

    network: pixels to features: one of `NETWORKS`, or torchvision:NAME, or timm:NAME; see `stages.network`.
    weights: what its trunk starts from: `none` (random), `default` (the library's, for ImageNet) or a file.
    trunk: what of it is trained: `tune` (all of it), `frozen` (nothing) or `last-N` (its last N blocks).
    dim: length of an embedding vector.
    mining, distance: which triplets count, and how far is measured; see `stages.loss.triplet_loss`.
    margin: of the triplet loss, in the unit of the distance between unit vectors; None: the soft margin.
    classes_per_batch, images_per_class: P and K of the batches; None: see `stages.sampler.plan_batches`.
    epochs: None: 20, or as many as make 400 steps. An epoch draws each image at least once.
    lr: peak learning rate of AdamW (it warms up, then decays to zero along a cosine).
    augment: whether training images are shifted, turned and scaled a little.
    patience: epochs without a better validation score after which to stop; None: never, since the rate decays to zero and
        the last epochs are usually the best.
    seed: of everything random in training.
    """

    network: str = "conv"
    weights: str = "none"
    trunk: str = "tune"
    dim: int = 128
    mining: str = "batch-all"
    margin: float | None = 0.1
    distance: str = "euclidean"
    classes_per_batch: int | None = None
    images_per_class: int | None = None
    epochs: int | None = None
    lr: float = 3e-3
    augment: bool = True
    patience: int | None = None
    seed: int = 0

    @property
    def from_library(self) -> bool:
        """Whether the network is a library's, not one of ours."""
        return not self.network.startswith("conv")

    def __post_init__(self) -> None:
        library, _, name = self.network.partition(":")
        known = self.network in NETWORKS or (f"{library}:" in LIBRARIES and name != "")
        _require(
            known,
            "network",
            self.network,
            f"{', '.join(NETWORKS)}, torchvision:NAME (such as resnet18) or timm:NAME",
        )
        _require(self.weights != "", "weights", self.weights, "none, default or a file")
        if self.weights != "none" and not self.from_library:
            raise SettingsError(
                "weights",
                self.weights,
                f"network {self.network} has no pretrained weights; choose a network such as torchvision:resnet18",
            )
        _require(
            re.fullmatch(r"tune|frozen|last-[1-9]\d*", self.trunk) is not None,
            "trunk",
            self.trunk,
            "tune, frozen, or last-N such as last-2",
        )
        _require_count(self, "dim", "epochs", "patience")
        _require(self.mining in MININGS, "mining", self.mining, ", ".join(MININGS))
        _require(self.distance in DISTANCES, "distance", self.distance, ", ".join(DISTANCES))
        farthest = 2 if self.distance == "euclidean" else 4
        _require(
            self.margin is None or 0 < self.margin <= farthest,
            "margin",
            self.margin,
            f"a distance above 0 and up to {farthest}, or soft",
        )
        for name in ("classes_per_batch", "images_per_class"):
            value = getattr(self, name)
            _require(
                value is None or value >= 2,
                name,
                value,
                "at least 2: a triplet needs two classes, two images of one",
            )
        _require(0 < self.lr <= 1, "lr", self.lr, "a rate above 0 and up to 1")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")


@dataclass(frozen=True)
class ClassifySettings:
    """Stage two: dropout + linear + log-softmax on frozen vectors.

    dropout: share of each vector's coordinates zeroed in training.
    max_iter: L-BFGS iterations at most, for each strength of weight decay; it stops when it has converged.
    balance: whether every class weighs alike in the loss, however many images it has.
    seed: of the dropout masks.
    """

    dropout: float = 0.5
    max_iter: int = 300
    balance: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "a share from 0 to below 1")
        _require_count(self, "max_iter")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
