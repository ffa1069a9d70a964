"""Batches of P x K: invariants on random label vectors, and the length of an epoch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.embedding.sampler import MAX_BATCH, PKSampler, plan_batches
from stages.errors import SettingsError

SIZES = st.lists(st.integers(1, 40), min_size=2, max_size=8).filter(lambda sizes: max(sizes) >= 2)


def make_sampler(sizes: list[int], p: int, k: int, seed: int = 0) -> tuple[torch.Tensor, PKSampler]:
    """Return shuffled labels with classes of the given sizes, and their sampler."""
    sorted_labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = sorted_labels[torch.randperm(sum(sizes))]
    plan = plan_batches(labels, classes_per_batch=p, images_per_class=k)
    return labels, PKSampler(labels, plan, seed=seed)


@given(SIZES, st.integers(2, 8), st.integers(2, 9), st.integers(0, 99))
def test_every_batch_is_p_by_k_and_every_image_is_drawn(sizes, p, k, seed):
    p, k = min(p, len(sizes)), min(k, max(sizes))  # P often equals the number of classes
    labels, sampler = make_sampler(sizes, p, k, seed)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    for batch in batches:
        classes, counts = labels[batch].unique(return_counts=True)
        assert len(classes) == p and (counts == k).all()
        for label in classes.tolist():
            # A group repeats no image if the class has K images, and repeats evenly otherwise.
            _, times = batch[labels[batch] == label].unique(return_counts=True)
            assert len(times) == min(sizes[label], k)
            assert int(times.max() - times.min()) <= 1
    assert set(torch.cat(batches).tolist()) == set(range(len(labels)))


@given(SIZES, st.integers(2, 5), st.integers(0, 99), st.data())
def test_restored_sampler_continues_with_the_same_batches(sizes, k, seed, data):
    labels, sampler = make_sampler(sizes, 2, min(k, max(sizes)), seed)
    expected = [batch.tolist() for _ in range(3) for batch in sampler]
    stop = data.draw(st.integers(0, len(expected)))
    interrupted = PKSampler(labels, sampler.plan, seed=seed)
    batches = []
    state = interrupted.state_dict()
    while len(batches) < stop:
        for batch in interrupted:
            batches.append(batch.tolist())
            state = interrupted.state_dict()
            if len(batches) == stop:
                break
    # With another seed, only the state can reproduce the batches.
    restored = PKSampler(labels, sampler.plan, seed=seed + 1)
    restored.load_state_dict(state)
    while len(batches) < len(expected):
        batches += [batch.tolist() for batch in restored]
    assert batches == expected


def test_restored_sampler_has_the_same_state():
    labels, sampler = make_sampler([8, 8, 8], 2, 2)
    for _ in range(2):
        next(iter(sampler))
    state = sampler.state_dict()
    assert state["position"] > 0
    restored = PKSampler(labels, sampler.plan, seed=1)
    restored.load_state_dict(state)
    again = restored.state_dict()
    assert again["position"] == state["position"]
    assert torch.equal(again["generator"], state["generator"])


def test_epoch_is_as_short_as_possible():
    # Five classes with two groups of 4 each: P = 2 shows all ten groups in five batches.
    _, sampler = make_sampler([8, 8, 8, 8, 8], 2, 4)
    assert len(sampler) == 5
    # A class with ten groups needs ten batches.
    _, sampler = make_sampler([40, 4, 4], 2, 4)
    assert len(sampler) == 10


@pytest.mark.parametrize(
    ("class_count", "class_size", "expected"),
    [
        (10, 100, (10, 16)),
        (62, 100, (10, 16)),
        (4, 35, (4, 16)),
        (30, 5, (30, 5)),
        (1000, 2, (80, 2)),
    ],
)
def test_default_p_and_k_follow_the_class_sizes(class_count, class_size, expected):
    plan = plan_batches(torch.arange(class_count).repeat_interleave(class_size))
    assert plan[:2] == expected


def test_more_classes_per_batch_than_classes_is_an_error():
    with pytest.raises(SettingsError, match=r"classes_per_batch 4: .* 3 classes") as error:
        plan_batches(torch.tensor([0, 0, 1, 1, 2, 2]), classes_per_batch=4)
    assert error.value.field == "classes_per_batch"


def test_more_images_per_class_than_the_largest_class_has_is_an_error():
    labels = torch.tensor([0, 0, 0, 1, 2])
    assert plan_batches(labels, images_per_class=3).images_per_class == 3
    with pytest.raises(SettingsError, match=r"images_per_class 99999: .* 3 training") as error:
        plan_batches(labels, images_per_class=99_999)
    assert error.value.field == "images_per_class"


def test_batch_that_takes_too_much_memory_is_an_error():
    labels = torch.arange(2).repeat_interleave(MAX_BATCH)
    assert plan_batches(labels, images_per_class=MAX_BATCH // 2).classes_per_batch == 2
    with pytest.raises(SettingsError, match="16,384"):
        plan_batches(labels, images_per_class=MAX_BATCH // 2 + 1)


def test_default_k_is_rounded_up_to_a_multiple_beyond_the_largest_class():
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert plan_batches(labels, multiple_of=4)[:2] == (2, 4)
    assert plan_batches(labels, images_per_class=3, multiple_of=4)[:2] == (2, 3)


@pytest.mark.parametrize("labels", [[], [0], [0, 0, 0], [0, 1, 2]])
def test_labels_that_form_no_triplet_are_an_error(labels):
    with pytest.raises(SettingsError, match="two classes, and at least two images") as error:
        plan_batches(torch.tensor(labels, dtype=torch.int64))
    assert error.value.field == "data"
