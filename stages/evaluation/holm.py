"""Holm's correction of p-values for several tests."""

from collections.abc import Sequence


def holm_adjust(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values for the number of tests with Holm's step-down method.

    If the adjusted values below 0.05 are called significant, the probability of one or more false
    findings among all tests is at most 5%, whether the tests depend on each other or not.

    For the p-values 0.01, 0.04 and 0.03: the smallest is multiplied by 3, the next one, 0.03, by 2,
    and the largest by 1. That gives 0.03, 0.06 and 0.04. An adjusted value is at least as large as
    those of smaller p-values, so the last one becomes 0.06 as well.

    Args:
        p_values: P-values in [0, 1]; None for a test that could not be computed.

    Returns:
        Adjusted p-values in [0, 1], in the same order. None stays None and does not count as a
        test.

    References:
        Holm 1979, "A simple sequentially rejective multiple test procedure" (Scandinavian Journal
        of Statistics 6, 65-70).

    Example:
        >>> holm_adjust([0.01, 0.04, None, 0.03])
        [0.03, 0.06, None, 0.06]
    """
    tested = sorted(
        (value, position) for position, value in enumerate(p_values) if value is not None
    )
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, position) in enumerate(tested):
        largest = min(1.0, max(largest, (len(tested) - rank) * value))
        adjusted[position] = largest
    return adjusted
