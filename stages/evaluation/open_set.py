"""Evaluate images of classes that were not trained on next to those of known classes."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from stages.checkpoints import ClassifierCheckpoint
from stages.evaluation.results import Evaluation
from stages.evaluation.scores import predict
from stages.evaluation.unknown import define_unknown, unknown_scores
from stages.evaluation.unseen import evaluate_unseen
from stages.records import Embeddings


def add_unseen(
    evaluation: Evaluation,
    unseen: Embeddings,
    classifier: ClassifierCheckpoint,
    *,
    baselines: Mapping[str, Tensor | None],
    queries: Tensor | None = None,
    pretrained: bool = False,
) -> Evaluation:
    """Add the test images of unseen classes to the evaluation of the known ones.

    They are evaluated as a gallery of their own (retrieval and verification), and as images that
    the classifier should reject.

    Args:
        evaluation: Evaluation of the test images of known classes; there may be none.
        unseen: Embeddings of N > 0 test images of classes without a training image.
        classifier: Classifier of the run.
        baselines: Other vectors of these images by name, as for
            :func:`stages.evaluation.unseen.evaluate_unseen`.
        queries: True for queries and False for gallery images, bool, shape (N,), or None.
        pretrained: True if training started from a pretrained trunk.

    Returns:
        The evaluation with all scores, paired tests and predictions.
    """
    result = evaluate_unseen(unseen, baselines, queries=queries, pretrained=pretrained)
    prediction = predict(unseen, classifier, result.triplet_accuracy, known=False)
    scores, tests = unknown_scores(
        evaluation.prediction, prediction, unseen.labels.numpy(), define_unknown(classifier)
    )
    return replace(
        evaluation,
        scores=(*evaluation.scores, *scores, *result.scores),
        paired_tests=(*evaluation.paired_tests, *tests, *result.paired_tests),
        unseen=result,
        unseen_prediction=prediction,
    )
