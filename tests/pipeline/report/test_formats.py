"""Percentages, p-values and differences as text."""

import pytest

from pipeline.report.formats import (
    format_difference,
    format_interval,
    format_p_value,
    format_percent,
    format_points,
    p_equals,
)
from stages.evaluation.results import PairedTest, Score


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "\u2013"),
        (float("nan"), "\u2013"),
        (1.0, "100.0%"),
        (0.99996, "99.996%"),
        (0.9999998, "99.99998%"),
        (1 - 2**-53, "99.99999999999999%"),
        (1e-9, "0.0000001%"),
        (0.0, "0.0%"),
        (0.0004, "0.04%"),
        (0.5, "50.0%"),
    ],
)
def test_percentages_near_0_and_100_get_more_decimals(value, text):
    assert format_percent(value) == text


@pytest.mark.parametrize(
    "value, text, equation",
    [
        (1.0, "1.0", "p = 1.0"),
        (0.6291, "0.63", "p = 0.63"),
        (0.022, "0.022", "p = 0.022"),
        (0.0009, "< 0.001", "p < 0.001"),
        (None, "\u2013", "p = \u2013"),
    ],
)
def test_p_values_have_two_significant_digits(value, text, equation):
    assert format_p_value(value) == text
    assert p_equals(value) == equation


def test_an_undefined_interval_is_empty():
    score = Score("knn_accuracy", "test", 0.5, 0.25, 0.75, 8, "")
    assert format_interval(score) == "25.0\u201375.0%"
    assert format_interval(Score("knn_accuracy", "test", None, None, None, 0, "")) == ""


def test_differences_use_a_minus_sign():
    assert format_points(-0.0125, decimals=1) == "\u22121.2"
    assert format_points(0.25, decimals=2) == "+25.00"


@pytest.mark.parametrize("p_value, negation", [(0.049, ""), (0.05, "not "), (0.63, "not ")])
def test_differences_below_5_percent_are_significant(p_value, negation):
    names = "knn_accuracy", "pixel_knn_accuracy", "test"
    text = format_difference(PairedTest(*names, -0.02, -0.05, 0.01, p_value, 90, ""))
    assert "\u22122.0 points (95% CI \u22125.0 to +1.0)" in text
    assert f", {negation}significantly different" in text
    assert p_equals(p_value) in text
    undefined = PairedTest(*names, None, None, None, None, 0, "")
    assert format_difference(undefined) == "undefined"
