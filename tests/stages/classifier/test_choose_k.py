"""Choice of k for kNN."""

from clusters import make_clusters

from stages.classifier.choose_k import choose_k
from stages.evaluation.knn import knn


def test_k_has_best_validation_accuracy_and_ties_choose_default():
    train, validation = make_clusters(300, noise=0.8), make_clusters(150, noise=0.8, seed=1)
    k = choose_k(validation.vectors, validation.labels, train.vectors, train.labels)
    correct = {}
    for n in (1, 5, 20):
        predicted = knn(validation.vectors, train.vectors, train.labels, k=n).labels
        correct[n] = (predicted == validation.labels.numpy()).sum()
    assert correct[1] < correct[20]
    assert k > 1
    easy = make_clusters(60, noise=0.01)
    assert choose_k(easy.vectors, easy.labels, easy.vectors, easy.labels) == 5
    assert choose_k(easy.vectors[:2], easy.labels[:2], easy.vectors[:4], easy.labels[:4]) == 1
