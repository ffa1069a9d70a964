"""Choice of the best epoch, and early stopping."""

from torch import Tensor

from stages.records import EpochLog
from stages.settings import EmbedSettings

# Scores, number and network state dict of the best epoch so far.
Best = tuple[tuple[float, float], int, dict[str, Tensor]]


def epoch_score(log: EpochLog, held_out_triplets: float | None = None) -> tuple[float, float]:
    """Return the two scores that choose the epoch, with 0 for a score that was not measured.

    They are kNN and triplet accuracy on validation images; with held-out classes, recall@1 and
    triplet accuracy on the images of these classes.

    Args:
        log: Log of the epoch.
        held_out_triplets: Triplet accuracy on the images of held-out classes.
    """
    if log.val_recall is not None:
        return log.val_recall, held_out_triplets or 0.0
    return log.val_knn or 0.0, log.val_triplet or 0.0


def is_better(log: EpochLog, best: Best | None, held_out_triplets: float | None = None) -> bool:
    """Return True if a validated epoch replaces the best epoch so far.

    The higher kNN accuracy, or recall@1 on held-out classes, wins, then the higher triplet
    accuracy, then the later epoch. Without validation images all scores are 0, so the last epoch
    wins.

    Args:
        log: Log of the validated epoch.
        best: Best of the earlier epochs, None if there is none.
        held_out_triplets: Triplet accuracy on the images of held-out classes.

    References:
        Musgrave et al. 2020, "A metric learning reality check" (arXiv 2003.08505):
        the epoch is chosen on classes that are neither trained on nor tested.

    Example:
        >>> best = (0.9, 0.8), 4, {}
        >>> is_better(EpochLog(8, 0.1, 0.2, 1.3, val_knn=0.9, val_triplet=0.8), best)
        True
        >>> is_better(EpochLog(8, 0.1, 0.2, 1.3, val_knn=0.9, val_triplet=0.7), best)
        False
    """
    return best is None or epoch_score(log, held_out_triplets) >= best[0]


def out_of_patience(
    settings: EmbedSettings, history: tuple[EpochLog, ...], best: Best | None
) -> bool:
    """Return True if training should stop early, for lack of a better validation score."""
    if settings.patience is None or best is None or not history[-1].validated:
        return False
    return history[-1].epoch - best[1] >= settings.patience
