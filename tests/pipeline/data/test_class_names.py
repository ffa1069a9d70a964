"""Class names of new images: known, new, in another Unicode form, or different by case."""

import pytest

from pipeline.data.class_names import match_class_names
from stages.errors import DataError

COMPOSED, DECOMPOSED = "ros\u00e9", "rose\u0301"


def test_known_and_new_names():
    matched = match_class_names("s", ["owl", "cat", "owl"], ["cat", "dog"])
    assert matched == ({"owl": "owl", "cat": "cat"}, ())


@pytest.mark.parametrize("known, new", [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_another_unicode_form_is_the_known_class(known, new):
    names, notes = match_class_names("s", [new], ["cat", known])
    assert names == {new: known}
    assert len(notes) == 1 and ascii(known) in notes[0]


def test_two_new_names_of_one_look_are_one_class():
    names, notes = match_class_names("s", [DECOMPOSED, COMPOSED], ["cat"])
    assert names == {DECOMPOSED: DECOMPOSED, COMPOSED: DECOMPOSED} and len(notes) == 1


@pytest.mark.parametrize(
    "labels, first, second",
    [(["Cat"], "Cat", "cat"), (["Owl", "owl"], "owl", "Owl"), (["ROSE\u0301"], "ROS", COMPOSED)],
)
def test_names_that_differ_by_case_are_an_error(labels, first, second):
    with pytest.raises(DataError) as error:
        match_class_names("folder", labels, ["cat", COMPOSED])
    for text in ("folder: ", first, second, "case", "rename"):
        assert text in str(error.value)


def test_exact_names_win_where_known_names_are_similar():
    known = ["cat", "Cat", COMPOSED, DECOMPOSED]
    labels = ["Cat", "cat", DECOMPOSED, COMPOSED]
    assert match_class_names("s", labels, known) == ({name: name for name in labels}, ())
    with pytest.raises(DataError, match="looks like"):
        # A third form of two known names: e with circumflex and acute, in another order.
        match_class_names("s", ["\u1ebf"], ["\u00ea\u0301", "e\u0302\u0301"])
