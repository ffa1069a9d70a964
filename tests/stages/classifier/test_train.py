"""Stage two: the head converges to the minimum and its hyperparameters come from validation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clusters import make_clusters, make_first_class_rare, standardise
from sklearn.linear_model import LogisticRegression

from stages.classifier.train import _choose_decay, fit_head, train_classifier
from stages.evaluation.paired_tests import mcnemar_test
from stages.records import Embeddings, HeadLog
from stages.settings import ClassifySettings

CPU = torch.device("cpu")


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("classes", [2, 5])
def test_head_without_dropout_equals_scikit_learns_logistic_regression(
    monkeypatch, classes, balance
):
    """Solve the same convex problem: C = 1 / (N * decay), intercept without penalty."""
    monkeypatch.setattr("stages.classifier.head_loss.TOLERANCE", 1e-6)  # accuracy needs less
    train = make_first_class_rare(make_clusters(301, classes), keep_every=4)
    settings = ClassifySettings(dropout=0, balance=balance)
    head, _, history = fit_head(train, None, settings, device=CPU)
    scaled = standardise(train.vectors.numpy())
    c = 1 / (len(train) * history[0].weight_decay)
    if classes == 2:
        # scikit-learn then has a single weight vector w = w1 - w0. Its penalty is twice that of
        # the two vectors w1 = -w0 = w / 2.
        c *= 2
    class_weight = "balanced" if balance else None
    reference = LogisticRegression(C=c, class_weight=class_weight, tol=1e-10, max_iter=5000)
    expected = reference.fit(scaled, train.labels.numpy()).predict_proba(scaled)
    with torch.inference_mode():
        probabilities = head(train.vectors).exp().numpy()
    assert history[0].converged
    np.testing.assert_allclose(probabilities, expected, atol=2e-3)
    assert abs(probabilities - 1 / classes).max() > 0.3  # the head has learnt something


def test_close_vectors_are_classified_like_spread_ones():
    """Some losses leave all vectors in a small part of the sphere."""
    train, test = (make_clusters(400, noise=0.5, seed=seed) for seed in (0, 1))
    accuracies = []
    for distance in (0.0, 100.0):
        shift = torch.zeros(16)
        shift[0] = distance
        close_train, close_test = (F.normalize(set_.vectors + shift) for set_ in (train, test))
        known = Embeddings(close_train, train.labels, train.classes)
        head = fit_head(known, None, ClassifySettings(), device=CPU)[0]
        with torch.inference_mode():
            predicted = head(close_test).argmax(1)
        accuracies.append(float((predicted == test.labels).double().mean()))
    assert accuracies[0] > 0.7
    assert accuracies[1] > accuracies[0] - 0.1


def test_balance_raises_recall_of_rare_class():
    train = make_first_class_rare(make_clusters(800, noise=0.9), keep_every=40)
    test = make_clusters(800, noise=0.9, seed=1)
    recalls = []
    for balance in (False, True):
        head = fit_head(train, None, ClassifySettings(balance=balance), device=CPU)[0]
        with torch.inference_mode():
            predicted = head(test.vectors).argmax(1)
        recalls.append(float((predicted == 0)[test.labels == 0].double().mean()))
    assert recalls[1] > recalls[0] + 0.1


@pytest.mark.parametrize(
    "count, classes, dim, dropout",
    [(40, 2, 2, 0.5), (60, 20, 8, 0.9), (500, 4, 64, 0.0), (3000, 300, 32, 0.5)],
)
def test_fit_converges_and_best_weight_decay_wins(count, classes, dim, dropout):
    train = make_clusters(count, classes, dim=dim)
    validation = make_clusters(count // 2, classes, dim=dim, seed=1)
    _, epoch, history = fit_head(train, validation, ClassifySettings(dropout=dropout), device=CPU)
    assert all(log.converged for log in history)
    keys = [(log.val_accuracy, -log.val_loss) for log in history]
    assert keys[epoch - 1] == max(keys)
    assert max(log.epoch for log in history) == history[-1].epoch < 3600


def test_decay_is_strong_and_within_one_standard_error_of_the_best():
    for noise in (0.25, 0.5, 0.9):
        train, validation = make_clusters(300, 6, noise=noise), make_clusters(80, 6, seed=1)
        _, epoch, history = fit_head(
            train, validation, ClassifySettings(), device=CPU, one_standard_error=True
        )
        assert [log.weight_decay for log in history] == [0.1, 0.01, 0.001, 0.0001]
        best = max(log.val_accuracy for log in history)
        error = max(math.sqrt(best * (1 - best) / 80), 1 / 80)
        close = [log.val_accuracy >= best - error - 1e-9 for log in history]
        assert close[epoch - 1] and not any(close[: epoch - 1])
    _, _, (log,) = fit_head(
        make_clusters(80), None, ClassifySettings(), device=CPU, one_standard_error=True
    )
    assert log.weight_decay == 0.1


def test_a_strong_decay_that_costs_much_is_not_chosen():
    logs = [HeadLog(1, 0.1, 0.1, accuracy, 0.1, True) for accuracy in (0.5, 0.88, 0.9, 0.9)]
    assert _choose_decay(logs, 100) == 1
    assert _choose_decay(logs, 10_000) == 2
    assert _choose_decay(logs, None) == 2


def test_too_few_iterations_are_reported_as_not_converged():
    _, _, history = fit_head(make_clusters(300), None, ClassifySettings(max_iter=2), device=CPU)
    assert not any(log.converged for log in history)


def test_blocks_of_vectors_give_the_same_head(monkeypatch):
    train, validation = make_clusters(400), make_clusters(200, seed=1)
    whole = fit_head(train, validation, ClassifySettings(), device=CPU)[0]
    monkeypatch.setattr("stages.classifier.head_loss.MAX_LOGITS", 400)  # 100 vectors per block
    blocks = fit_head(train, validation, ClassifySettings(), device=CPU)[0]
    with torch.inference_mode():
        torch.testing.assert_close(
            whole(validation.vectors).exp(), blocks(validation.vectors).exp(), atol=2e-3, rtol=0
        )


def test_same_seed_gives_same_head():
    def weights(seed: int) -> torch.Tensor:
        settings = ClassifySettings(seed=seed, dropout=0.5)
        return fit_head(make_clusters(200), None, settings, device=CPU)[0].linear.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_defaults_without_validation():
    trained = train_classifier(make_clusters(80), None, ClassifySettings(), device=CPU)
    assert (trained.temperature, trained.calibrated) == (1.0, False)
    assert (trained.k, len(trained.history)) == (5, 1)


def test_calibration_lowers_the_log_loss_and_leaves_the_head_unchanged():
    train, validation = make_clusters(100, noise=0.5), make_clusters(20, noise=0.5, seed=1)
    settings = ClassifySettings()
    trained = train_classifier(train, validation, settings, device=CPU)
    assert trained.calibrated
    expected = fit_head(train, validation, settings, device=CPU)[0]
    assert torch.equal(trained.head.linear.weight, expected.linear.weight)
    assert torch.equal(trained.head.linear.bias, expected.linear.bias)
    test = make_clusters(2000, noise=0.5, seed=2)
    with torch.inference_mode():
        scores = trained.head(test.vectors)
    before = F.cross_entropy(scores, test.labels)
    after = F.cross_entropy(scores / trained.temperature, test.labels)
    assert after < before


@pytest.mark.parametrize("rows", [[0], [0, 4, 8], list(range(1, 40, 2))])
def test_few_or_one_sided_validation_images_calibrate(rows):
    """Test one image, one class, and validation without half of the classes."""
    pool = make_clusters(40, seed=1)
    validation = Embeddings(pool.vectors[rows], pool.labels[rows], pool.classes)
    trained = train_classifier(make_clusters(40), validation, ClassifySettings(), device=CPU)
    assert trained.calibrated
    assert 0.05 <= trained.temperature <= 20


@pytest.mark.parametrize(("count", "calibrated"), [(49, False), (50, True)])
def test_one_image_per_class_needs_50_validation_images(count, calibrated):
    validation = make_clusters(count, seed=1)
    trained = train_classifier(make_clusters(4), validation, ClassifySettings(), device=CPU)
    assert trained.calibrated == calibrated
    assert (trained.temperature != 1) == calibrated


def test_many_validation_images_need_no_cross_fitting(monkeypatch):
    monkeypatch.setattr("stages.classifier.train.cross_fit", None)  # a call would fail
    validation = make_clusters(1000, seed=1)
    assert train_classifier(make_clusters(8), validation, ClassifySettings(), device=CPU).calibrated


def best_logistic_regression(train: Embeddings, validation: Embeddings) -> LogisticRegression:
    """Fit logistic regressions and return the one with the best validation accuracy."""
    models = [
        LogisticRegression(C=c, max_iter=2000).fit(train.vectors.numpy(), train.labels.numpy())
        for c in 10.0 ** np.arange(-2, 3)
    ]
    return max(
        models,
        key=lambda model: model.score(validation.vectors.numpy(), validation.labels.numpy()),
    )


@pytest.mark.slow
@pytest.mark.parametrize("rare", [False, True])
@pytest.mark.parametrize("noise", [0.25, 0.3])
def test_not_inferior_to_logistic_regression(noise, rare):
    """Compare accuracies on the same vectors: the paired 95% bound, three draws pooled.

    If a class is rare in training only, validation contradicts training, and a difference of one
    percentage point is allowed.
    """
    head_correct, reference_correct = [], []
    for seed in range(3):
        train, validation, test = (
            make_clusters(count, 5, dim=32, noise=noise, seed=3 * seed + split)
            for split, count in enumerate((1500, 400, 2000))
        )
        if rare:
            train = make_first_class_rare(train, keep_every=10)
        reference = best_logistic_regression(train, validation)
        head = fit_head(train, validation, ClassifySettings(seed=seed), device=CPU)[0]
        with torch.inference_mode():
            head_correct.append((head(test.vectors).argmax(1) == test.labels).numpy())
        reference_correct.append(reference.predict(test.vectors.numpy()) == test.labels.numpy())
    head_correct, reference_correct = map(np.concatenate, (head_correct, reference_correct))
    paired = mcnemar_test("head", "reference", "test", head_correct, reference_correct)
    assert paired.low > (-0.01 if rare else -0.005), paired
    assert 0.5 < head_correct.mean() < 0.9999  # the accuracies could differ
