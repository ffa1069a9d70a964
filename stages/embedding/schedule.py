"""Batches, number of epochs, learning rate, and which epochs are validated."""

import math

from torch import Tensor

from stages.distributed import rank_and_world_size
from stages.embedding.sampler import BATCH, BatchPlan, plan_batches
from stages.records import EpochLog
from stages.settings import EmbedSettings

VALIDATIONS = 10  # in a run; where epochs are short, one each would take half as long as training


WARM_UP = 0.2  # of all steps


EPOCHS, STEPS = 20, 400  # each at least


TUNED_EPOCHS, TUNED_STEPS = 10, 50  # the same where a pretrained trunk is trained


LARGE_BATCH = 32  # images, where a library's trunk is trained


# (kNN accuracy, triplet accuracy), the epoch, its weights
Best = tuple[tuple[float, float], int, dict[str, Tensor]]


def plan_training(labels: Tensor, settings: EmbedSettings) -> tuple[BatchPlan, int]:
    """The batches and how many epochs, as far as the settings leave them open. labels: int64 (N,), of the training part.

    20 epochs, or as many as make 400 steps; three times that for `conv-deep`. A library's trunk that is trained takes batches
    of 32 images, or it would need more memory than most machines have; a pretrained one comes far in half the epochs.
    Raises SettingsError as `plan_batches` does.
    """
    tuned = settings.from_library and settings.trunk != "frozen"
    chosen = settings.classes_per_batch, settings.images_per_class
    plan = plan_batches(
        labels,
        classes_per_batch=chosen[0],
        images_per_class=chosen[1],
        batch=LARGE_BATCH if tuned else BATCH,
    )
    extra = -plan.images_per_class % rank_and_world_size()[1]
    if extra and chosen[1] is None:  # so that the processes can share a batch
        plan = plan_batches(
            labels,
            classes_per_batch=plan.classes_per_batch,
            images_per_class=plan.images_per_class + extra,
        )
    epochs, steps = (
        (TUNED_EPOCHS, TUNED_STEPS) if tuned and settings.weights != "none" else (EPOCHS, STEPS)
    )
    patience = 3 if settings.network == "conv-deep" else 1
    return plan, settings.epochs or patience * max(epochs, math.ceil(steps / plan.per_epoch))


def is_validated(epoch: int, epochs: int) -> bool:
    """Ten epochs of a run, evenly spaced, and the last; all of a run of fewer than 20."""
    return epoch % max(1, epochs // VALIDATIONS) == 0 or epoch == epochs


def learning_rate_factor(done: int, steps: int) -> float:
    """The learning rate after `done` of all steps as a share of its peak: up in a line, then down along a cosine to 0."""
    warm = max(1, round(WARM_UP * steps))
    if done < warm:
        return (done + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, steps - warm)))


def out_of_patience(
    settings: EmbedSettings, history: tuple[EpochLog, ...], best: Best | None
) -> bool:
    if settings.patience is None or best is None or history[-1].val_knn is None:
        return False
    return history[-1].epoch - best[1] >= settings.patience
