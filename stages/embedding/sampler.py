"""Batches of P classes with K images each."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.errors import SettingsError

BATCH = 160  # target batch size in images; larger was not better on validation, smaller was slower
MAX_IMAGES_PER_CLASS = 16  # largest default of K
# Largest batch in images. The loss computes all distances in a batch, 1 GB for this many images.
MAX_BATCH = 16_384
MIN_CLASSES = 4  # classes for which the default of K leaves room in a batch


class BatchPlan(NamedTuple):
    """Shape and number of the batches.

    Attributes:
        classes_per_batch: P.
        images_per_class: K.
        per_epoch: Number of batches per epoch.
    """

    classes_per_batch: int
    images_per_class: int
    per_epoch: int


def plan_batches(
    labels: Tensor,
    *,
    classes_per_batch: int | None = None,
    images_per_class: int | None = None,
    batch: int = BATCH,
    multiple_of: int = 1,
) -> BatchPlan:
    """Choose P and K for a training split, and check given values.

    Args:
        labels: Class index of each training image, int64, shape (N,).
        classes_per_batch: P. By default, as many classes as fill ``batch`` images.
        images_per_class: K. By default the median class size, at least 2 and at most 16, and at
            most a quarter of ``batch``.
        batch: Target batch size in images.
        multiple_of: A default of K is rounded up to a multiple of this number.

    Returns:
        P, K and the smallest number of batches that show every image.

    Raises:
        SettingsError: If P exceeds the number of classes, a given K exceeds the size of the largest
            class, a batch is larger than ``MAX_BATCH``, there is only one class, or no class has
            two images.

    Example:
        >>> plan_batches(torch.tensor([0, 0, 0, 1, 1, 1]), images_per_class=2)
        BatchPlan(classes_per_batch=2, images_per_class=2, per_epoch=2)
    """
    sizes = torch.bincount(labels)
    sizes = sizes[sizes > 0]
    class_count, largest = len(sizes), int(sizes.max()) if len(sizes) else 0
    if class_count < 2 or largest < 2:
        raise SettingsError(
            "data",
            None,
            f"the training split has {class_count} {'class' if class_count == 1 else 'classes'}, "
            f"the largest with {largest} {'image' if largest == 1 else 'images'}; "
            "use at least two classes, and at least two images of one class",
        )
    default_k = max(2, min(MAX_IMAGES_PER_CLASS, batch // MIN_CLASSES, int(sizes.median())))
    k = images_per_class or default_k
    p = classes_per_batch or max(2, min(class_count, batch // k))
    if images_per_class is None:
        k += -k % multiple_of
    _check_batch(p, k, class_count, largest if images_per_class else k)
    groups = (sizes + k - 1) // k  # (classes,) groups of K images that show every image
    # A class occurs once per batch, and a batch holds P groups.
    per_epoch = max(int(groups.max()), -(-int(groups.sum()) // p))
    return BatchPlan(classes_per_batch=p, images_per_class=k, per_epoch=per_epoch)


def _check_batch(p: int, k: int, max_p: int, max_k: int) -> None:
    """Raise SettingsError for a batch that the training split does not allow."""
    if p > max_p:
        raise SettingsError(
            "classes_per_batch",
            p,
            f"the training split has {max_p} classes; use {max_p} or fewer",
        )
    if k > max_k:
        raise SettingsError(
            "images_per_class",
            k,
            f"the largest class has {max_k} training images; use {max_k} or fewer",
        )
    if p * k > MAX_BATCH:
        raise SettingsError(
            "images_per_class",
            k,
            f"with {p} classes, a batch has {p * k:,} images; a batch of more than {MAX_BATCH:,} "
            "takes too much memory: use fewer classes or images per class",
        )


class PKSampler:
    """Sample batches of P classes with K images each.

    An epoch contains every image at least once, in as few batches as possible. The images of a
    class are shuffled and split into groups of K. If the size of a class is not a multiple of K,
    some images are repeated, as evenly as possible. Each batch lists its images class by class.

    Args:
        labels: Class index of each training image, int64, shape (N,).
        plan: P, K and the number of batches per epoch, from :func:`plan_batches`.
        seed: Seed of the sampler's own random generator.

    Yields:
        Indices into ``labels``, int64, shape (P * K,).

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1])
        >>> sampler = PKSampler(labels, plan_batches(labels, images_per_class=2), seed=0)
        >>> [labels[batch].sort().values.tolist() for batch in sampler]
        [[0, 0, 1, 1], [0, 0, 1, 1]]
    """

    def __init__(self, labels: Tensor, plan: BatchPlan, *, seed: int):
        self.plan = plan
        self.members = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
        self.generator = torch.Generator().manual_seed(seed)
        self._epoch_start = self.generator.get_state()
        self._position = 0  # batches of the current epoch that were yielded

    def __len__(self) -> int:
        return self.plan.per_epoch

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the batches of an epoch; after `load_state_dict`, its remaining batches."""
        self._epoch_start = self.generator.get_state()
        batches = self._epoch()
        while self._position < len(batches):
            self._position += 1
            yield batches[self._position - 1]
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which another sampler can continue, also within an epoch."""
        if 0 < self._position < len(self):
            return {"generator": self._epoch_start, "position": self._position}
        # Between epochs, the next epoch is drawn from the generator's current state.
        return {"generator": self.generator.get_state(), "position": 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self.generator.set_state(state["generator"])
        self._epoch_start = state["generator"]
        self._position = int(state["position"])

    def _epoch(self) -> list[Tensor]:
        """Return all batches of one epoch."""
        groups = [self._groups(members) for members in self.members]
        # Groups left per class. -n means that n extra groups were drawn.
        groups_left = torch.tensor([len(class_groups) for class_groups in groups])
        batches = []
        for _ in range(len(self)):
            batch = []
            for index in self._choose_classes(groups_left):
                if not groups[index]:
                    groups[index] = self._groups(self.members[index])
                groups_left[index] -= 1
                batch.append(groups[index].pop())
            batches.append(torch.cat(batch))
        order = self._shuffled(len(batches)).tolist()
        return [batches[index] for index in order]

    def _choose_classes(self, groups_left: Tensor) -> list[int]:
        """Return the P classes with the most groups left; ties are broken at random.

        This order gives the shortest epoch. Classes that have run out are repeated equally often.
        """
        noise = torch.rand(len(groups_left), generator=self.generator, dtype=torch.float64)
        ranked = (groups_left + noise).argsort(descending=True)
        return ranked[: self.plan.classes_per_batch].tolist()

    def _groups(self, members: Tensor) -> list[Tensor]:
        """Split the images of one class into groups of K, each image at least once."""
        k = self.plan.images_per_class
        size = len(members)
        if size < k:  # one group that repeats each image as evenly as possible
            repeats = -(-k // size)
            order = torch.cat([self._shuffled(size) for _ in range(repeats)])
            return [members[order[:k]]]
        shuffled = members[self._shuffled(size)]
        missing = -size % k
        if missing:
            # Fill the last group with images of earlier groups, to keep its images distinct.
            earlier = shuffled[: size - size % k]
            extra = earlier[self._shuffled(len(earlier))[:missing]]
            shuffled = torch.cat([shuffled, extra])
        return list(shuffled.split(k))

    def _shuffled(self, count: int) -> Tensor:
        """Return a random permutation of 0 to count - 1."""
        return torch.randperm(count, generator=self.generator)
