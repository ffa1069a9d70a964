"""Choice of k for kNN, on validation images."""

from torch import Tensor

from stages.evaluation.knn import default_k, knn_labels
from stages.subset import evenly_spaced

K_CANDIDATES = (1, 5, 20)  # values of k that are tried, in addition to the default
MAX_K_QUERIES = 1000  # validation vectors used to choose k


def choose_k(queries: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor) -> int:
    """Choose the k of kNN that classifies the most validation images correctly.

    Ties are resolved in favour of the k nearest to the default, then of the smaller k.

    Args:
        queries: Validation vectors, float32, shape (Q, D). At most 1,000 of them, evenly spaced,
            are used.
        labels: Class indices of the queries, int64, shape (Q,).
        gallery: Training vectors, float32, shape (G, D).
        gallery_labels: Class indices of the gallery, int64, shape (G,).

    Returns:
        The chosen k, at most G.

    Example:
        >>> import torch
        >>> gallery, labels = torch.eye(4).repeat(6, 1), torch.arange(4).repeat(6)
        >>> choose_k(torch.eye(4), torch.arange(4), gallery, labels)
        5
    """
    rows = evenly_spaced(len(queries), MAX_K_QUERIES)
    queries, true_labels = queries[rows], labels[rows].numpy()
    default = default_k(gallery_labels)
    ks = sorted(k for k in {*K_CANDIDATES, default} if k <= len(gallery))
    predicted = knn_labels(queries, gallery, gallery_labels, ks=ks)
    correct = {k: int((labels == true_labels).sum()) for k, labels in predicted.items()}
    return max(correct, key=lambda k: (correct[k], -abs(k - default), -k))
