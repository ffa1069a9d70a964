"""Counts of closer positives equal a plain loop, with ties and crowded buckets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.evaluation.closer_positives import (
    STEPS,
    closer_positives,
    count_block,
    count_sorted,
)


def check_against_a_loop(positives: np.ndarray, negatives: np.ndarray) -> None:
    counts, tied = closer_positives(positives, negatives)
    assert counts.tolist() == [sum(p < n for p in positives) for n in negatives]
    assert tied == sum(p == n for p in positives for n in negatives)


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 12), st.integers(0, 12), st.sampled_from([2, 5, 10**6]), st.integers(0, 10**6)
)
def test_counts_equal_a_loop(positives, negatives, values, seed):
    """Few distinct values give many ties, also between positives."""
    generator = np.random.default_rng(seed)
    distances = generator.integers(0, values, positives + negatives) * np.float32(2 / values)
    check_against_a_loop(np.sort(distances[:positives]), distances[positives:])


@pytest.mark.parametrize("spread", [0, 1e-7, 1e-5, 1e-3])
def test_crowded_buckets(spread):
    """One far positive makes the buckets so wide that all others are in the same one."""
    generator = np.random.default_rng(0)
    near = (0.5 + spread * generator.random(50 * STEPS)).astype(np.float32)
    positives = np.sort(np.append(near, np.float32(2)))
    negatives = (0.5 + spread * generator.random(300)).astype(np.float32)
    check_against_a_loop(positives, np.append(negatives, np.float32([0, 1, 2, 2])))


@pytest.mark.parametrize("count", [count_block, count_sorted])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_equal_a_loop(count, threads, monkeypatch):
    monkeypatch.setattr("stages.evaluation.closer_positives.MIN_PARALLEL", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    generator = torch.Generator().manual_seed(1)
    positives = torch.randint(0, 30, (7, 9), generator=generator).float().sort(dim=1).values
    negatives = torch.randint(0, 30, (7, 40), generator=generator).float()
    counts = count(positives, negatives)
    pairs = positives[:, :, None], negatives[:, None]  # (7, 9, 1) and (7, 1, 40)
    assert torch.equal(counts.lost, (pairs[0] >= pairs[1]).sum(2))
    assert torch.equal(counts.tied, (pairs[0] == pairs[1]).sum((1, 2)))
    assert torch.equal(counts.closer, (pairs[0] < pairs[1]).sum((0, 1)))
    assert counts.tied.sum() > 0
