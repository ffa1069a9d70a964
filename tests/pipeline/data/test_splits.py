"""Assign images to splits: copies, groups, shares, fingerprints and leaks."""

import shutil
from collections import Counter

import pytest
from factories import ROW, source_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_sources import (
    Check,
    Writer,
    check_readable,
    check_rejected,
    save_image,
    split_folders,
    write_photos,
)

from pipeline.data.dataset import natural_key
from pipeline.data.sources import load_dataset
from pipeline.data.splits import assign_splits
from stages.settings import ReadSettings


def class_of_one(root):
    save_image(write_photos(root) / "c" / "1.png")
    return root


READABLE: dict[str, tuple[Writer, Check]] = {
    "one class": (
        lambda root: write_photos(root, "a"),
        lambda audit: audit["batches"] is None and "triplet" in audit["problems"][0],
    ),
    "one image per class": (
        lambda root: write_photos(root, "ab", 1),
        lambda audit: audit["batches"] is None and bool(audit["problems"]),
    ),
    "a class of one image": (
        class_of_one,
        lambda audit: audit["classes"]["c"] == {"train": 1, "val": 0, "test": 0},
    ),
    "a class with only validation images": (
        split_folders("train", "val", val="abc"),
        lambda audit: "class c" in audit["problems"][0],
    ),
    "a class with only test images": (
        split_folders("train", "test", test="abc"),
        lambda audit: audit["unseen_classes"] == ["c"] and not audit["problems"],
    ),
}


@pytest.mark.parametrize("name", READABLE)
def test_untrainable_sources_can_be_audited(name, tmp_path, capsys):
    check_readable(*READABLE[name], tmp_path, capsys)


REJECTED: dict[str, tuple[Writer, str]] = {
    "one class": (lambda root: write_photos(root, "a"), "1 class to train on"),
    "one image per class": (lambda root: write_photos(root, "ab", 1), "two images of one"),
    "a class with only validation images": (split_folders("train", "val", val="abc"), "class c"),
    "a class name in capitals": (split_folders("train", "test", test="abA"), "only by case"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_untrainable_sources_are_one_error(name, tmp_path, capsys):
    write, message = REJECTED[name]
    check_rejected(write, message, tmp_path, capsys)


def test_fingerprint_depends_on_content_and_split_but_not_on_location(tmp_path):
    original, copy = tmp_path / "original", tmp_path / "deep" / "copy"
    write_photos(original)
    shutil.copytree(original, copy)
    first = load_dataset(str(original), ReadSettings(), cache=tmp_path / "cache")
    moved = load_dataset(str(copy), ReadSettings(), cache=tmp_path / "other")
    assert first.fingerprint == moved.fingerprint
    assert first.test and moved.test and first.test.ids == moved.test.ids
    reseeded = load_dataset(str(original), ReadSettings(split_seed=1), cache=tmp_path / "cache")
    assert reseeded.fingerprint != first.fingerprint
    save_image(copy / "a" / "0.png")
    changed = load_dataset(str(copy), ReadSettings(), cache=tmp_path / "other")
    assert changed.fingerprint != first.fingerprint


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=60), st.integers(0, 9), st.randoms())
def test_splits_keep_copies_and_groups_together_and_two_training_images(rows, seed, generator):
    read = ReadSettings(size=4, split_seed=seed)
    splits = assign_splits(source_of(rows, read))
    for column in (1, 2):  # pixels, group
        for key in {row[column] for row in rows} - {""}:
            used = {split for row, split in zip(rows, splits, strict=True) if row[column] == key}
            assert len(used) == 1
    train = Counter(row[0] for row, split in zip(rows, splits, strict=True) if split == "train")
    for label, count in Counter(row[0] for row in rows).items():
        assert train[label] >= min(2, count)
    order = list(range(len(rows)))
    generator.shuffle(order)
    if len({row[1] for row in rows}) == len(rows) and not any(row[2] for row in rows):
        shuffled = assign_splits(source_of([rows[index] for index in order], read))
        assert shuffled == [splits[index] for index in order]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (1, 0, 0)), (2, (2, 0, 0)), (3, (2, 0, 1)), (10, (7, 1, 2)), (100, (70, 10, 20))],
)
def test_classes_are_split_by_their_rounded_shares(count, expected):
    rows = [("a", number, "", "") for number in range(count)]
    rows += [("b", 1000 + number, "", "") for number in range(50)]
    counts = Counter(assign_splits(source_of(rows))[:count])
    assert (counts["train"], counts["val"], counts["test"]) == expected


def test_groups_are_split_close_to_the_shares():
    rows = [("ab"[number % 2], number, f"patient {number // 20}", "") for number in range(1000)]
    counts = Counter(assign_splits(source_of(rows)))
    assert abs(counts["test"] - 200) <= 20 and abs(counts["val"] - 100) <= 20


def test_numbers_sort_before_words():
    assert sorted(["b", "10", "2", "a", "٣"], key=natural_key) == ["2", "10", "a", "b", "٣"]


def test_leaks_are_positions_in_the_test_split(tmp_path):
    root = split_folders("train", "test")(tmp_path / "source")
    shutil.copy(root / "train" / "a" / "3.png", root / "test" / "b" / "5.png")
    data = load_dataset(str(root), ReadSettings(), cache=tmp_path / "cache")
    assert data.test and [data.test.ids[position] for position in data.leaked] == ["test/b/5.png"]


def test_share_of_zero_takes_no_images_but_keeps_a_given_split():
    read = ReadSettings(size=4, test=0, val=0)
    rows = [("ab"[number % 2], number, "", "") for number in range(40)]
    assert set(assign_splits(source_of(rows, read))) == {"train"}
    rows[3] = (*rows[3][:3], "test")
    assert Counter(assign_splits(source_of(rows, read))) == {"train": 39, "test": 1}
