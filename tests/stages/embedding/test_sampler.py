"""Batches of P x K: invariants on many random label vectors, and the epochs that trip samplers up."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.embedding.sampler import PKSampler, plan_batches
from stages.errors import SettingsError

sizes = st.lists(st.integers(1, 40), min_size=2, max_size=8).filter(lambda sizes: max(sizes) >= 2)


def sampler_of(sizes: list[int], p: int, k: int, seed: int = 0) -> tuple[torch.Tensor, PKSampler]:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[
        torch.randperm(sum(sizes))
    ]
    return labels, PKSampler(
        labels, plan_batches(labels, classes_per_batch=p, images_per_class=k), seed=seed
    )


@given(sizes, st.integers(2, 8), st.integers(2, 9), st.integers(0, 99))
def test_every_batch_is_p_by_k_and_every_image_is_drawn(sizes, p, k, seed):
    p = min(p, len(sizes))  # P equal to the number of classes is common here
    labels, sampler = sampler_of(sizes, p, k, seed)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    for batch in batches:
        classes, counts = labels[batch].unique(return_counts=True)
        assert len(classes) == p and (counts == k).all()
        for c, size in enumerate(sizes):
            drawn = batch[labels[batch] == c]
            if len(
                drawn
            ):  # as evenly as the class allows: no image twice where there are K of them
                times = drawn.unique(return_counts=True)[1]
                assert len(times) == min(size, k) and int(times.max() - times.min()) <= 1
    assert set(torch.cat(batches).tolist()) == set(range(len(labels)))


@given(sizes, st.integers(2, 5), st.integers(0, 99), st.data())
def test_a_restored_sampler_goes_on_where_it_stood(sizes, k, seed, data):
    labels, sampler = sampler_of(sizes, 2, k, seed)
    whole = [batch.tolist() for _ in range(3) for batch in sampler]
    stop = data.draw(st.integers(0, len(whole)))
    _, first = sampler_of(sizes, 2, k, seed)
    first = PKSampler(labels, sampler.plan, seed=seed)
    done = []
    state = first.state_dict()
    while len(done) < stop:
        for batch in first:
            done.append(batch.tolist())
            state = first.state_dict()
            if len(done) == stop:
                break
    second = PKSampler(
        labels, sampler.plan, seed=seed + 1
    )  # another seed: the state alone must decide
    second.load_state_dict(state)
    while len(done) < len(whole):
        done += [batch.tolist() for batch in second]
    assert done == whole


def test_an_epoch_is_no_longer_than_it_must_be():
    # 10 groups of 4 in five classes of two groups each, P = 2: five batches are possible, and enough.
    _, sampler = sampler_of([8, 8, 8, 8, 8], 2, 4)
    assert len(sampler) == 5
    # One class of ten groups forces ten batches, whatever the others have.
    _, sampler = sampler_of([40, 4, 4], 2, 4)
    assert len(sampler) == 10


def test_defaults_follow_the_data():
    def plan(count, size):
        return plan_batches(torch.arange(count).repeat_interleave(size))

    assert plan(10, 100)[:2] == (10, 16)
    assert plan(62, 100)[:2] == (10, 16)
    assert plan(4, 35)[:2] == (4, 16)
    assert plan(30, 5)[:2] == (30, 5)
    assert plan(1000, 2)[:2] == (80, 2)


def test_settings_that_can_not_work_are_named():
    with pytest.raises(
        SettingsError,
        match=r"--classes-per-batch 4: the training part has 3 classes; use 3 or fewer",
    ):
        plan_batches(torch.tensor([0, 0, 1, 1, 2, 2]), classes_per_batch=4)
    with pytest.raises(SettingsError, match="two classes and two images"):
        plan_batches(torch.tensor([0, 0, 0]))
    with pytest.raises(SettingsError, match="two classes and two images"):
        plan_batches(torch.tensor([0, 1, 2]))
