"""Cross-fitting: each image is predicted by a head that was not trained on it."""

import numpy as np
import pytest
import torch
from clusters import make_clusters, make_first_class_rare, standardise
from sklearn.linear_model import LogisticRegression

from stages.classifier.cross_fit import cross_fit
from stages.records import Embeddings
from stages.settings import ClassifySettings

CPU = torch.device("cpu")
DECAY = 1e-2


@pytest.mark.parametrize("balance", [False, True])
def test_predictions_equal_scikit_learns(monkeypatch, balance):
    """Leave out every third image of the order by class, and fit the same convex problem."""
    monkeypatch.setattr("stages.classifier.head_loss.TOLERANCE", 1e-6)
    train = make_first_class_rare(make_clusters(150, 3), keep_every=4)
    settings = ClassifySettings(dropout=0, balance=balance)
    predictions, labels = cross_fit(train, DECAY, settings, device=CPU)
    vectors = standardise(train.vectors.numpy())
    order = np.argsort(train.labels.numpy(), kind="stable")
    expected, expected_labels = [], []
    for fold in range(3):
        left_out = np.sort(order[fold::3])
        kept = np.setdiff1d(order, left_out)
        model = LogisticRegression(
            C=1 / (len(kept) * DECAY),
            class_weight="balanced" if balance else None,
            tol=1e-10,
            max_iter=5000,
        ).fit(vectors[kept], train.labels.numpy()[kept])
        expected.append(model.predict_proba(vectors[left_out]))
        expected_labels.append(train.labels.numpy()[left_out])
    np.testing.assert_array_equal(labels.numpy(), np.concatenate(expected_labels))
    np.testing.assert_allclose(predictions.exp().numpy(), np.concatenate(expected), atol=2e-3)


def test_random_labels_are_predicted_at_chance():
    generator = torch.Generator().manual_seed(0)
    pool = make_clusters(300, 2, dim=128, noise=1.0)
    labels = torch.randint(2, (300,), generator=generator)
    train = Embeddings(pool.vectors, labels, pool.classes)
    predictions, predicted_labels = cross_fit(train, 1e-4, ClassifySettings(), device=CPU)
    accuracy = (predictions.argmax(1) == predicted_labels).double().mean()
    assert len(predicted_labels) == 300
    assert 0.4 < accuracy < 0.6  # in sample it is 1


def test_large_data_is_predicted_in_part():
    predictions, labels = cross_fit(make_clusters(1300), 1.0, ClassifySettings(), device=CPU)
    assert len(predictions) == len(labels) == 434


@pytest.mark.parametrize(
    ("labels", "predicted"),
    [([0, 1], None), ([0, 0, 1], None), ([0, 0, 0], None), ([0, 0, 1, 1], 4), ([0, 0, 1, 1, 2], 4)],
)
def test_classes_with_one_image_are_not_predicted(labels, predicted):
    vectors = torch.eye(5)[: len(labels)]
    train = Embeddings(vectors, torch.tensor(labels), ("a", "b", "c"))
    result = cross_fit(train, DECAY, ClassifySettings(balance=True), device=CPU)
    if predicted is None:
        assert result is None
    else:
        predictions, predicted_labels = result
        assert sorted(predicted_labels.tolist()) == [0, 0, 1, 1]
        assert predictions.isfinite().all()
