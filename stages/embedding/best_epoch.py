"""Choice of the epoch whose weights are kept, and early stopping."""

import math

from stages.records import EpochLog
from stages.settings import EmbedSettings


def epoch_score(log: EpochLog) -> float:
    """Return recall@1 on held-out classes if there are any, else kNN accuracy on validation images.

    0 if neither was measured.

    Args:
        log: Log of the epoch.
    """
    return (log.val_knn if log.val_recall is None else log.val_recall) or 0.0


def is_kept(score: float, highest: float, count: int) -> bool:
    """Return True if an epoch is not clearly worse than the best one, so that it is kept.

    The learning rate decays to 0, so a later epoch is usually better, and a small difference
    between two scores is mostly noise. Therefore the latest epoch is kept whose score is at most
    one standard error below the highest one, or one image if that is more.

    Args:
        score: Validation score of the epoch.
        highest: Highest score so far, at least ``score``.
        count: Number of validation images; 0 if there are none.

    References:
        Breiman et al. 1984, "Classification and regression trees": the one-standard-error rule.
        Musgrave et al. 2020, "A metric learning reality check" (arXiv 2003.08505): the epoch is
        chosen on classes that are neither trained on nor tested.

    Example:
        >>> is_kept(0.89, 0.9, 100), is_kept(0.86, 0.9, 100)
        (True, False)
    """
    if not count:
        return True
    error = math.sqrt(highest * (1 - highest) / count)
    return score >= highest - max(error, 1 / count) - 1e-9


def out_of_patience(settings: EmbedSettings, history: tuple[EpochLog, ...]) -> bool:
    """Return True if training should stop early, for lack of a better validation score."""
    if settings.patience is None or not history or not history[-1].validated:
        return False
    validated = [log for log in history if log.validated]
    best = max(validated, key=lambda log: (epoch_score(log), log.epoch))
    return history[-1].epoch - best.epoch >= settings.patience
