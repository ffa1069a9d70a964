"""Percentages, p-values and differences as text."""

import math
from collections.abc import Sequence

from pipeline.numbers import format_percentage
from stages.evaluation.results import PairedTest, Score

UNDEFINED = "\u2013"
LEVEL = 0.05  # p-values below are significant


def format_percent(value: float | None) -> str:
    """Return a score as a percentage with one decimal.

    More decimals are used where one would round to 0% or 100%.

    Example:
        >>> format_percent(0.5), format_percent(0.99996), format_percent(1.0)
        ('50.0%', '99.996%', '100.0%')
    """
    if value is None or math.isnan(value):
        return UNDEFINED
    return format_percentage(value, decimals=1)


def format_interval(score: Score) -> str:
    """Return the 95% confidence interval as percentages, or nothing if it is undefined."""
    if score.low is None or score.high is None:
        return ""
    return f"{format_percent(score.low).removesuffix('%')}\u2013{format_percent(score.high)}"


def format_points(difference: float, *, decimals: int) -> str:
    """Return a difference of two scores in percentage points, with its sign.

    More decimals are used where one would round to 0, so that an interval that excludes 0 does
    not seem to contain 0. The same holds for 100.

    Example:
        >>> format_points(0.0125, decimals=2), format_points(0.0002, decimals=1)
        ('+1.25', '+0.02')
    """
    sign = "\u2212" if difference < 0 else "+"
    return sign + format_percentage(abs(difference), decimals).removesuffix("%")


def format_p_value(value: float | None) -> str:
    """Return a p-value with two significant digits.

    More digits are used where two would round a significant p-value to 0.05.

    Example:
        >>> format_p_value(1.0), format_p_value(0.022), format_p_value(1e-9)
        ('1.0', '0.022', '< 0.001')
        >>> format_p_value(0.0498), format_p_value(0.0502)
        ('0.0498', '0.050')
    """
    if value is None:
        return UNDEFINED
    if value < 0.001:
        return "< 0.001"
    texts = (f"{value:#.{digits}g}" for digits in range(2, 18))
    return next(text for text in texts if (float(text) < LEVEL) == (value < LEVEL))


def p_equals(value: float | None) -> str:
    """Return ``p = 0.63`` or ``p < 0.001``.

    Example:
        >>> p_equals(0.63), p_equals(1e-9)
        ('p = 0.63', 'p < 0.001')
    """
    text = format_p_value(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def is_significant(paired: PairedTest) -> bool:
    """Return True if the difference is significant at the 5% level."""
    return paired.p_value is not None and is_significant_p(paired.p_value)


def is_significant_p(p_value: float) -> bool:
    """Return True if a p-value is significant at the 5% level."""
    return p_value < LEVEL


def listed(names: Sequence[str]) -> str:
    """Return names as in a sentence.

    Example:
        >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def format_difference(paired: PairedTest) -> str:
    """Return the difference with its 95% confidence interval and its significance."""
    if paired.difference is None or paired.low is None or paired.high is None:
        return "undefined"
    difference = format_points(paired.difference, decimals=1)
    low, high = format_points(paired.low, decimals=1), format_points(paired.high, decimals=1)
    negation = "" if is_significant(paired) else "not "
    return (
        f"{difference} points (95% CI {low} to {high}), "
        f"{negation}significantly different ({p_equals(paired.p_value)})"
    )
