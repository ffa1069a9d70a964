"""The audit lists exactly the duplicates, leaks, conflicts and crossings of a made-up source."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_sources import smooth_image, write_photos

from pipeline.data.audit import as_text, audit_source, audit_warnings
from pipeline.data.dataset import Source
from pipeline.data.sources import load_dataset, read_source
from stages.settings import ReadSettings


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 images in train/ and test/, two classes, and one image of each kind of problem."""
    root = tmp_path / "photos"
    for seed in range(40):
        split = "test" if seed % 4 == 3 else "train"
        label = "cat" if seed % 8 < 4 else "dog"
        (root / split / label).mkdir(parents=True, exist_ok=True)
        smooth_image(seed).save(root / split / label / f"{seed}.png")
    cats, dogs = root / "train" / "cat", root / "train" / "dog"
    shutil.copy(cats / "0.png", cats / "copy.png")
    Image.open(cats / "1.png").save(cats / "one.bmp")  # the same pixels in another format
    Image.open(dogs / "4.png").save(root / "test" / "dog" / "leak.tiff")
    relabelled = Image.open(cats / "2.png").convert("RGBA")
    relabelled.save(dogs / "2 again.webp", lossless=True)
    Image.open(dogs / "5.png").save(dogs / "near.jpg", quality=70)  # similar, not identical
    return root


def read(root: Path, cache: Path) -> Source:
    return read_source(str(root), ReadSettings(), cache=cache)


def test_audit_lists_each_problem_and_nothing_else(photos, tmp_path):
    audit = audit_source(read(photos, tmp_path / "cache"), near=True)
    assert {frozenset(group) for group in audit.exact_duplicates} == {
        frozenset(("train/cat/0.png", "train/cat/copy.png")),
        frozenset(("train/cat/1.png", "train/cat/one.bmp")),
        frozenset(("train/dog/4.png", "test/dog/leak.tiff")),
        frozenset(("train/cat/2.png", "train/dog/2 again.webp")),
    }
    assert audit.leaks == (("train/dog/4.png", "test/dog/leak.tiff"),)
    assert audit.label_conflicts == (("train/cat/2.png", "train/dog/2 again.webp"),)
    assert audit.near_duplicates == (("train/dog/5.png", "train/dog/near.jpg"),)
    assert audit.images == 45 and not audit.problems
    assert audit.batches and audit.batches.classes_per_batch == 2
    assert len(audit_warnings(audit)) == 3


def test_text_contains_counts_and_problems(photos, tmp_path):
    text = as_text(audit_source(read(photos, tmp_path / "cache"), near=True))
    assert "45 images of 2 classes" in text
    assert "\n30 training, 4 validation, 11 test images; 0 skipped\n" in text
    lines = text.splitlines()
    heading = next(index for index, line in enumerate(lines) if line.startswith("leaks ("))
    assert lines[heading].endswith(": 1")
    assert lines[heading + 1] == "  train/dog/4.png = test/dog/leak.tiff"


def test_classes_that_differ_by_case_are_a_warning(tmp_path):
    write_photos(tmp_path / "photos", "abA")
    audit = audit_source(read(tmp_path / "photos", tmp_path / "cache"))
    (warning,) = audit_warnings(audit)
    assert "only by case or Unicode form" in warning and "A = a" in warning
    assert "  A = a" in as_text(audit).splitlines()


def test_images_that_differ_in_one_pixel_are_not_exact_duplicates(tmp_path):
    black = np.zeros((20, 20, 3), np.uint8)
    for index in range(60):
        changed = black.copy()
        changed[index // 20, index % 20, index % 3] = 1
        path = tmp_path / "photos" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(changed).save(path)
    same_bytes = black.reshape(10, 40, 3)
    Image.fromarray(same_bytes).save(tmp_path / "photos" / "a" / "another shape.png")
    Image.fromarray(black).save(tmp_path / "photos" / "a" / "zero.png")
    audit = audit_source(read(tmp_path / "photos", tmp_path / "cache"))
    assert audit.images == 62 and audit.exact_duplicates == () and audit.near_duplicates is None


def test_groups_in_several_given_splits_are_listed(tmp_path):
    lines = ["path,label,split,group"]
    for index in range(24):
        smooth_image(index).save(tmp_path / f"{index}.png")
        split = "test" if index >= 18 else "train"
        lines.append(f"{index}.png,{'ab'[index % 2]},{split},patient {index // 4}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    audit = audit_source(read(tmp_path / "list.csv", tmp_path / "cache"))
    # Images 16 to 19. The groups that the pipeline splits itself stay together.
    assert audit.group_crossings == ("patient 4",)
    assert "patient 4" in audit_warnings(audit)[0]


def test_commands_report_problems(photos, tmp_path, run_command):
    (photos / "train" / "cat" / "broken.png").write_bytes(b"x")
    cache = ("--cache", tmp_path / "cache")
    status, output, errors = run_command("data", photos, "--json", *cache)
    assert status == 0 and not errors
    audit = json.loads(output)
    (unreadable,) = audit["unreadable"]
    assert unreadable["path"] == "train/cat/broken.png" and unreadable["reason"]
    assert audit["leaks"] == [["train/dog/4.png", "test/dog/leak.tiff"]]
    assert audit["images"] == 45 and audit["batches"]["classes_per_batch"] == 2
    counts = audit["classes"]
    assert counts["cat"]["test"] + counts["dog"]["test"] == 11 and counts["cat"]["val"] > 0
    status, _, errors = run_command("embed", "--data", photos, "--epochs", 1, *cache)
    assert status == 0, errors
    for text in (
        "train/cat/broken.png",
        ": 1, such as train/dog/4.png = test/dog/leak.tiff",
        ": 1, such as train/cat/2.png = train/dog/2 again.webp",
    ):
        assert text in errors
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "cache", "checkpoints"}


def test_leaks_of_data_set_and_audit_are_equal(photos, tmp_path):
    data = load_dataset(str(photos), ReadSettings(), cache=tmp_path / "cache")
    audit = audit_source(data.origin, dataset=data)
    assert data.test
    leaked = [data.test.ids[position] for position in data.leaked]
    assert leaked == [audit.leaks[0][1]]
