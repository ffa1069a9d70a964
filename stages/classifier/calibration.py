"""Temperature scaling and the choice of k, both on validation embeddings."""

import math

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from stages.evaluation.knn import default_k, knn

NEIGHBOURS = (1, 5, 20)  # values of k to choose from, beside the usual one


QUERIES = 1000  # validation vectors that choose k


CALIBRATING = 50  # validation vectors that a temperature needs: of fewer, all named rightly, even the sure ones count as doubtful


def fit_temperature(log_probabilities: Tensor, labels: Tensor) -> float:
    """The temperature that makes the head's probabilities fit best: softmax(log-probabilities / T), by cross-entropy.

    log_probabilities: float32 (N, C), of validation images; labels: int64 (N,). Returns T in [0.05, 20].
    Guo et al. 2017 (arXiv 1706.04599), with Platt's targets (1999): of N right answers, the next is expected right with
    (N + 1) / (N + 2), not for certain. Otherwise a validation part without an error would make the head certain.
    """
    scores, targets = log_probabilities.double().numpy(), labels.numpy()
    scores = scores - scores.max(
        axis=1, keepdims=True
    )  # so that no exponential below overflows, at any temperature
    count, classes = scores.shape
    wrong = 1 / (count + 2)
    soft = np.full((count, classes), wrong / max(1, classes - 1))
    soft[np.arange(count), targets] = 1 - wrong

    def loss(log_temperature: float) -> float:
        scaled = scores / math.exp(log_temperature)
        return float(np.mean(np.log(np.exp(scaled).sum(1)) - (soft * scaled).sum(1)))

    bound = math.log(20)
    return math.exp(
        float(
            minimize_scalar(
                loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-3}
            ).x
        )
    )


def choose_k(queries: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor) -> int:
    """The k of kNN with the most right validation images; of equally good ones the nearest to the usual, then the smaller.

    queries: (Q, D), of which at most 1,000, evenly spaced, are asked. gallery: (G, D). labels, gallery_labels: int64.
    """
    rows = torch.linspace(0, len(queries) - 1, min(QUERIES, len(queries))).round().long()
    asked, truth, usual = queries[rows], labels[rows].numpy(), default_k(gallery_labels)
    right = {
        k: int((knn(asked, gallery, gallery_labels, k=k).labels == truth).sum())
        for k in {*NEIGHBOURS, usual}
        if k <= len(gallery)
    }
    return max(right, key=lambda k: (right[k], -abs(k - usual), -k))
