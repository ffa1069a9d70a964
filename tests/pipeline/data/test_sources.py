"""Sources and splits: folders, manifests, torchvision's sets as they lie on disk; odd ones end in one message."""

import gzip
import json
import os
import pickle
import random
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import ROW, source_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.cli import main
from pipeline.data.dataset import natural_key
from pipeline.data.folder import find_image_files
from pipeline.data.sources import load_dataset
from pipeline.data.splits import assign_splits
from stages.errors import DataError, PipelineError
from stages.settings import ReadSettings

CHANCE = np.random.default_rng(0)


def save(path: Path, value: int | None = None, side: int = 8) -> Path:
    """A PNG, noise or of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (
        CHANCE.integers(0, 256, (side, side), np.uint8)
        if value is None
        else np.full((side, side), value, np.uint8)
    )
    Image.fromarray(pixels).save(path, "PNG")
    return path


def photos(root: Path, classes: str = "ab", count: int = 10) -> Path:
    for label in classes:
        for index in range(count):
            save(root / label / f"{index}.png")
    return root


def manifest(root: Path, lines: str, encoding: str = "utf-8") -> Path:
    photos(root)
    (root / "list.csv").write_bytes(lines.encode(encoding))
    return root / "list.csv"


ROWS = "".join(f"{label}/{index}.png,{label}\n" for label in "ab" for index in range(10))


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def audited(
    capsys: pytest.CaptureFixture[str], source: object, cache: Path, *options: object
) -> dict[str, Any]:
    status, out, err = command(capsys, "data", source, "--json", "--cache", cache, *options)
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


# Odd sources that are read all the same: what the audit then says


def _unsplit(root: Path) -> Path:
    return photos(root)


def _nested(root: Path) -> Path:
    photos(root)
    save(root / "a" / "2024" / "june" / "deep.png")
    return root


def _endings(root: Path) -> Path:
    photos(root)
    for name in ("A.PNG", "b.JpG", "c.TIFF", "d.jfif"):
        save(root / "a" / name)
    return root


def _unicode(root: Path) -> Path:
    photos(root)
    for name in ("ネコ", "naïve", "emoji 🐈", "line\nbreak", "percent%20", "-dash", "'quote\""):
        save(root / name / "図.png")
        save(root / name / "2.png")
    return root


def _not_utf8(root: Path) -> Path:
    photos(root)
    folder = os.path.join(os.fsencode(root), b"caf\xe9")
    Path(os.fsdecode(folder)).mkdir()
    for name in (b"\xff1.png", b"\xff2.png"):
        shutil.copy(root / "a" / "0.png", os.path.join(folder, name))
    return root


def _loops(root: Path) -> Path:
    photos(root)
    (root / "a" / "self").symlink_to(root / "a", target_is_directory=True)
    (root / "a" / "up").symlink_to(root.parent, target_is_directory=True)
    (root / "a" / "other").symlink_to(root / "b", target_is_directory=True)
    (root / "b" / "other").symlink_to(root / "a", target_is_directory=True)
    (root / "a" / "circle").symlink_to(root / "a" / "circle")
    return root


def _linked(root: Path) -> Path:
    photos(root.parent / "elsewhere", "c")
    photos(root)
    (root / "c").symlink_to(root.parent / "elsewhere" / "c", target_is_directory=True)
    (root / "a" / "one.png").symlink_to(root.parent / "elsewhere" / "c" / "1.png")
    return root


def _hidden(root: Path) -> Path:
    photos(root)
    save(root / "a" / ".thumbnail.png")
    save(root / ".cache" / "x.png")
    (root / "a" / ".DS_Store").write_bytes(b"x")
    return root


def _others(root: Path) -> Path:
    photos(root)
    (root / "a" / "notes.txt").write_text("x")
    (root / "a" / "photo.heic").write_bytes(b"x")
    (root / "a" / "README").write_bytes(b"x")
    save(root / "loose.png")
    (root / "empty").mkdir()
    return root


def _broken(root: Path) -> Path:
    photos(root)
    (root / "a" / "empty.png").write_bytes(b"")
    (root / "a" / "text.png").write_text("hello")
    os.mkfifo(root / "b" / "pipe.png")
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    return root


def _mixed(root: Path) -> Path:
    photos(root)
    for index, mode in enumerate(("1", "L", "P", "RGB", "RGBA", "LA", "I;16", "CMYK")):
        image = Image.fromarray(CHANCE.integers(0, 256, (20 + index, 9, 3), np.uint8)).convert(
            "L" if mode == "I;16" else mode
        )
        image = image.convert("I;16") if mode == "I;16" else image
        image.save(root / "a" / f"mode {index}.{'tif' if mode == 'CMYK' else 'png'}")
    return root


def _deep(root: Path) -> Path:
    photos(root)
    folder = root / "a"
    here = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(300):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)
    return root


def _parts(*names: str, **more: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        for name in names:
            photos(root / name, more.get(name, "ab"))
        return root

    return make


def _csv(lines: str, encoding: str = "utf-8") -> Callable[[Path], Path]:
    return lambda root: manifest(root, lines, encoding)


Check = Callable[[dict[str, Any]], bool]
total = lambda found, part: sum(counts[part] for counts in found["classes"].values())  # noqa: E731
READABLE: dict[str, tuple[Callable[[Path], Path], Check]] = {
    "a folder": (
        _unsplit,
        lambda f: (
            f["images"] == 20 and [total(f, p) for p in ("train", "val", "test")] == [14, 2, 4]
        ),
    ),
    "nested folders": (
        _nested,
        lambda f: f["images"] == 21 and sum(f["classes"]["a"].values()) == 11,
    ),
    "endings in any case": (_endings, lambda f: f["images"] == 24),
    "unicode names": (_unicode, lambda f: f["images"] == 34 and "line\nbreak" in f["classes"]),
    "names that are not UTF-8": (_not_utf8, lambda f: f["images"] == 22),
    "links in circles": (
        _loops,
        lambda f: f["images"] == 40 and not f["unreadable"] and len(f["exact_duplicates"]) == 20,
    ),
    "links to elsewhere": (_linked, lambda f: f["images"] == 31 and len(f["label_conflicts"]) == 1),
    "hidden files": (_hidden, lambda f: f["images"] == 20 and not f["notes"]),
    "other files and loose images": (_others, lambda f: f["images"] == 20 and len(f["notes"]) == 2),
    "broken files": (_broken, lambda f: f["images"] == 20 and len(f["unreadable"]) == 4),
    "mixed sizes and modes": (
        _mixed,
        lambda f: f["images"] == 28 and len(f["sizes"]) == 9 and "64 x 64, colour" in f["read_as"],
    ),
    "300 folders deep": (_deep, lambda f: f["images"] == 20),
    "train and test": (
        _parts("train", "test"),
        lambda f: f["given"] == ["train", "test"] and total(f, "val") == 2,
    ),
    "train, val and test": (
        _parts("train", "val", "test"),
        lambda f: [total(f, p) for p in ("train", "val", "test")] == [20, 20, 20],
    ),
    "train alone": (_parts("train"), lambda f: f["images"] == 20 and total(f, "test") == 4),
    "one class": (
        lambda root: photos(root, "a"),
        lambda f: f["batches"] is None and "triplet" in f["problems"][0],
    ),
    "lone images": (
        lambda root: photos(root, "ab", 1),
        lambda f: f["batches"] is None and bool(f["problems"]),
    ),
    "a class of one": (
        lambda root: photos(root) / save(root / "c" / "1.png").parent.parent,
        lambda f: f["classes"]["c"] == {"train": 1, "val": 0, "test": 0},
    ),
    "a class that only the test has": (
        _parts("train", "test", test="abc"),
        lambda f: "class c" in f["problems"][0],
    ),
    "numbers sorted by value": (
        lambda root: (
            [save(root / str(n) / f"{i}.png") for n in (10, 9, 2) for i in range(3)] and root
        ),
        lambda f: list(f["classes"]) == ["2", "9", "10"],
    ),
    "a manifest": (
        _csv("path,label\n" + ROWS),
        lambda f: f["images"] == 20 and list(f["classes"]) == ["a", "b"],
    ),
    "a manifest from a spreadsheet": (
        _csv("\ufeffPath , LABEL\r\n" + ROWS.replace("\n", "\r\n")),
        lambda f: f["images"] == 20,
    ),
    "a manifest with splits": (
        _csv(
            "path,label,split\n"
            + "".join(f"{r},{'test' if '/1' in r else 'Train'}\n" for r in ROWS.split())
        ),
        lambda f: f["given"] == ["train", "test"] and total(f, "test") == 2,
    ),
    "a manifest with a row of no split": (
        _csv("path,label,split\n" + ROWS.replace("\n", ",\n").replace("0.png,a,", "0.png,a,test")),
        lambda f: total(f, "test") == 1 and f["images"] == 20,
    ),
    "a manifest with missing files": (
        _csv("path,label\n" + ROWS + "none.png,a\nb,a\n"),
        lambda f: len(f["unreadable"]) == 2,
    ),
    "a manifest with quotes": (
        _csv("path,label\n" + ROWS + '"a/0.png","x, y"\n"a/1.png","x, y"\n'),
        lambda f: "x, y" in f["classes"],
    ),
    "a manifest with more columns": (
        _csv("id,path,label\n" + "".join(f"7,{r}\n" for r in ROWS.split())),
        lambda f: f["images"] == 20,
    ),
    "labels that look like nothing": (
        _csv("path,label\n" + ROWS.replace(",a", ",NA").replace(",b", ",null")),
        lambda f: list(f["classes"]) == ["NA", "null"],
    ),
    "a label of 5,000 digits": (
        _csv("path,label\n" + ROWS.replace(",a", "," + "9" * 5000)),
        lambda f: f["images"] == 20,
    ),
    "a path with a null byte": (
        _csv("path,label\n" + ROWS + "a\0b.png,a\n"),
        lambda f: f["images"] == 20,
    ),
}


@pytest.mark.parametrize("name", READABLE)
def test_odd_sources_are_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, check = READABLE[name]
    source = make(tmp_path / "source")
    before = sorted(tmp_path.joinpath("source").iterdir())
    assert check(audited(capsys, source, tmp_path / "cache"))
    status, out, _ = command(capsys, "data", source, "--cache", tmp_path / "cache")
    assert status == 0 and "classes, read as" in out
    assert sorted(tmp_path.joinpath("source").iterdir()) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "cache", "elsewhere"}


# Sources and settings that end in one message


def _file(content: bytes, name: str = "file.txt") -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        root.mkdir()
        (root / name).write_bytes(content)
        return root / name

    return make


def _all_broken(root: Path) -> Path:
    for path in photos(root).rglob("*.png"):
        path.write_bytes(b"broken")
    return root


def _some_broken(root: Path) -> Path:
    for path in (photos(root) / "a").iterdir():
        path.write_bytes(b"broken")
    return root


def _same_name(root: Path) -> Path:
    return root


REFUSED: dict[str, tuple[Callable[[Path], Any], tuple[str, ...], str]] = {
    "nothing there": (_same_name, (), "no such folder"),
    "an empty name": (lambda root: "", (), "no such folder"),
    "a name far too long": (lambda root: "x" * 5000, (), "no such folder"),
    "a null byte": (lambda root: "a\0b", (), "no such folder"),
    "an unknown name": (lambda root: "imagenet", (), "no such folder"),
    "a web address": (lambda root: "https://example.com/photos.zip", (), "no such folder"),
    "an image, not a folder": (lambda root: save(root / "a.png"), (), "a file, but not a .csv"),
    "an archive": (_file(b"PK\x03\x04", "photos.zip"), (), "a file, but not a .csv"),
    "an empty folder": (lambda root: root.mkdir() or root, (), "no image in it"),
    "images without classes": (lambda root: photos(root) / "a", (), "no image in it"),
    "one class": (lambda root: photos(root, "a"), (), "1 class to train on"),
    "two classes of one image": (lambda root: photos(root, "ab", 1), (), "two images of one"),
    "test without train": (_parts("test"), (), "no train/"),
    "a class beside train": (_parts("train", "valid"), (), "valid/ beside train/"),
    "a class that only the test has": (_parts("train", "test", test="abc"), (), "class c"),
    "nothing readable": (_all_broken, (), "none of the 20 images can be read"),
    "a manifest of one missing file": (
        _csv("path,label\nnone.png,a\n"),
        (),
        "the first: missing (a broken link?): ",
    ),
    "too much unreadable": (_some_broken, (), "--max-unreadable"),
    "an empty manifest": (_csv(""), (), "not a table"),
    "a manifest without rows": (_csv("path,label\n"), (), "no row"),
    "a manifest without labels": (_csv("path,split\na/0.png,train\n"), (), "no column label"),
    "a manifest without a header": (_csv(ROWS), (), "no column path"),
    "a manifest with semicolons": (
        _csv("path;label\n" + ROWS.replace(",", ";")),
        (),
        "no column path",
    ),
    "a manifest with two label columns": (_csv("path,label,Label\n" + ROWS), (), "no column label"),
    "a manifest in UTF-16": (_csv("path,label\n" + ROWS, "utf-16"), (), "UTF-8"),
    "a manifest in latin-1": (
        _csv("path,label\nœufs/é.png,é\n".replace("œ", "o"), "latin-1"),
        (),
        "UTF-8",
    ),
    "a binary manifest": (_file(bytes(range(256)) * 9, "list.csv"), (), "list.csv"),
    "a manifest with an empty label": (
        _csv("path,label\n" + ROWS + "a/1.png,\n"),
        (),
        "row 22 has no label",
    ),
    "a manifest with an empty path": (
        _csv("path,label\n" + ROWS + ",a\n"),
        (),
        "row 22 has no path",
    ),
    "a manifest with a longer row": (
        _csv("path,label\n" + ROWS + "a/1.png,a,b,c\n"),
        (),
        "not a table",
    ),
    "a manifest with an unknown split": (
        _csv("path,label,split\na/0.png,a,valid\n"),
        (),
        "'valid'",
    ),
    "a manifest that only tests": (
        _csv("path,label,split\n" + ROWS.replace("\n", ",test\n")),
        (),
        "0 class",
    ),
    "an open quote": (_csv('path,label\n"a/0.png,a\n' + ROWS), (), "not a table"),
    "an unknown torchvision set": (lambda root: "torchvision:ImageNet2", (), "not a set"),
    "a variant that there is not": (lambda root: "torchvision:MNIST/letters", (), "not a set"),
    "an EMNIST split that there is not": (
        lambda root: "torchvision:EMNIST/greek",
        (),
        "not usable",
    ),
    "a torchvision set that is not there": (lambda root: "torchvision:MNIST", (), "--download"),
    "size 0": (photos, ("--size", "0"), "--size 0"),
    "size 5000": (photos, ("--size", "5000"), "--size 5000"),
    "two channels": (photos, ("--channels", "2"), "--channels 2"),
    "no test": (photos, ("--test", "0"), "--test 0"),
    "nothing left to train on": (photos, ("--val", "0.5", "--test", "0.5"), "--val 0.5"),
    "not a number": (photos, ("--val", "nan"), "--val nan"),
    "an unreadable share of two": (photos, ("--max-unreadable", "2"), "--max-unreadable 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_on_is_one_message(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, options, message = REFUSED[name]
    source = make(tmp_path / "source")
    arguments = (
        "--cache",
        tmp_path / "cache",
        "--root",
        tmp_path / "root",
        "--out",
        tmp_path / "out" / "a.safetensors",
        "--quiet",
    )
    status, out, err = command(capsys, "embed", "--data", source, *arguments, *options)
    assert status == 1 and not out, err
    assert err.startswith("error: ") and message in err and err.strip().count("\n") == 0
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "cache"}


def test_the_corpus_is_large_enough() -> None:
    from image_files import BAD, GOOD

    assert len(READABLE) + len(REFUSED) + len(BAD) + len(GOOD) >= 60


@pytest.mark.slow
def test_fuzzed_manifests_are_read_or_one_error(tmp_path: Path) -> None:
    chance = random.Random(1)
    good = (
        "path,label,split,group\n"
        + "".join(f"{row},,g{i % 7}\n" for i, row in enumerate(ROWS.split()))
    ).encode()
    path = manifest(tmp_path / "source", "")
    read = 0
    for case in range(1500):
        content = bytearray(good)
        for _ in range(chance.choice((1, 2, 8))):
            if case % 2:
                content[chance.randrange(len(content))] = chance.randrange(256)
            else:
                at = chance.randrange(len(content))
                content[at : at + chance.randrange(5)] = bytes(
                    chance.choices(b',\n"\r;\0 a1', k=chance.randrange(4))
                )
        path.write_bytes(content)
        try:
            load_dataset(str(path), ReadSettings(), cache=tmp_path / "cache")
            read += 1
        except PipelineError:
            pass
    assert 100 < read < 1400


def test_a_folder_that_is_walked_for_prediction(tmp_path: Path) -> None:
    root = _hidden(_others(_loops(tmp_path / "source")))
    found = [path.relative_to(root).as_posix() for path in find_image_files(root)]
    assert (
        len(found) == len(set(found))
        and "loose.png" in found
        and "a/0.png" in found
        and "a/.thumbnail.png" not in found
    )
    assert list(find_image_files(root / "a" / "notes.txt")) == [root / "a" / "notes.txt"]


# Splits


def test_the_fingerprint_travels_with_the_folder(tmp_path: Path) -> None:
    here = photos(tmp_path / "here")
    first = load_dataset(str(here), ReadSettings(), cache=tmp_path / "cache")
    shutil.copytree(here, tmp_path / "deep" / "there")
    moved = load_dataset(str(tmp_path / "deep" / "there"), ReadSettings(), cache=tmp_path / "other")
    assert (
        first.fingerprint == moved.fingerprint
        and first.test
        and moved.test
        and first.test.ids == moved.test.ids
    )
    other = load_dataset(str(here), ReadSettings(split_seed=1), cache=tmp_path / "cache")
    assert other.fingerprint != first.fingerprint
    save(tmp_path / "deep" / "there" / "a" / "0.png")
    assert (
        load_dataset(
            str(tmp_path / "deep" / "there"), ReadSettings(), cache=tmp_path / "other"
        ).fingerprint
        != first.fingerprint
    )


def test_a_training_epoch_reads_no_image_file(tmp_path: Path) -> None:
    root = photos(tmp_path / "here")
    data = load_dataset(str(root), ReadSettings(), cache=tmp_path / "cache")
    wanted = [np.asarray(Image.open(root / name)) for name in data.train.ids]
    shutil.rmtree(root)
    assert np.array_equal(torch.cat(list(data.train.blocks(7))).numpy()[:, 0], np.stack(wanted))


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=60), st.integers(0, 9), st.randoms())
def test_any_split_keeps_copies_and_groups_together_and_two_to_train(
    rows: list[Any], seed: int, chance: random.Random
) -> None:
    parts = assign_splits(source_of(rows, ReadSettings(size=4, split_seed=seed)))
    for column in (1, 2):
        for key in {row[column] for row in rows} - {""}:
            assert (
                len({part for row, part in zip(rows, parts, strict=True) if row[column] == key})
                == 1
            )
    trained = Counter(row[0] for row, part in zip(rows, parts, strict=True) if part == "train")
    for label, count in Counter(row[0] for row in rows).items():
        assert trained[label] >= min(2, count)
    order = list(range(len(rows)))
    chance.shuffle(order)
    if len({row[1] for row in rows}) == len(rows) and not any(row[2] for row in rows):
        shuffled = assign_splits(
            source_of([rows[i] for i in order], ReadSettings(size=4, split_seed=seed))
        )
        assert shuffled == [parts[i] for i in order]


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(1, (1, 0, 0)), (2, (2, 0, 0)), (3, (2, 0, 1)), (10, (7, 1, 2)), (100, (70, 10, 20))],
)
def test_a_class_gives_its_rounded_share(count: int, wanted: tuple[int, int, int]) -> None:
    rows = [("a", number, "", "") for number in range(count)] + [
        ("b", 1000 + number, "", "") for number in range(50)
    ]
    found = Counter(
        part
        for row, part in zip(rows, assign_splits(source_of(rows)), strict=True)
        if row[0] == "a"
    )
    assert (found["train"], found["val"], found["test"]) == wanted


def test_groups_are_split_close_to_the_shares() -> None:
    rows = [("ab"[number % 2], number, f"patient {number // 20}", "") for number in range(1000)]
    found = Counter(assign_splits(source_of(rows)))
    assert abs(found["test"] - 200) <= 20 and abs(found["val"] - 100) <= 20


def test_numbers_sort_before_words() -> None:
    assert sorted(["b", "10", "2", "a", "٣"], key=natural_key) == ["2", "10", "a", "b", "٣"]


def test_a_leak_is_a_position_in_the_test_part(tmp_path: Path) -> None:
    for part in ("train", "test"):
        photos(tmp_path / "source" / part)
    shutil.copy(
        tmp_path / "source" / "train" / "a" / "3.png", tmp_path / "source" / "test" / "b" / "5.png"
    )
    data = load_dataset(str(tmp_path / "source"), ReadSettings(), cache=tmp_path / "cache")
    assert data.test and [data.test.ids[position] for position in data.leaked] == ["test/b/5.png"]


# torchvision's sets, small, in their own formats


def idx(array: np.ndarray) -> bytes:
    return (
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


PIXELS = np.random.default_rng(9).integers(0, 256, (2, 30, 28, 28), np.uint8)  # part, image
LABELS = np.arange(30) % 3
COLOURS = np.random.default_rng(8).integers(0, 256, (2, 30, 32, 32, 3), np.uint8)


def _mnist(root: Path, name: str, patch: pytest.MonkeyPatch) -> np.ndarray:
    raw = root / name.partition("/")[0] / "raw"
    raw.mkdir(parents=True)
    for part, prefix in enumerate(("train", "t10k")):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(PIXELS[part]))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(LABELS))
    return PIXELS[..., None]


def _emnist(root: Path, name: str, patch: pytest.MonkeyPatch) -> np.ndarray:
    raw = root / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    split = name.partition("/")[2] or "byclass"
    for part, prefix in enumerate(("train", "test")):
        (raw / f"emnist-{split}-{prefix}-images-idx3-ubyte").write_bytes(
            idx(PIXELS[part].transpose(0, 2, 1))
        )
        (raw / f"emnist-{split}-{prefix}-labels-idx1-ubyte").write_bytes(idx(LABELS + 1))
    return PIXELS[..., None]


def _usps(root: Path, name: str, patch: pytest.MonkeyPatch) -> np.ndarray:
    import bz2

    root.mkdir(parents=True)
    small = PIXELS[:, :, :16, :16] // 2 * 2
    for part, file in enumerate(("usps.bz2", "usps.t.bz2")):
        lines = []
        for image, label in zip(small[part], LABELS, strict=True):
            values = " ".join(
                f"{place + 1}:{(value + 0.5) / 255 * 2 - 1:.6f}"
                for place, value in enumerate(image.ravel().astype(float))
            )
            lines.append(f"{label + 1} {values}\n")
        (root / file).write_bytes(bz2.compress("".join(lines).encode()))
    return small[..., None]


def _cifar(root: Path, name: str, patch: pytest.MonkeyPatch) -> np.ndarray:
    import torchvision.datasets as sets

    kind = getattr(sets, name)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    for part, files in enumerate((kind.train_list, kind.test_list)):
        rows = COLOURS[part].transpose(0, 3, 1, 2).reshape(30, -1)
        for number, (file, _) in enumerate(files):
            mine = slice(number, None, len(files))
            key = "labels" if name == "CIFAR10" else "fine_labels"
            (folder / file).write_bytes(
                pickle.dumps({"data": rows[mine], key: LABELS[mine].tolist()})
            )
    (folder / kind.meta["filename"]).write_bytes(
        pickle.dumps({kind.meta["key"]: [f"class {i}" for i in range(100)]})
    )
    patch.setattr(
        "torchvision.datasets.cifar.check_integrity", lambda path, md5: Path(path).is_file()
    )
    order = np.concatenate(
        [np.arange(30)[number :: len(kind.train_list)] for number in range(len(kind.train_list))]
    )
    return np.stack([COLOURS[0][order], COLOURS[1]])


def _svhn(root: Path, name: str, patch: pytest.MonkeyPatch) -> np.ndarray:
    from scipy.io import savemat

    root.mkdir(parents=True)
    for part, file in enumerate(("train", "test")):
        savemat(
            root / f"{file}_32x32.mat",
            {
                "X": COLOURS[part].transpose(1, 2, 3, 0),
                "y": np.where(LABELS == 0, 10, LABELS)[:, None],
            },
        )
    patch.setattr(
        "torchvision.datasets.svhn.check_integrity", lambda path, md5: Path(path).is_file()
    )
    return COLOURS


def _stl(root: Path, name: str, patch: pytest.MonkeyPatch) -> np.ndarray:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    large = np.repeat(np.repeat(COLOURS, 3, axis=2), 3, axis=3)  # (2, 30, 96, 96, 3)
    for part, file in enumerate(("train", "test")):
        (folder / f"{file}_X.bin").write_bytes(large[part].transpose(0, 3, 2, 1).tobytes())
        (folder / f"{file}_y.bin").write_bytes((LABELS + 1).astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")
    patch.setattr("torchvision.datasets.stl10.check_integrity", lambda path, md5: True)
    return large


def _omniglot(root: Path, name: str, patch: pytest.MonkeyPatch) -> np.ndarray:
    for part, half in enumerate(("images_background", "images_evaluation")):
        for index in range(30):
            path = (
                root
                / "omniglot-py"
                / half
                / f"Alphabet{part}"
                / f"character{LABELS[index]:02}"
                / f"{index:02}.png"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(PIXELS[part, index]).save(path)
    patch.setattr("torchvision.datasets.omniglot.check_integrity", lambda path, md5: True)
    return PIXELS[:, np.argsort(LABELS, kind="stable"), ..., None]


def _flowers(root: Path, name: str, patch: pytest.MonkeyPatch) -> np.ndarray:
    from scipy.io import savemat

    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for index, image in enumerate(COLOURS.reshape(60, 32, 32, 3), start=1):
        Image.fromarray(image).save(
            folder / "jpg" / f"image_{index:05}.jpg", "PNG"
        )  # the decoder goes by the content
    savemat(folder / "imagelabels.mat", {"labels": np.concatenate([LABELS, LABELS]) + 1})
    savemat(
        folder / "setid.mat",
        {"trnid": np.arange(1, 31), "valid": np.arange(31, 46), "tstid": np.arange(46, 61)},
    )
    patch.setattr("torchvision.datasets.flowers102.check_integrity", lambda path, md5: True)
    return COLOURS


def _food(root: Path, name: str, patch: pytest.MonkeyPatch) -> np.ndarray:
    (root / "food-101" / "meta").mkdir(parents=True)
    for part, file in enumerate(("train", "test")):
        listed: dict[str, list[str]] = {}
        for index in range(30):
            image = f"dish{LABELS[index]}/{part}{index:02}"
            listed.setdefault(f"dish{LABELS[index]}", []).append(image)
            path = root / "food-101" / "images" / f"{image}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(COLOURS[part, index]).save(path, "PNG")
        (root / "food-101" / "meta" / f"{file}.json").write_text(json.dumps(listed))
    return COLOURS[:, np.argsort(LABELS, kind="stable")]


SETS: dict[str, Callable[[Path, str, pytest.MonkeyPatch], np.ndarray]] = {
    **dict.fromkeys(("MNIST", "FashionMNIST", "KMNIST"), _mnist),
    **dict.fromkeys(("EMNIST", "EMNIST/letters", "EMNIST/byclass"), _emnist),
    "USPS": _usps,
    **dict.fromkeys(("CIFAR10", "CIFAR100"), _cifar),
    "SVHN": _svhn,
    "STL10": _stl,
    "Omniglot": _omniglot,
    "Flowers102": _flowers,
    "Food101": _food,
}


@pytest.mark.parametrize("name", SETS)
def test_torchvision_sets_as_they_lie_on_disk(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = SETS[name](tmp_path / "root", name, monkeypatch)
    read = ReadSettings(size=wanted.shape[2])
    data = load_dataset(
        f"torchvision:{name}", read, cache=tmp_path / "cache", root=tmp_path / "root"
    )
    again = load_dataset(
        f"torchvision:{name}", read, cache=tmp_path / "cache", root=tmp_path / "root"
    )
    assert data.fingerprint == again.fingerprint
    found = data.origin.images.numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(found, wanted.reshape(-1, *wanted.shape[2:]))
    assert len(data.train.classes) == (6 if name == "Omniglot" else 3)
    given = {entry.part for entry in data.origin.entries}
    assert given == {"Omniglot": {""}, "Flowers102": {"train", "val", "test"}}.get(
        name, {"train", "test"}
    )
    if name == "EMNIST/letters":
        assert data.train.classes == ("a", "b", "c")


@pytest.mark.parametrize("name", ["MNIST", "SVHN", "Omniglot", "Food101"])
def test_a_torchvision_set_that_is_damaged_is_one_message(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SETS[name](tmp_path / "root", name, monkeypatch)
    for path in (tmp_path / "root").rglob("*"):
        if path.is_file():
            path.write_bytes(gzip.compress(b"rubbish"))
    with pytest.raises(DataError, match=name):
        load_dataset(
            f"torchvision:{name}", ReadSettings(), cache=tmp_path / "cache", root=tmp_path / "root"
        )
