"""Connected groups of indices against a slow search on random graphs."""

import random

import pytest

from pipeline.data.components import connected_groups, spanning_edges


def groups_by_search(count, edges):
    """Merge groups edge by edge, in lists."""
    groups = [[index] for index in range(count)]
    for left, right in edges:
        left_group = next(group for group in groups if left in group)
        right_group = next(group for group in groups if right in group)
        if left_group is not right_group:
            left_group.extend(right_group)
            groups.remove(right_group)
    return sorted(sorted(group) for group in groups)


@pytest.mark.parametrize("seed", range(30))
def test_groups_equal_slow_search(seed):
    generator = random.Random(seed)
    count = generator.randint(1, 40)
    edges = [
        (generator.randrange(count), generator.randrange(count))
        for _ in range(generator.randint(0, 40))
    ]
    groups = connected_groups(count, edges)
    assert groups == groups_by_search(count, edges)
    tree = spanning_edges(count, edges)
    assert connected_groups(count, tree) == groups
    assert len(tree) == count - len(groups)


def test_no_edges_and_no_indices():
    assert connected_groups(3, []) == [[0], [1], [2]]
    assert connected_groups(0, []) == []
