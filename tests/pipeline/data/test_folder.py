"""List folders of images, unusual and invalid ones included."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_sources import (
    RANDOM,
    Check,
    Writer,
    check_readable,
    check_rejected,
    count_images,
    save_image,
    split_folders,
    write_photos,
)

from pipeline.data.folder import find_image_files, find_labelled_images, list_folder


def nested(root: Path) -> Path:
    write_photos(root)
    save_image(root / "a" / "2024" / "june" / "deep.png")
    return root


def suffixes(root: Path) -> Path:
    write_photos(root)
    for name in ("A.PNG", "b.JpG", "c.TIFF", "d.jfif"):
        save_image(root / "a" / name)
    return root


def unicode_names(root: Path) -> Path:
    write_photos(root)
    for name in ("ネコ", "naïve", "emoji 🐈", "line\nbreak", "percent%20", "-dash", "'quote\""):
        save_image(root / name / "図.png")
        save_image(root / name / "2.png")
    return root


def names_not_in_utf8(root: Path) -> Path:
    write_photos(root)
    folder = os.path.join(os.fsencode(root), b"caf\xe9")
    Path(os.fsdecode(folder)).mkdir()
    for name in (b"\xff1.png", b"\xff2.png"):
        shutil.copy(root / "a" / "0.png", os.path.join(folder, name))
    return root


def circular_links(root: Path) -> Path:
    write_photos(root)
    (root / "a" / "self").symlink_to(root / "a", target_is_directory=True)
    (root / "a" / "up").symlink_to(root.parent, target_is_directory=True)
    (root / "a" / "other").symlink_to(root / "b", target_is_directory=True)
    (root / "b" / "other").symlink_to(root / "a", target_is_directory=True)
    (root / "a" / "circle").symlink_to(root / "a" / "circle")
    return root


def links_elsewhere(root: Path) -> Path:
    write_photos(root.parent / "elsewhere", "c")
    write_photos(root)
    (root / "c").symlink_to(root.parent / "elsewhere" / "c", target_is_directory=True)
    (root / "a" / "one.png").symlink_to(root.parent / "elsewhere" / "c" / "1.png")
    return root


def hidden_files(root: Path) -> Path:
    write_photos(root)
    save_image(root / "a" / ".thumbnail.png")
    save_image(root / ".cache" / "x.png")
    (root / "a" / ".DS_Store").write_bytes(b"x")
    return root


def other_files(root: Path) -> Path:
    write_photos(root)
    (root / "a" / "notes.txt").write_text("x")
    (root / "a" / "photo.heic").write_bytes(b"x")
    (root / "a" / "README").write_bytes(b"x")
    save_image(root / "loose.png")
    (root / "empty").mkdir()
    return root


def broken_files(root: Path) -> Path:
    write_photos(root)
    (root / "a" / "empty.png").write_bytes(b"")
    (root / "a" / "text.png").write_text("hello")
    os.mkfifo(root / "b" / "pipe.png")
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    return root


def sizes_and_modes(root: Path) -> Path:
    write_photos(root)
    for index, mode in enumerate(("1", "L", "P", "RGB", "RGBA", "LA", "I;16", "CMYK")):
        image = Image.fromarray(RANDOM.integers(0, 256, (20 + index, 9, 3), np.uint8))
        image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
        image.save(root / "a" / f"mode {index}.{'tif' if mode == 'CMYK' else 'png'}")
    return root


def deep_folders(root: Path) -> Path:
    """Nest 300 folders. Their path is too long to be created at once."""
    write_photos(root)
    folder = os.open(root / "a", os.O_RDONLY)
    try:
        for _ in range(300):
            os.mkdir("d", dir_fd=folder)
            subfolder = os.open("d", os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = subfolder
    finally:
        os.close(folder)
    return root


def numbered_classes(root: Path) -> Path:
    for label in ("10", "9", "2"):
        for index in range(3):
            save_image(root / label / f"{index}.png")
    return root


def broken_images(root: Path, classes: str) -> Path:
    write_photos(root)
    for label in classes:
        for path in (root / label).iterdir():
            path.write_bytes(b"broken")
    return root


def empty_folder(root: Path) -> Path:
    root.mkdir()
    return root


def class_called_test(root: Path) -> Path:
    write_photos(root)
    for index in range(10):
        save_image(root / "test" / f"{index}.png")
    return root


def similar_names(root: Path) -> Path:
    write_photos(root)
    for label in ("A", "na\xefve", "nai\u0308ve"):
        for index in range(3):
            save_image(root / label / f"{index}.png")
    return root


def files_without_suffix(root: Path) -> Path:
    for label in "ab":
        save_image(root / label / "image")
    return root


def empty_class_folders(root: Path) -> Path:
    for number in range(500):
        (root / str(number)).mkdir(parents=True)
    return root


def flat_splits(root: Path) -> Path:
    for split in ("train", "test"):
        save_image(root / split / "1.png")
    return root


READABLE: dict[str, tuple[Writer, Check]] = {
    "a folder": (
        write_photos,
        lambda audit: audit["images"] == 20 and count_images(audit) == [14, 2, 4],
    ),
    "nested folders": (
        nested,
        lambda audit: audit["images"] == 21 and sum(audit["classes"]["a"].values()) == 11,
    ),
    "suffixes in any case": (suffixes, lambda audit: audit["images"] == 24),
    "unicode names": (
        unicode_names,
        lambda audit: audit["images"] == 34 and "line\nbreak" in audit["classes"],
    ),
    "names not in UTF-8": (names_not_in_utf8, lambda audit: audit["images"] == 22),
    "circular links": (
        circular_links,
        lambda audit: (
            audit["images"] == 40
            and not audit["unreadable"]
            and len(audit["exact_duplicates"]) == 20
        ),
    ),
    "links to elsewhere": (
        links_elsewhere,
        lambda audit: audit["images"] == 31 and len(audit["label_conflicts"]) == 1,
    ),
    "hidden files": (hidden_files, lambda audit: audit["images"] == 20 and not audit["notes"]),
    "other files and loose images": (
        other_files,
        lambda audit: audit["images"] == 20 and len(audit["notes"]) == 2,
    ),
    "broken files": (
        broken_files,
        lambda audit: audit["images"] == 20 and len(audit["unreadable"]) == 4,
    ),
    "several sizes and modes": (
        sizes_and_modes,
        lambda audit: (
            audit["images"] == 28
            and len(audit["sizes"]) == 9
            and "64 x 64, colour" in audit["read_as"]
        ),
    ),
    "300 nested folders": (deep_folders, lambda audit: audit["images"] == 20),
    "train and test": (
        split_folders("train", "test"),
        lambda audit: audit["given"] == ["train", "test"] and count_images(audit)[1] == 2,
    ),
    "train, val and test": (
        split_folders("train", "val", "test"),
        lambda audit: count_images(audit) == [20, 20, 20],
    ),
    "only train": (
        split_folders("train"),
        lambda audit: audit["images"] == 20 and count_images(audit)[2] == 4,
    ),
    "Train and TEST": (
        split_folders("Train", "TEST"),
        lambda audit: audit["given"] == ["train", "test"] and len(audit["classes"]) == 2,
    ),
    "a class called test": (
        class_called_test,
        lambda audit: list(audit["classes"]) == ["a", "b", "test"],
    ),
    "classes that differ by case or Unicode form": (
        similar_names,
        lambda audit: (
            audit["similar_classes"] == [["A", "a"], ["nai\u0308ve", "na\xefve"]]
            and len(audit["classes"]) == 5
        ),
    ),
    "one class": (
        lambda root: write_photos(root, "a"),
        lambda audit: "1 class to train on" in audit["problems"][0],
    ),
    "class folders one level too deep": (
        lambda root: write_photos(root / "photos").parent,
        lambda audit: "photos is read as one class" in audit["problems"][0],
    ),
    "numbers sorted by value": (
        numbered_classes,
        lambda audit: list(audit["classes"]) == ["2", "9", "10"],
    ),
}


@pytest.mark.parametrize("name", READABLE)
def test_unusual_folders_are_read(name, tmp_path, capsys):
    check_readable(*READABLE[name], tmp_path, capsys)


REJECTED: dict[str, tuple[Writer, str]] = {
    "an empty folder": (empty_folder, "no image in"),
    "images without class folders": (
        lambda root: write_photos(root) / "a",
        "no image in a class folder (10 images outside class folders ignored, such as 0.png)",
    ),
    "hidden images alone": (
        lambda root: save_image(root / ".cat" / "1.png").parent.parent,
        "(no file in it)",
    ),
    "files without an extension": (files_without_suffix, "(2 files ignored because of the ext"),
    "empty class folders": (empty_class_folders, "(no file in it)"),
    "train and test without classes": (
        flat_splits,
        "no class folders in test/, train/",
    ),
    "two folders for a split": (split_folders("train", "Train"), "one folder per split"),
    "one class folder": (lambda root: write_photos(root, "a"), "1 class to train on (a)"),
    "class folders one level too deep": (
        lambda root: write_photos(root / "photos").parent,
        "photos is read as one class",
    ),
    "test without train": (split_folders("test"), "no train/"),
    "a class next to train": (split_folders("train", "valid"), "valid/ next to train/"),
    "no readable image": (
        lambda root: broken_images(root, "ab"),
        "none of the 20 images can be read",
    ),
    "too many unreadable images": (lambda root: broken_images(root, "a"), "--max-unreadable 0.25"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_invalid_folders_are_one_error(name, tmp_path, capsys):
    write, message = REJECTED[name]
    check_rejected(write, message, tmp_path, capsys)


def test_number_of_cases():
    assert len(READABLE) + len(REJECTED) >= 22


def test_image_files_are_found_once_without_hidden_ones(tmp_path):
    root = hidden_files(other_files(circular_links(tmp_path / "source")))
    names = [path.relative_to(root).as_posix() for path in find_image_files(root)]
    assert len(names) == len(set(names))
    assert "loose.png" in names and "a/0.png" in names and "a/.thumbnail.png" not in names
    assert list(find_image_files(root / "a" / "notes.txt")) == [root / "a" / "notes.txt"]


def labels_below(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): label for path, label in find_labelled_images(root)}


def save_images(root: Path, *names: str) -> None:
    for name in names:
        save_image(root / name)


def test_labels_are_those_of_a_source(tmp_path):
    for root, names in (
        (tmp_path / "classes", ("a/1.png", "a/deep/2.png", "train/3.png", "b c/4.png")),
        (tmp_path / "splits", ("Train/a/1.png", "Train/b/2.png", "TEST/a/deep/3.png")),
    ):
        save_images(root, *names)
        listed = {file.entry.id: file.entry.label for file in list_folder(root)[0]}
        assert labels_below(root) == listed and len(listed) == len(names)


def test_images_in_no_class_folder_have_no_label(tmp_path, monkeypatch):
    save_images(tmp_path, "1.png", "train/2.png", "train/a/3.png", "other/4.png")
    expected = {"1.png": "", "train/2.png": "", "train/a/3.png": "a", "other/4.png": "other"}
    assert labels_below(tmp_path) == expected
    assert list(find_labelled_images(tmp_path / "1.png")) == [(tmp_path / "1.png", "")]
    assert list(find_labelled_images(Path("missing"))) == [(Path("missing"), "")]
    monkeypatch.chdir(tmp_path)
    assert labels_below(Path()) == expected
    assert set(labels_below(Path("train")).values()) == {"", "a"}
    save_images(tmp_path / "flat", "train/1.png", "test/2.png")  # splits without classes
    assert set(labels_below(tmp_path / "flat").values()) == {""}
