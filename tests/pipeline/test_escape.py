"""Cells that a spreadsheet would run as formulas."""

import pytest

from pipeline.escape import escape_formula


@pytest.mark.parametrize(
    "value, escaped",
    [
        ("=1+1", "'=1+1"),
        ("-1", "-1"),
        ("+4.5e3", "+4.5e3"),
        ("-x", "'-x"),
        ("@a", "'@a"),
        ("a=b", "a=b"),
        ("", ""),
        ("\t=1", "'\t=1"),
        ("\uff1d1", "'\uff1d1"),
    ],
)
def test_formulas_get_an_apostrophe(value, escaped):
    assert escape_formula(value) == escaped
