"""Connected components of a graph: indices joined directly or through others."""

from collections.abc import Sequence

import numpy as np

Edge = tuple[int, int]


def connected_groups(count: int, edges: Sequence[Edge]) -> list[list[int]]:
    """Group the indices from 0 to ``count - 1`` that are connected by edges.

    Args:
        count: Number of indices.
        edges: Pairs of indices, in any order and direction.

    Returns:
        Every index in exactly one group. Groups are ordered by their first index, and each group
        is sorted.

    Example:
        >>> connected_groups(5, [(0, 3), (4, 3)])
        [[0, 3, 4], [1], [2]]
    """
    if not edges:
        return [[index] for index in range(count)]
    from scipy.sparse import coo_array  # slow to import, and seldom needed
    from scipy.sparse.csgraph import connected_components

    left, right = np.array(edges, np.int64).reshape(-1, 2).T  # (E,), (E,)
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(count, count))
    _, components = connected_components(graph, directed=False)  # (count,)
    groups: dict[int, list[int]] = {}
    for index, component in enumerate(components.tolist()):
        groups.setdefault(component, []).append(index)
    return list(groups.values())


def spanning_edges(count: int, edges: Sequence[Edge]) -> list[Edge]:
    """Return the smallest number of edges that connect the same indices.

    Args:
        count: Number of indices.
        edges: Pairs of indices, as for :func:`connected_groups`.

    Returns:
        Fewer than ``count`` edges, each from the first index of a group to another one.

    Example:
        >>> spanning_edges(4, [(0, 1), (1, 2), (2, 0)])
        [(0, 1), (0, 2)]
    """
    groups = connected_groups(count, edges)
    return [(group[0], index) for group in groups for index in group[1:]]
