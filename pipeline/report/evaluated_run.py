"""One evaluated run, and comparisons between runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from pipeline.data.dataset import Dataset
from stages.evaluation.paired_tests import compare_runs
from stages.evaluation.results import Evaluation, PairedTest, Score
from stages.records import Embeddings, Split


@dataclass(frozen=True, eq=False)
class EvaluatedRun:
    """One run, scored: its name, both checkpoints' records, the images it was judged on, their vectors and the figures.

    folds: the runs that it pools, repeat after repeat, and then deviation: of each figure over repeats, or else over folds.
    """

    run: str
    embedding: Mapping[str, Any]
    classifier: Mapping[str, Any]
    data: Dataset
    test: Embeddings
    gallery: Embeddings
    gallery_ids: tuple[str, ...]
    evaluation: Evaluation
    folds: tuple["EvaluatedRun", ...] = ()
    deviation: tuple[Score, ...] = ()

    @property
    def images(self) -> Split:
        assert self.data.test is not None  # or there had been nothing to score
        return self.data.test

    @property
    def repeats(self) -> int:
        """How often each image was predicted."""
        return len(self.images) // self.evaluation.score("knn_accuracy").count


class RunComparison(NamedTuple):
    """A paired comparison and the runs that it is of."""

    run_a: str
    run_b: str
    paired: PairedTest


def compare_runs_pairwise(
    comparisons: Sequence[EvaluatedRun],
) -> tuple[list[RunComparison], list[str]]:
    """Each run against each later one, and in words which pairs were judged on different images."""
    between, refused = [], []
    for a, b in combinations(comparisons, 2):
        prints = [str(one.embedding["fingerprint"])[:12] for one in (a, b)]
        if (
            a.embedding["fingerprint"] == b.embedding["fingerprint"]
            and a.images.ids == b.images.ids
        ):
            between += [
                RunComparison(a.run, b.run, paired)
                for paired in compare_runs(a.evaluation, b.evaluation)
            ]
        else:
            refused.append(
                f"{a.run} and {b.run} can't be compared image by image: they were judged on different splits "
                f"(fingerprints {prints[0]} and {prints[1]}); train both on the same source with the same --split-seed"
            )
    return between, refused
