"""Loss of the head: class weights and dropout replicas."""

import numpy as np
import torch
from clusters import make_clusters
from sklearn.utils.class_weight import compute_class_weight

from stages.classifier.head_loss import class_weights, dropout_replicas
from stages.classifier.standardisation import Standardisation


def test_class_weights_equal_scikit_learns():
    labels = torch.tensor([0] * 30 + [1] * 6 + [2] * 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    np.testing.assert_allclose(class_weights(labels, 3).numpy(), expected, rtol=1e-6)
    assert class_weights(labels, 4)[3] == 0


def test_replicas_keep_the_mean_and_the_order():
    train = make_clusters(200)
    standardisation = Standardisation(torch.zeros(train.vectors.shape[1]), 2.0)
    vectors, labels = dropout_replicas(train, 0.5, seed=0, standardisation=standardisation)
    replicas = vectors.view(-1, *train.vectors.shape)  # (R, N, D)
    assert labels.equal(train.labels.repeat(len(replicas)))
    kept = replicas != 0
    assert torch.equal(replicas[kept], (4 * train.vectors).expand_as(replicas)[kept])
    assert 0.48 < kept.float().mean() < 0.52
