"""Stage two: the head reaches its minimum, is calibrated on validation, and leaves the embedding alone."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight

from stages.classifier.calibration import choose_k, fit_temperature
from stages.classifier.frozen_embedding import embed_frozen
from stages.classifier.train import class_weights, fit_head, train_classifier
from stages.evaluation.knn import knn
from stages.evaluation.paired_tests import mcnemar_test
from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet
from stages.records import Embeddings
from stages.settings import ClassifySettings

CPU = torch.device("cpu")


def clusters(
    count: int, classes: int = 4, *, dim: int = 16, noise: float = 0.35, seed: int = 0
) -> Embeddings:
    """Unit vectors around one centre a class, overlapping; the centres don't depend on the seed."""
    centres = F.normalize(
        torch.randn(classes, dim, generator=torch.Generator().manual_seed(99)), dim=1
    )
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    vectors = F.normalize(
        centres[labels] + noise * torch.randn(count, dim, generator=generator), dim=1
    )
    return Embeddings(vectors, labels, tuple(map(str, range(classes))))


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("classes", [2, 5])
def test_without_dropout_it_is_the_minimum_that_scikit_learn_finds(monkeypatch, classes, balance):
    """The same convex problem: C = 1 / (N * decay), the intercept free; followed further down than accuracy asks for."""
    monkeypatch.setattr("stages.classifier.train.TOLERANCE", 1e-6)
    train = clusters(301, classes)
    keep = (train.labels != 0) | (torch.arange(301) % 4 == 0)  # class 0 is rare
    train = Embeddings(train.vectors[keep], train.labels[keep], train.classes)
    head, _, history = fit_head(
        train, None, ClassifySettings(dropout=0, balance=balance), device=CPU
    )
    scale = math.sqrt(train.vectors.shape[1])
    decay = history[0].weight_decay
    reference = LogisticRegression(
        C=1 / (len(train) * decay),
        class_weight="balanced" if balance else None,
        tol=1e-10,
        max_iter=5000,
    ).fit(train.vectors.numpy() * scale, train.labels.numpy())
    if (
        classes == 2
    ):  # scikit-learn has one vector w = w1 - w0 there, whose penalty is twice that of w1 = -w0 = w / 2
        reference.set_params(C=2 / (len(train) * decay)).fit(
            train.vectors.numpy() * scale, train.labels.numpy()
        )
    expected = reference.predict_proba(train.vectors.numpy() * scale)
    with torch.inference_mode():
        found = head(train.vectors).exp().numpy()
    assert history[0].converged
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert abs(found - 1 / classes).max() > 0.3  # it has learnt something to agree on


def test_class_weights_are_scikit_learns():
    labels = torch.tensor([0] * 30 + [1] * 6 + [2] * 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    np.testing.assert_allclose(class_weights(labels, 3).numpy(), expected, rtol=1e-6)
    assert class_weights(labels, 4)[3] == 0


def test_balance_raises_the_recall_of_a_rare_class():
    train, test = clusters(800, noise=0.9), clusters(800, noise=0.9, seed=1)
    keep = (train.labels != 0) | (torch.arange(800) % 40 == 0)
    rare = Embeddings(train.vectors[keep], train.labels[keep], train.classes)
    recalls = []
    for balance in (False, True):
        head = fit_head(rare, None, ClassifySettings(balance=balance), device=CPU)[0]
        with torch.inference_mode():
            recalls.append(
                float((head(test.vectors).argmax(1) == 0)[test.labels == 0].double().mean())
            )
    assert recalls[1] > recalls[0] + 0.1


@pytest.mark.parametrize(
    "count, classes, dim, dropout",
    [(40, 2, 2, 0.5), (60, 20, 8, 0.9), (500, 4, 64, 0.0), (3000, 300, 32, 0.5)],
)
def test_converges_whatever_the_shape(count, classes, dim, dropout):
    train, validation = (
        clusters(count, classes, dim=dim),
        clusters(count // 2, classes, dim=dim, seed=1),
    )
    _, epoch, history = fit_head(train, validation, ClassifySettings(dropout=dropout), device=CPU)
    assert all(log.converged for log in history)
    assert (history[epoch - 1].val_accuracy, -history[epoch - 1].val_loss) == max(
        (log.val_accuracy, -log.val_loss) for log in history
    )
    assert max(log.epoch for log in history) == history[-1].epoch < 3600


def test_too_few_passes_are_admitted():
    assert not any(
        log.converged
        for log in fit_head(clusters(300), None, ClassifySettings(epochs=2), device=CPU)[2]
    )


def test_large_data_goes_through_in_parts(monkeypatch):
    """The gradient is summed over parts; the result is that of all at once."""
    train, validation = clusters(400), clusters(200, seed=1)
    whole = fit_head(train, validation, ClassifySettings(), device=CPU)[0]
    monkeypatch.setattr("stages.classifier.train.LOGITS", 400)  # 100 vectors at a time
    parts = fit_head(train, validation, ClassifySettings(), device=CPU)[0]
    with torch.inference_mode():
        torch.testing.assert_close(
            whole(validation.vectors).exp(), parts(validation.vectors).exp(), atol=2e-3, rtol=0
        )


def test_same_seed_same_head():
    one, two, other = (
        fit_head(clusters(200), None, ClassifySettings(seed=seed, dropout=0.5), device=CPU)[
            0
        ].linear.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_the_embedding_stays_and_the_head_moves(digit_split):
    network = EmbeddingNet(1, 8, 16).train()
    train, validation = digit_split(slice(0, 300)), digit_split(slice(300, 400))
    before = state_digest(network.state_dict())
    vectors = embed_frozen(network, train, validation, device=CPU)
    trained = train_classifier(*vectors, ClassifySettings(), device=CPU)
    assert state_digest(network.state_dict()) == before
    assert trained.head.linear.weight.abs().max() > 0.1  # it started at zero
    assert not any(
        parameter.requires_grad and parameter.grad is not None for parameter in network.parameters()
    )


def test_a_network_that_moves_is_found_out(digit_split):
    class Drifting(EmbeddingNet):
        def forward(self, images):
            self.mean.add_(0.01)
            return super().forward(images)

    with pytest.raises(RuntimeError, match="frozen"):
        embed_frozen(Drifting(1, 8, 16), digit_split(slice(0, 50)), None, device=CPU)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(true_temperature):
    """Labels drawn from softmax(z / T): the fit finds T, and agrees with a plain search."""
    generator = np.random.default_rng(0)
    scores = torch.log_softmax(torch.from_numpy(generator.normal(scale=4, size=(20_000, 5))), 1)
    chances = torch.softmax(scores / true_temperature, 1).numpy()
    labels = torch.from_numpy((chances.cumsum(1) > generator.random((20_000, 1))).argmax(1))
    found = fit_temperature(scores.float(), labels)
    plain = minimize_scalar(
        lambda t: F.cross_entropy(scores / t, labels).item(), bounds=(0.1, 10), method="bounded"
    ).x
    assert found == pytest.approx(true_temperature, rel=0.06)
    assert found == pytest.approx(plain, rel=0.02)


def test_a_faultless_validation_part_makes_nobody_certain():
    labels = torch.arange(50) % 2
    scores = torch.log_softmax(F.one_hot(labels).float() * 3, 1)
    calibrated = torch.softmax(scores / fit_temperature(scores, labels), 1).max(1).values
    assert calibrated.mean().item() == pytest.approx(
        51 / 52, abs=1e-3
    )  # Laplace's rule of succession


def test_k_is_the_best_on_validation_and_ties_go_to_five():
    train, validation = clusters(300, noise=0.8), clusters(150, noise=0.8, seed=1)
    k = choose_k(validation.vectors, validation.labels, train.vectors, train.labels)
    right = {
        n: (
            knn(validation.vectors, train.vectors, train.labels, k=n).labels
            == validation.labels.numpy()
        ).sum()
        for n in (1, 5, 20)
    }
    assert right[1] < right[20]
    assert k > 1
    easy = clusters(60, noise=0.01)
    assert choose_k(easy.vectors, easy.labels, easy.vectors, easy.labels) == 5
    assert choose_k(easy.vectors[:2], easy.labels[:2], easy.vectors[:4], easy.labels[:4]) == 1


def test_without_validation_there_are_defaults():
    trained = train_classifier(clusters(80), None, ClassifySettings(), device=CPU)
    assert (trained.temperature, trained.k, len(trained.history)) == (1.0, 5, 1)


@pytest.mark.slow
@pytest.mark.parametrize("rare", [False, True])
@pytest.mark.parametrize("noise", [0.2, 0.3])
def test_not_inferior_to_logistic_regression(noise, rare):
    """Its C chosen on validation, the same vectors, three draws pooled; the paired 95 % bound of the difference.

    Where a class is rare in training alone, so that the two parts contradict each other, a point is allowed.
    """
    ours, theirs = [], []
    for seed in range(3):
        train, validation, test = (
            clusters(count, 5, dim=32, noise=noise, seed=3 * seed + part)
            for part, count in enumerate((1500, 400, 2000))
        )
        if rare:
            keep = (train.labels != 0) | (torch.arange(len(train)) % 10 == 0)
            train = Embeddings(train.vectors[keep], train.labels[keep], train.classes)
        models = [
            LogisticRegression(C=c, max_iter=2000).fit(train.vectors.numpy(), train.labels.numpy())
            for c in 10.0 ** np.arange(-2, 3)
        ]
        best = max(
            models,
            key=lambda model: model.score(validation.vectors.numpy(), validation.labels.numpy()),
        )
        head = fit_head(train, validation, ClassifySettings(seed=seed), device=CPU)[0]
        with torch.inference_mode():
            ours.append((head(test.vectors).argmax(1) == test.labels).numpy())
        theirs.append(best.predict(test.vectors.numpy()) == test.labels.numpy())
    paired = mcnemar_test("ours", "theirs", "test", np.concatenate(ours), np.concatenate(theirs))
    assert paired.low > (-0.01 if rare else -0.005), paired
    assert 0.5 < np.concatenate(ours).mean() < 0.9999  # a set on which they could differ
