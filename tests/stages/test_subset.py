"""Evenly spaced positions."""

import pytest

from stages.subset import evenly_spaced


def test_all_positions_are_returned_up_to_the_limit():
    for count in (1, 2, 9, 10):
        assert evenly_spaced(count, 10).tolist() == list(range(count))


@pytest.mark.parametrize(("count", "limit"), [(11, 10), (5100, 2000), (100_000, 10_000)])
def test_larger_counts_are_thinned_evenly_from_the_first_to_the_last(count, limit):
    positions = evenly_spaced(count, limit)
    assert len(positions) == limit
    assert positions[0] == 0
    assert positions[-1] == count - 1
    gaps = positions.diff()
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
