"""Assigning images to folds, on many random sources."""

from collections import Counter

import numpy as np
import pytest
from factories import ROW, source_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.folds import assign_folds, least_filled_fold, plan_folds
from pipeline.data.splits import indivisible_groups, split_source
from stages.errors import SettingsError
from stages.settings import ReadSettings


def two_classes(count: int) -> list[tuple[str, int, str, str]]:
    return [("ab"[number % 2], number, "", "") for number in range(count)]


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, min_size=2, max_size=60), st.integers(2, 8), st.integers(0, 9))
def test_copies_and_groups_share_a_fold(rows, folds, seed):
    source = source_of(rows, ReadSettings(size=4, split_seed=seed))
    groups = indivisible_groups(source, range(len(rows)))
    if folds > len(groups):
        with pytest.raises(SettingsError) as raised:
            assign_folds(source, folds)
        assert raised.value.field == "folds"
        return
    assigned = assign_folds(source, folds)
    assert set(assigned) == set(range(folds))  # no fold is empty
    assert all(len({assigned[row] for row in group}) == 1 for group in groups)
    assert assigned == assign_folds(source, folds)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=6), st.integers(2, 7), st.randoms())
def test_without_groups_classes_and_folds_have_even_sizes(sizes, folds, random):
    labels = [label for label, size in zip("abcdef", sizes, strict=False) for _ in range(size)]
    rows = [(label, number, "", "") for number, label in enumerate(labels)]
    folds = min(folds, len(rows))
    assigned = assign_folds(source_of(rows), folds)
    for label in set(labels):
        counts = Counter(fold for row, fold in zip(rows, assigned, strict=True) if row[0] == label)
        sizes_of_folds = [counts[fold] for fold in range(folds)]
        assert max(sizes_of_folds) - min(sizes_of_folds) <= 1
    assert max(Counter(assigned).values()) - min(Counter(assigned).values()) <= 1
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = source_of([rows[i] for i in order])
    assert assign_folds(shuffled, folds) == [assigned[i] for i in order]


def test_as_many_folds_as_images_is_leave_one_out():
    assert sorted(assign_folds(source_of(two_classes(12)), 12)) == list(range(12))


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=30, max_size=80), st.integers(2, 5), st.integers(1, 3))
def test_each_image_is_tested_once_per_repeat_and_not_trained_on_there(rows, folds, repeats):
    source = source_of(rows)
    try:
        plans, _ = plan_folds(source, folds, repeats)
    except SettingsError:
        return
    names = [f"fold-{fold}" for fold in range(1, folds + 1)]
    if repeats > 1:
        names = [f"repeat-{repeat}-{name}" for repeat in range(1, repeats + 1) for name in names]
    assert list(plans) == names
    plan = list(plans.values())
    for repeat in range(repeats):
        tested = np.array(plan[repeat * folds : (repeat + 1) * folds]) == "test"
        assert (tested.sum(0) == 1).all()
    for splits in plan:
        for group in indivisible_groups(source, range(len(rows))):
            assert len({splits[row] for row in group}) == 1
        data = split_source(source, splits)
        seen = {*data.train.ids, *(data.validation.ids if data.validation else ())}
        assert data.test and not data.leaked and not set(data.test.ids) & seen


def test_repeats_and_split_seeds_give_other_folds():
    rows = two_classes(40)
    plans, _ = plan_folds(source_of(rows), 4, 2)
    other, _ = plan_folds(source_of(rows, ReadSettings(size=4, split_seed=1)), 4, 2)
    assert plans["repeat-1-fold-1"] != plans["repeat-2-fold-1"]
    assert plans["repeat-1-fold-1"] != other["repeat-1-fold-1"]
    assert plans == plan_folds(source_of(rows), 4, 2)[0]


@pytest.mark.parametrize(("size", "validated"), [(4, False), (20, True)])
def test_small_classes_have_no_validation_images_and_a_note_says_so(size, validated):
    rows = [("abc"[number % 3], number, "", "") for number in range(3 * size)]
    plans, remarks = plan_folds(source_of(rows), 2, 1)
    assert all(("val" in splits) == validated for splits in plans.values())
    assert any("too small" in remark for remark in remarks) != validated


def test_class_with_one_image_is_noted_and_not_trained_on_while_it_is_tested():
    rows = [*two_classes(12), ("lone", 99, "", "")]
    plans, remarks = plan_folds(source_of(rows), 3, 1)
    assert any("lone" in remark for remark in remarks)
    for splits in plans.values():
        assert split_source(source_of(rows), splits).train.classes == ("a", "b", "lone")


@pytest.mark.parametrize(
    ("folds", "repeats", "field", "message"),
    [
        (1, 1, "folds", "2 to 4"),
        (0, 1, "folds", "2 to 4"),
        (5, 1, "folds", "2 to 4"),
        (2, 1, "folds", "more folds"),
        (4, 0, "repeats", "repeats 0"),
    ],
)
def test_impossible_folds_are_a_settings_error(folds, repeats, field, message):
    source = source_of(two_classes(4))
    with pytest.raises(SettingsError, match=message) as raised:
        plan_folds(source, folds, repeats)
    assert raised.value.field == field
    # Leaving one of two classes of two images out is possible.
    assert len(plan_folds(source, 4, 1)[0]) == 4


def test_fold_with_fewest_images_of_the_class_is_chosen():
    class_counts = [Counter(a=2), Counter(a=1, b=9), Counter(a=3)]
    assert least_filled_fold(Counter(a=1), class_counts, [2, 10, 3]) == 1


def test_classes_count_by_their_images_in_the_group():
    class_counts = [Counter(a=2), Counter(b=3)]  # 2 * 2 = 4 and 1 * 3 = 3
    assert least_filled_fold(Counter(a=2, b=1), class_counts, [2, 3]) == 1
    assert least_filled_fold(Counter(a=1, b=1), class_counts, [2, 3]) == 0


def test_ties_go_to_the_smallest_fold_then_to_the_first():
    class_counts = [Counter(b=5), Counter(b=3), Counter(b=3)]
    assert least_filled_fold(Counter(a=1), class_counts, [5, 3, 3]) == 1


def test_folds_without_validation_images_say_that_none_were_asked_for():
    source = source_of(two_classes(40), ReadSettings(size=4, val=0))
    plans, notes = plan_folds(source, 4, 1)
    assert {split for plan in plans.values() for split in plan} == {"train", "test"}
    assert len(notes) == 1 and "--val 0" in notes[0]
