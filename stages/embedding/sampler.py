"""Batches of P classes x K images."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.errors import SettingsError

BATCH = 160  # images a batch aims at; more were not better on validation, fewer were slower


class BatchPlan(NamedTuple):
    """P, K and how many batches an epoch has."""

    classes_per_batch: int
    images_per_class: int
    per_epoch: int


def plan_batches(
    labels: Tensor,
    *,
    classes_per_batch: int | None = None,
    images_per_class: int | None = None,
    batch: int = BATCH,
) -> BatchPlan:
    """Choose P and K for a training split, and check what was chosen.

    labels: int64 (N,). P, K: None to choose. K is by default the median class size, between 2 and 16, or what leaves room
    for four classes; P fills `batch` images, as far as there are classes.
    Raises SettingsError when P exceeds the classes, or no class has two images (then no triplet exists).
    """
    sizes = torch.bincount(labels)
    sizes = sizes[sizes > 0]
    if len(sizes) < 2 or int(sizes.max()) < 2:
        raise SettingsError(
            "data",
            None,
            f"the training split has {len(sizes)} classes, the largest of {int(sizes.max())} images; "
            "a triplet needs two classes and two images of one",
        )
    k = images_per_class or max(2, min(16, batch // 4, int(sizes.median())))
    p = classes_per_batch or max(2, min(len(sizes), batch // k))
    if p > len(sizes):
        raise SettingsError(
            "classes_per_batch",
            p,
            f"the training part has {len(sizes)} classes; use {len(sizes)} or fewer",
        )
    tuples = (sizes + k - 1) // k  # (classes,) groups of K that show every image
    return BatchPlan(p, k, max(int(tuples.max()), -(-int(tuples.sum()) // p)))


class PKSampler:
    """Yields batches of exactly P classes x K images; every image is drawn at least once an epoch.

    A class's images are shuffled and cut into groups of K; the last group is filled up with further images of the
    class, each as often as the others to within one. Batches take the P classes with the most groups left, so that the
    epoch is as short as that allows; classes that have run out are drawn again, evenly.

    labels: int64 (N,). plan: from `plan_batches`. seed: of the sampler's own generator.
    Yields int64 (P * K,), indices into `labels`, class by class. `len` is the number of batches.
    """

    def __init__(self, labels: Tensor, plan: BatchPlan, *, seed: int):
        self.plan = plan
        self.members = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
        self.generator = torch.Generator().manual_seed(seed)
        self._start = self.generator.get_state()
        self._position = 0

    def __len__(self) -> int:
        return self.plan.per_epoch

    def __iter__(self) -> Iterator[Tensor]:
        """The rest of the epoch: all of it, unless a restored state stands in its middle."""
        self._start = self.generator.get_state()
        batches = self._epoch()
        while self._position < len(batches):
            self._position += 1
            yield batches[self._position - 1]
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands: enough to go on in the middle of an epoch."""
        if 0 < self._position < len(self):
            return {"generator": self._start, "position": self._position}
        # Between epochs, the generator as it is now draws the next one.
        return {"generator": self.generator.get_state(), "position": 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self._position = int(state["position"])

    def _shuffled(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.generator)

    def _groups(self, members: Tensor) -> list[Tensor]:
        """One class's images in groups of K, each image at least once."""
        k = self.plan.images_per_class
        if len(members) < k:  # one group, each image as often as the others to within one
            repeats = -(-k // len(members))
            rounds = torch.cat([self._shuffled(len(members)) for _ in range(repeats)])
            return [members[rounds[:k]]]
        order = members[self._shuffled(len(members))]
        missing = -len(members) % k
        if missing:  # filled from before the last group, so that no image stands twice in a group
            earlier = order[: len(members) - (k - missing)]
            order = torch.cat([order, earlier[self._shuffled(len(earlier))[:missing]]])
        return list(order.split(k))

    def _epoch(self) -> list[Tensor]:
        """All batches of one epoch."""
        p = self.plan.classes_per_batch
        groups = [self._groups(members) for members in self.members]
        left = torch.tensor([len(group) for group in groups])
        again = torch.zeros(len(groups), dtype=torch.int64)
        batches = []
        for _ in range(len(self)):
            # Most groups left first; among classes that ran out, the least redrawn first; ties by chance.
            tie = torch.rand(len(groups), generator=self.generator, dtype=torch.float64)
            chosen = (left - again + tie).argsort(descending=True)[:p].tolist()
            batch = []
            for c in chosen:
                if not groups[c]:
                    groups[c] = self._groups(self.members[c])
                if left[c]:
                    left[c] -= 1
                else:
                    again[c] += 1
                batch.append(groups[c].pop())
            batches.append(torch.cat(batch))
        order = self._shuffled(len(batches)).tolist()
        return [batches[i] for i in order]
