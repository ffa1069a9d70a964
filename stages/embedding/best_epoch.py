"""Choice of the best epoch, and early stopping."""

from torch import Tensor

from stages.records import EpochLog
from stages.settings import EmbedSettings

# Scores (kNN and triplet accuracy), number and network state dict of the best epoch so far.
Best = tuple[tuple[float, float], int, dict[str, Tensor]]


def epoch_score(log: EpochLog) -> tuple[float, float]:
    """Return the kNN and triplet accuracy of an epoch, with 0 for a score that was not measured."""
    return log.val_knn or 0.0, log.val_triplet or 0.0


def is_better(log: EpochLog, best: Best | None) -> bool:
    """Return True if a validated epoch replaces the best epoch so far.

    The higher kNN accuracy wins, then the higher triplet accuracy, then the later epoch. Without
    validation images all scores are 0, so the last epoch wins.

    Args:
        log: Log of the validated epoch.
        best: Best of the earlier epochs, None if there is none.

    Example:
        >>> best = (0.9, 0.8), 4, {}
        >>> is_better(EpochLog(8, 0.1, 0.2, 1.3, val_knn=0.9, val_triplet=0.8), best)
        True
        >>> is_better(EpochLog(8, 0.1, 0.2, 1.3, val_knn=0.9, val_triplet=0.7), best)
        False
    """
    return best is None or epoch_score(log) >= best[0]


def out_of_patience(
    settings: EmbedSettings, history: tuple[EpochLog, ...], best: Best | None
) -> bool:
    """Return True if training should stop early, for lack of a better validation score."""
    if settings.patience is None or best is None or history[-1].val_knn is None:
        return False
    return history[-1].epoch - best[1] >= settings.patience
