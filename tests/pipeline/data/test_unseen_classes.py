"""Unseen classes, given or held out, and the classes that choose the epoch."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from factories import make_dataset, source_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.audit import as_json, audit_source
from pipeline.data.dataset import Source
from pipeline.data.folds import plan_folds
from pipeline.data.splits import split_source
from pipeline.data.unseen_classes import (
    MAX_HELD_OUT,
    MIN_HELD_OUT,
    MIN_TRAINING_CLASSES,
    requested_classes,
)
from stages.errors import DataError
from stages.settings import ReadSettings

Row = tuple[str, int, str, str]  # label, pixels, group, given split


def rows_of(classes: int, images: int = 10, split: str = "") -> list[Row]:
    """Return distinct images of several classes, named c0, c1 and so on."""
    return [
        (f"c{label}", label * 1000 + image, "", split)
        for label in range(classes)
        for image in range(images)
    ]


def source_with(rows: list[Row], unseen: float = 0, seed: int = 0) -> Source:
    return source_of(rows, ReadSettings(size=4, split_seed=seed, unseen_classes=unseen))


def unseen_of(rows: list[Row], unseen: float, seed: int = 0) -> set[str]:
    data = split_source(source_with(rows, unseen, seed))
    return set(data.unseen.classes if data.unseen else ())


def test_whole_classes_are_held_out_and_the_others_are_split_as_usual():
    data = split_source(source_with(rows_of(10), 3))
    assert data.unseen and len(data.unseen.classes) == 3 and len(data.unseen) == 30
    assert data.unseen.labels.bincount().tolist() == [10, 10, 10]
    assert not set(data.unseen.classes) & set(data.train.classes)
    for name, label in zip(data.unseen.ids, data.unseen.labels.tolist(), strict=True):
        assert data.origin.entries[int(name)].label == data.unseen.classes[label]
    assert (len(data.train), len(data.validation or ()), len(data.test or ())) == (49, 7, 14)
    assert data.test and data.test.classes == data.train.classes
    assert Counter(data.parts) == {"train": 49, "val": 7, "test": 44}
    assert data.held_out is None  # seven classes are too few


def test_an_integer_is_a_number_and_a_float_a_share():
    assert len(unseen_of(rows_of(20, 3), 4)) == 4
    assert len(unseen_of(rows_of(20, 3), 0.4)) == 8
    assert len(unseen_of(rows_of(20, 3), 0.001)) == 2  # at least two on either side
    assert len(unseen_of(rows_of(20, 3), 0.999)) == 18
    assert requested_classes(2, 4) == requested_classes(0.5, 4) == 2


def test_seed_and_names_choose_the_classes_and_other_classes_hardly_matter():
    rows = rows_of(12, 3)
    chosen = [frozenset(unseen_of(rows, 3, seed)) for seed in range(8)]
    assert len(set(chosen)) > 4 and chosen[0] == unseen_of(list(reversed(rows)), 3)
    more = rows + [("another", 99_000 + image, "", "") for image in range(3)]
    for seed, before in enumerate(chosen):
        assert len(before - unseen_of(more, 3, seed)) <= 1


def test_images_of_given_splits_are_held_out_too():
    rows = [
        (label, pixels, "", "test" if pixels % 5 == 0 else "") for label, pixels, _, _ in rows_of(6)
    ]
    data = split_source(source_with(rows, 2))
    assert data.unseen and len(data.unseen) == 20
    assert data.test and len(data.test) == 8 and set(data.test.labels.tolist()) == {0, 1, 2, 3}


CLASS_ROWS = st.lists(
    st.tuples(
        st.sampled_from(("a", "b", "c", "d", "e", "f", "A")),
        st.integers(0, 60),
        st.sampled_from(("", "", "", "g1", "g2")),
        st.just(""),
    ),
    min_size=8,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(CLASS_ROWS, st.integers(2, 4), st.integers(0, 5))
def test_groups_copies_and_similar_names_stay_together(rows, count, seed):
    try:
        unseen = unseen_of(rows, count, seed)
    except DataError as error:
        assert "--unseen-classes" in str(error) and ";" in str(error)
        return
    labels = {row[0] for row in rows}
    assert 2 <= len(unseen) <= count and len(labels - unseen) >= 2
    for column in (1, 2):
        for key in {row[column] for row in rows} - {""}:
            sides = {row[0] in unseen for row in rows if row[column] == key}
            assert len(sides) == 1
    assert not {"a", "A"} <= labels or ("a" in unseen) == ("A" in unseen)


def test_fewer_classes_are_held_out_if_groups_connect_them():
    rows = [*rows_of(9, 4)]
    for label in (0, 3, 6):  # three groups of three classes
        rows += [(f"c{label + offset}", 90_000 + label, "", "") for offset in range(3)]
    data = split_source(source_with(rows, 4))
    assert data.unseen and len(data.unseen.classes) == 3
    assert any("3 unseen classes instead of 4" in note for note in data.notes)
    assert not split_source(source_with(rows, 6)).notes


@pytest.mark.parametrize(
    ("rows", "unseen", "message"),
    [
        (rows_of(3), 2, "3 classes"),
        (rows_of(3), 0.5, "at least 4"),
        (rows_of(10), 9, "use 2 to 8"),
        ([(label, pixels, "g", "") for label, pixels, _, _ in rows_of(6)], 3, "connect"),
        ([*rows_of(5), ("new", 70_000, "", "test")], 2, "new has no training image"),
        ([*rows_of(5), ("new", 70_000, "", "val")], 2, "new has no training image"),
    ],
)
def test_impossible_numbers_are_one_error_and_a_problem_in_the_audit(rows, unseen, message):
    source = source_with(rows, unseen)
    with pytest.raises(DataError, match=rf"--unseen-classes {unseen}: .*{message}"):
        split_source(source)
    audit = audit_source(source)
    assert message in audit.problems[0] and audit.batches is None and not audit.unseen_classes
    assert sum(sum(counts.values()) for counts in audit.counts.values()) == len(rows)


def test_roles_and_held_out_classes_exclude_each_other():
    source = source_with(rows_of(6), 2)
    entries = (source.entries[0]._replace(part="test", role="query"), *source.entries[1:])
    with pytest.raises(DataError, match="role"):
        split_source(replace(source, entries=entries))


def given_test_classes(train: int, unseen: int) -> list[Row]:
    """Return rows of training classes with test images, and of test classes alone."""
    rows = rows_of(train, 4, "train") + [
        (f"c{label}", 5000 + label, "", "test") for label in range(train)
    ]
    return rows + [(f"new{label}", 6000 + label, "", "test") for label in range(unseen)]


def test_given_test_classes_without_training_images_are_unseen():
    data = split_source(source_with(given_test_classes(3, 2)))
    assert data.train.classes == ("c0", "c1", "c2") and data.unseen
    assert data.unseen.classes == ("new0", "new1") and data.unseen.labels.tolist() == [0, 1]
    assert data.test and len(data.test) == 3 and data.held_out is None
    one = split_source(source_with(given_test_classes(3, 1)))
    assert one.unseen and one.unseen.classes == ("new0",)
    rows = [row for row in given_test_classes(3, 2) if row[3] == "train" or "new" in row[0]]
    assert split_source(source_with(rows)).test is None


def test_a_class_with_validation_but_no_training_images_is_an_error():
    rows = given_test_classes(3, 1)
    for more in ([("x", 7000, "", "val")], [("x", 7000, "", "val"), ("x", 7001, "", "test")]):
        with pytest.raises(DataError, match=r"class x .* no image in the training split"):
            split_source(source_with(rows + more))


@pytest.mark.parametrize(("trained", "tested"), [("Cat", "cat"), ("Ros\u00e9", "Rose\u0301")])
def test_a_name_that_differs_by_case_or_unicode_form_is_no_unseen_class(trained, tested):
    rows = [
        *given_test_classes(3, 1),
        *((trained, 8000 + image, "", "train") for image in range(3)),
    ]
    with pytest.raises(DataError, match=rf"class {tested} .* the class {trained} only by case"):
        split_source(source_with([*rows, (tested, 8100, "", "test")]))


def test_a_manifest_may_have_classes_that_differ_by_case():
    rows = [*given_test_classes(3, 1), *(("a", 8000 + image, "", "train") for image in range(3))]
    source = replace(source_with([*rows, ("A", 8100, "", "test")]), name="letters.csv")
    data = split_source(source)
    assert data.unseen and "A" in data.unseen.classes and "a" in data.train.classes
    accents = [("\u00e9", 8200, "", "train"), ("e\u0301", 8201, "", "test")]
    source = replace(source_with([*rows, *accents]), name="letters.csv")
    with pytest.raises(DataError, match="Unicode form"):
        split_source(source)


def test_copies_of_training_images_are_leaked():
    rows = [*given_test_classes(3, 1), ("new0", 0, "", "test")]  # the pixels of a c0
    data = split_source(source_with(rows))
    assert data.unseen and data.leaked == () and data.leaked_unseen == (1,)
    audit = audit_source(data.origin, dataset=data)
    assert len(audit.leaks) == len(audit.label_conflicts) == 1


def held_out_of(rows: list[Row], seed: int = 0) -> set[str]:
    data = split_source(source_with([*rows, ("new", 99_999, "", "test")], seed=seed))
    return set(data.held_out_classes)


@pytest.mark.parametrize(
    ("classes", "expected"), [(19, 0), (20, MIN_HELD_OUT), (31, 4), (100, 10), (700, MAX_HELD_OUT)]
)
def test_a_tenth_of_the_training_classes_is_held_out(classes, expected):
    assert len(held_out_of(rows_of(classes, 2, "train"))) == expected


def test_without_unseen_classes_no_training_class_is_held_out():
    data = split_source(source_with(rows_of(30)))
    assert data.unseen is None and data.held_out is None and data.embedding_train is data.train


def test_held_out_classes_stay_in_the_training_split():
    data = split_source(source_with(rows_of(30), 4))
    assert data.held_out and data.held_out.classes == data.train.classes
    assert len(data.held_out_classes) == MIN_HELD_OUT
    assert set(data.held_out.ids) < set(data.train.ids)
    trained = data.embedding_train
    assert sorted(trained.ids + data.held_out.ids) == sorted(data.train.ids)
    names = {trained.classes[label] for label in trained.labels.tolist()}
    assert names == set(data.train.classes) - set(data.held_out_classes)
    assert data.validation and len(data.validation.labels.unique()) == 26
    audit = as_json(audit_source(data.origin, dataset=data))
    assert audit["held_out_classes"] == data.held_out_classes
    assert audit["unseen_classes"] == data.unseen.classes if data.unseen else False
    assert "remarks" not in audit


def test_held_out_classes_are_seeded_and_closed_under_copies():
    rows = rows_of(MIN_TRAINING_CLASSES, 3, "train")
    assert len({frozenset(held_out_of(rows, seed)) for seed in range(6)}) > 3
    pairs = [(f"c{label}", 50_000 + label // 2, "", "train") for label in range(20)]
    for seed in range(6):
        numbers = sorted(int(label[1:]) for label in held_out_of(rows + pairs, seed))
        assert len(numbers) == 4 and numbers[0] + 1 == numbers[1] and numbers[2] + 1 == numbers[3]
    connected = [(f"c{label}", 60_000, "", "train") for label in range(20)]
    assert held_out_of(rows + connected) == set()


def test_held_out_classes_leave_half_of_the_classes_with_two_images():
    rows = rows_of(5, 3, "train") + [(f"lone{i}", 70_000 + i, "", "train") for i in range(30)]
    chosen = held_out_of(rows)
    assert len(chosen) == 2 and all(label.startswith("c") for label in chosen)


def test_folds_pool_unseen_classes():
    source = source_with(
        [*rows_of(4, 6, "train"), *[("new", 9000 + i, "", "test") for i in range(6)]]
    )
    pool = replace(source, entries=tuple(entry._replace(part="") for entry in source.entries))
    for splits in plan_folds(pool, 3, 1)[0].values():
        data = split_source(pool, splits)
        assert data.unseen is None and data.held_out is None and "new" in data.train.classes


def test_roles_become_queries():
    data = make_dataset(("a", "b", "c"), train=3, test=2)
    assert data.test and data.test.queries is None
    entries = []
    for index, entry in enumerate(data.origin.entries):
        role = ("query", "gallery")[index % 2] if entry.part == "test" else ""
        label = "z" if entry.part == "test" and entry.label == "c" else entry.label
        entries.append(entry._replace(role=role, label=label))
    changed = split_source(replace(data.origin, entries=tuple(entries)))
    assert changed.test and changed.unseen and changed.train.queries is None
    for split in (changed.test, changed.unseen):
        assert split.queries is not None
        for row, query in zip(split.rows.tolist(), split.queries.tolist(), strict=True):
            assert query == (entries[row].role == "query")
        last = split.select(torch.tensor([len(split) - 1]))
        assert last.queries is not None and last.queries.tolist() == split.queries[-1:].tolist()
