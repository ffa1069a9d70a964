"""Only 0 and 1 are printed as 0 and 1."""

from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.numbers import format_percentage, format_share


@given(st.floats(0, 1))
@example(1 - 1 / 4_000_000)
@example(1 - 2**-53)
@example(5e-324)
def test_only_perfect_shares_read_as_perfect(value):
    for decimals in (1, 4, 6):
        share = float(format_share(value, decimals))
        percentage = float(format_percentage(value, decimals).removesuffix("%"))
        assert (share == 1) == (percentage == 100) == (value == 1)
        assert (share == 0) == (value == 0)
        assert abs(share - value) <= 0.51 * 10**-decimals


def test_ordinary_shares_have_the_given_decimals():
    assert format_share(0.98765, 4) == "0.9877"
    assert format_percentage(0.98765, 1) == "98.8%"
