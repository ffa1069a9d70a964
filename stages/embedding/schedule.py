"""Schedule of stage one: batches, epochs, learning rate and validated epochs."""

import math

from torch import Tensor

from stages.distributed import rank_and_world_size
from stages.embedding.sampler import BATCH, BatchPlan, plan_batches
from stages.settings import EmbedSettings

# Validated epochs per run. With short epochs, validating each would take half of the training time.
VALIDATIONS = 10
# With Muon, our own networks need a shorter warm-up and fewer steps than those of a library.
WARM_UP, LIBRARY_WARM_UP = 0.05, 0.2  # share of all steps
EPOCHS, STEPS = 15, 300  # minimum of each
LIBRARY_EPOCHS, LIBRARY_STEPS = 20, 400
TUNED_EPOCHS, TUNED_STEPS = 10, 50  # minimum of each, if a pretrained trunk is trained
# With up to FEW_IMAGES training images the strength of the augmentation stays 1; with MANY_IMAGES
# or more it ends at 0.
FEW_IMAGES, MANY_IMAGES = 300, 30_000
LARGE_BATCH = 32  # images per batch, if a library's trunk is trained


def plan_training(labels: Tensor, settings: EmbedSettings) -> tuple[BatchPlan, int]:
    """Choose the batches and the number of epochs where the settings leave them open.

    The default number of epochs is 15, or more until there are 300 steps; ``conv-deep`` trains
    three times as long. For a library's network these are 20 and 400. A library's trunk that is
    trained gets batches of 32 images, because more would exceed the memory of most machines. A
    pretrained trunk that is trained gets at least 10 epochs and 50 steps. If K is open, it is
    rounded up to a multiple of the world size.

    Args:
        labels: Class index of each training image, int64, shape (N,).
        settings: Settings of stage one.

    Returns:
        P, K and the number of batches per epoch; and the number of epochs.

    Raises:
        SettingsError: If the batches cannot be formed, as in
            :func:`stages.embedding.sampler.plan_batches`.

    Example:
        >>> import torch
        >>> labels = torch.arange(10).repeat_interleave(160)  # 10 classes with 160 images each
        >>> plan_training(labels, EmbedSettings())
        (BatchPlan(classes_per_batch=10, images_per_class=16, per_epoch=10), 30)
    """
    tuned = settings.from_library and settings.trunk != "frozen"
    plan = plan_batches(
        labels,
        classes_per_batch=settings.classes_per_batch,
        images_per_class=settings.images_per_class,
        batch=LARGE_BATCH if tuned else BATCH,
        multiple_of=rank_and_world_size()[1],
    )
    min_epochs, min_steps = EPOCHS, STEPS
    if settings.from_library:
        min_epochs, min_steps = LIBRARY_EPOCHS, LIBRARY_STEPS
    if tuned and settings.weights != "none":
        min_epochs, min_steps = TUNED_EPOCHS, TUNED_STEPS
    epoch_multiplier = 3 if settings.network == "conv-deep" else 1
    epochs = epoch_multiplier * max(min_epochs, math.ceil(min_steps / plan.per_epoch))
    return plan, settings.epochs or epochs


def is_validated(epoch: int, epochs: int) -> bool:
    """Return True if an epoch is validated.

    The last epoch is, and so are at least ten evenly spaced ones, fewer than twenty in all. With
    fewer than 20 epochs all are.

    Args:
        epoch: Number of the epoch, from 1.
        epochs: Number of epochs of the run.
    """
    return epoch % max(1, epochs // VALIDATIONS) == 0 or epoch == epochs


def augmentation_strength(step: int, steps: int, images: int) -> float:
    """Return the strength of the augmentation, which decreases linearly from 1.

    The more training images there are, the less a network can learn them by heart, and the lower is
    the strength at the end: 1 for up to 300 images and 0 from 30,000 on, linear in the logarithm in
    between. `benchmarks/defaults.py` has measurements.

    Args:
        step: Steps done so far.
        steps: Steps of the whole run.
        images: Number of training images.

    Example:
        >>> [augmentation_strength(step, 4, 3_000) for step in range(5)]
        [1.0, 0.875, 0.75, 0.625, 0.5]
    """
    share = math.log(images / FEW_IMAGES) / math.log(MANY_IMAGES / FEW_IMAGES)
    return 1 - min(1.0, max(0.0, share)) * step / steps


def learning_rate_factor(step: int, steps: int, *, from_library: bool = False) -> float:
    """Return the learning rate as a share of its peak: linear warm-up, then cosine decay to 0.

    Args:
        step: Steps done so far.
        steps: Steps of the whole run.
        from_library: True for a network of a library.

    Example:
        >>> [round(learning_rate_factor(step, 10, from_library=True), 2) for step in range(11)]
        [0.5, 1.0, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04, 0.0]
    """
    warm_up = max(1, round((LIBRARY_WARM_UP if from_library else WARM_UP) * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
