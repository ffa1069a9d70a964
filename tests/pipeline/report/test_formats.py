"""Percentages, p-values and differences as text."""

import re

import numpy as np
import pytest

from pipeline.report.formats import (
    format_difference,
    format_interval,
    format_p_value,
    format_percent,
    format_points,
    is_significant,
    p_equals,
)
from stages.evaluation.paired_tests import mcnemar_test
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
        (0.0498, "0.0498", "p = 0.0498"),
        (0.049999, "0.049999", "p = 0.049999"),
        (0.0502, "0.050", "p = 0.050"),
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
    assert format_points(0.0, decimals=1) == "+0.0"


@pytest.mark.parametrize("only_b", range(12))
def test_printed_interval_and_p_value_agree_with_the_verdict(only_b):
    """A printed bound has the sign of its value, and a printed p-value is on its side of 0.05."""
    for count in (30, 300, 30_000):
        for only_a in range(only_b, 40):
            a = np.repeat([True, False, False], (only_a, only_b, 0))
            filler = np.zeros(max(0, count - only_a - only_b), dtype=bool)
            paired = mcnemar_test("a", "b", "test", np.r_[a, filler], np.r_[~a, filler])
            text = format_difference(paired)
            low, high = re.search(r"CI (\S+) to (\S+)\)", text.replace("\u2212", "-")).groups()
            p_value = format_p_value(paired.p_value)
            excludes_0 = float(low) > 0 or float(high) < 0
            assert excludes_0 == ("not significantly" not in text) == is_significant(paired)
            assert excludes_0 == (p_value.startswith("<") or float(p_value) < 0.05)


@pytest.mark.parametrize("p_value, negation", [(0.049, ""), (0.05, "not "), (0.63, "not ")])
def test_differences_below_5_percent_are_significant(p_value, negation):
    names = "knn_accuracy", "pixel_knn_accuracy", "test"
    text = format_difference(PairedTest(*names, -0.02, -0.05, 0.01, p_value, 90, ""))
    assert "\u22122.0 points (95% CI \u22125.0 to +1.0)" in text
    assert f", {negation}significantly different" in text
    assert p_equals(p_value) in text
    undefined = PairedTest(*names, None, None, None, None, 0, "")
    assert format_difference(undefined) == "undefined"
