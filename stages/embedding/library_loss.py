"""Training with a loss of pytorch-metric-learning, optionally with one of its miners."""

import copy
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.distance import squared_distance_factors
from stages.embedding.library_parts import LOSS, MINER, build, describe, quiet
from stages.embedding.sampler import BatchPlan
from stages.embedding.summation import float64_sum
from stages.errors import SettingsError
from stages.settings import PML, EmbedSettings

# Learning rate of a loss's own weights, such as the proxies of classes, as a multiple of the
# network's. Recipes of proxy losses use 100 with a rate of 1e-4; our rate is 30 times as high.
# Among 1, 10 and 100, 1 had the best mean over two image sets and three losses on validation
# images, with one seed, but it was not best for each: `benchmarks/losses.py`.
RATE_FACTOR = 1
SMALLEST = BatchPlan(classes_per_batch=2, images_per_class=2, per_epoch=1)


class LibraryBatchLoss(NamedTuple):
    """Loss of a batch.

    Attributes:
        loss: Loss, a scalar with gradient.
        mean_distance: Mean Euclidean distance over all pairs of rows, float64, a scalar.
        active_share: None, because not every loss of the library has triplets.
    """

    loss: Tensor
    mean_distance: Tensor
    active_share: None = None


class LibraryLoss(nn.Module):
    """A loss of pytorch-metric-learning with its miner.

    The parameters are the weights of the loss, such as the proxies of classes. They are trained
    with the network and saved in the training state, but not in the checkpoint.

    Random numbers come from torch's global generator on the CPU, so a resumed run draws the same.

    Args:
        settings: Settings of stage one, with a loss ``pml:NAME``.
        classes: Labels of the classes that are trained on, ascending, int64, shape (C,). Weights
            of other classes would be negatives only.

    Raises:
        SettingsError: If the library is not installed, or has no such loss or parameter.
    """

    classes: Tensor

    def __init__(self, settings: EmbedSettings, classes: Tensor) -> None:
        super().__init__()
        sizes = {
            "num_classes": len(classes),
            "embedding_size": settings.dim,
            "descriptors_dim": settings.dim,  # of P2SGradLoss
        }
        self.name, self.mining = settings.loss, settings.mining
        self.register_buffer("classes", classes, persistent=False)
        name = settings.loss.removeprefix(PML)
        self.loss = build("losses", name, settings.loss_options or {}, sizes, LOSS)
        self.miner = None
        if settings.mining.startswith(PML):
            name = settings.mining.removeprefix(PML)
            self.miner = build("miners", name, settings.mining_options or {}, sizes, MINER)
        # Attributes that the library adds later are results of the last batch, not a state.
        self.plain_state: list[tuple[str, str]] = []
        for path, module in self.named_modules():
            self.plain_state += [(path, key) for key in _plain_values(module)]

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of a batch.

        Args:
            vectors: Embeddings, floating point, shape (B, D). Half precision is converted to
                float32.
            labels: Labels, int64, shape (B,), on the same device.

        Returns:
            The loss, a scalar with gradient.

        Raises:
            SettingsError: If the library cannot compute the loss of such a batch.
        """
        points = vectors if vectors.dtype == torch.float64 else vectors.float()
        if vectors.device.type == "cuda":
            # The state of this generator is not saved. It must also be the same on all ranks.
            torch.cuda.manual_seed(int(torch.randint(2**62, ())))
        for path, key in self.plain_state:
            module = self.get_submodule(path)
            value = getattr(module, key)
            if isinstance(value, Tensor):  # DynamicSoftMarginLoss keeps the last batch's graph
                setattr(module, key, value.detach())
        labels = torch.searchsorted(self.classes, labels)  # indices of the classes
        try:
            with torch.autocast(vectors.device.type, enabled=False), quiet():
                indices = self.miner(points, labels) if self.miner else None
                loss = self.loss(points, labels, indices)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise TypeError("the result is not one number; use another reducer")
            return loss.reshape(())
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the library raises assertions and plain exceptions too
            pair = f"{self.name} with {self.mining}" if self.miner else self.name
            raise SettingsError(
                "loss",
                self.name,
                f"{pair} cannot be computed for {len(labels)} images of "
                f"{len(labels.unique())} classes ({describe(error)}); change the loss options, "
                "the miner or its options",
            ) from error

    def saved_state(self) -> dict[str, Tensor]:
        """Return everything that training changes, as tensors by name.

        The library keeps counters, such as the position in the queue of ``CrossBatchMemory``, and
        some tensors as plain attributes. They are included.
        """
        state: dict[str, Tensor] = self.state_dict()
        for path, key in self.plain_state:
            value = getattr(self.get_submodule(path), key)
            # Python's floats have double precision: 0.3 must be 0.3 after resuming.
            dtype = torch.float64 if isinstance(value, float) else None
            state[f"{path}.{key}"] = torch.as_tensor(value, dtype=dtype).detach()
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore a state whose names, shapes and dtypes are those of :meth:`saved_state`."""
        with torch.no_grad():
            for name, value in self.state_dict().items():
                value.copy_(state[name])
        for path, key in self.plain_state:
            module, saved = self.get_submodule(path), state[f"{path}.{key}"]
            value = getattr(module, key)
            is_tensor = isinstance(value, Tensor)
            setattr(module, key, saved.clone() if is_tensor else type(value)(saved.item()))


def _plain_values(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that are tensors or numbers, but not in its state dict."""
    values = {}
    for name, value in vars(module).items():
        if name != "training" and isinstance(value, Tensor | int | float):
            values[name] = value
    return values


def new_library_loss(
    settings: EmbedSettings, classes: Tensor, plan: BatchPlan = SMALLEST
) -> LibraryLoss | None:
    """Return the loss of pytorch-metric-learning that the settings name, None for our own.

    The loss of a batch of random vectors is computed first, to find wrong parameters before
    training. Initial weights come from torch's global generator.

    Args:
        settings: Settings of stage one.
        classes: Labels of the classes that are trained on, ascending, int64, shape (C,).
        plan: Size of the batches.

    Raises:
        SettingsError: If the library is not installed, has no such loss or parameter, or cannot
            compute the loss.
    """
    if not settings.loss.startswith(PML):
        return None
    loss = LibraryLoss(settings, classes)
    with torch.random.fork_rng(devices=[]):
        chosen = torch.linspace(0, len(classes) - 1, plan.classes_per_batch).long()
        labels = classes[chosen].repeat_interleave(plan.images_per_class)
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(len(labels), settings.dim, generator=generator)
        vectors = F.normalize(vectors).requires_grad_()
        value = copy.deepcopy(loss)(vectors, labels)
        (gradient,) = torch.autograd.grad(value, vectors)
    if not (math.isfinite(value.item()) and bool(gradient.isfinite().all())):
        problem = "the loss of random vectors or its gradient is not finite; change its options"
        raise SettingsError("loss", settings.loss, problem)
    return loss


def loss_parameter_groups(loss: LibraryLoss | None, rate: float) -> list[dict[str, Any]]:
    """Return the optimiser's parameter group of the loss's own weights, if it has any.

    Args:
        loss: Loss of the library, or None.
        rate: Peak learning rate of the network.

    Returns:
        No or one group. Its learning rate is ``RATE_FACTOR`` times the network's, and it has no
        weight decay, which would pull a threshold such as that of ``MarginLoss`` to 0.
    """
    parameters = list(loss.parameters()) if loss else []
    if not parameters:
        return []
    return [{"params": parameters, "lr": RATE_FACTOR * rate, "weight_decay": 0.0}]


def library_batch_loss(loss: LibraryLoss, vectors: Tensor, labels: Tensor) -> LibraryBatchLoss:
    """Compute the loss of a batch, and the mean distance that shows a collapse.

    Args:
        loss: Loss of the library.
        vectors: Embeddings, floating point, shape (B, D).
        labels: Class indices, int64, shape (B,).
    """
    value = loss(vectors, labels)
    points = vectors.detach().float()
    left, right = squared_distance_factors(points - points.mean(0))
    distances = (left @ right.T).clamp_(min=0).sqrt_()  # (B, B)
    pairs = max(1, len(points) * (len(points) - 1))
    return LibraryBatchLoss(value, float64_sum(distances.sum()) / pairs)
