"""Labels of the images in a folder whose vectors are written."""

from pathlib import Path

from sample_sources import save_image

from pipeline.data.folder import find_labelled_images, list_folder


def labels_below(root: Path) -> dict[str, str]:
    """Return the label of each image by its path below the folder."""
    found = find_labelled_images(root)
    return {path.relative_to(root).as_posix(): label for path, label in found}


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


def test_splits_without_class_folders_are_no_classes(tmp_path):
    save_images(tmp_path, "train/1.png", "test/2.png")
    assert set(labels_below(tmp_path).values()) == {""}
