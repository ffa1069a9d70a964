"""Paths from arguments and standard input: order, waiting, counts and bounded memory."""

import io
import os
import sys
from itertools import chain, islice
from pathlib import Path

import pytest
from PIL import Image

from pipeline.data.image_paths import (
    MAX_LINE_BYTES,
    STDIN,
    GivenImages,
    protected_paths,
)
from stages.errors import DataError


@pytest.fixture
def producer(monkeypatch):
    """Return the writing end of a pipe whose reading end is standard input."""
    reading, writing = os.pipe()
    with open(reading, "rb") as raw, open(writing, "wb", buffering=0) as end:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))
        yield end


def set_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def listed(images: list[Path]) -> list[str]:
    """Return the paths of all batches."""
    return [path for batch in GivenImages(images, print).batches() for path in batch]


def test_batches_hold_what_is_there(producer):
    batches = GivenImages([STDIN], print).batches()
    producer.write(b"a.png\nb.png\nc")
    first = next(batches)  # would wait forever if it read until the end
    assert list(first) == ["a.png", "b.png"]
    producer.write(b".png\n")
    second = next(batches)
    assert next(second) == "c.png"
    producer.write(b"d.png\n")  # arrives before the batch is used up
    assert next(second) == "d.png"
    producer.write(b"last")
    producer.close()
    assert [path for batch in batches for path in batch] == ["last"]
    assert list(second) == []


def test_a_file_on_standard_input_is_one_batch(tmp_path, monkeypatch):
    names = [f"folder/image {number}.png" for number in range(20_000)]
    (tmp_path / "list.txt").write_text("\n".join(names))
    with (tmp_path / "list.txt").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        batches = [list(batch) for batch in GivenImages([STDIN], print).batches()]
    assert batches == [names]


def test_streams_that_cannot_be_waited_for_are_read_in_pieces(monkeypatch):
    """Read a stream without a file descriptor, such as one on Windows."""
    names = [f"image {number}.png" for number in range(20_000)]
    set_stdin(monkeypatch, "\n".join(names).encode())
    batches = [list(batch) for batch in GivenImages([STDIN], print).batches()]
    assert [name for batch in batches for name in batch] == names and len(batches) > 1


def test_lines_are_read_as_they_are_needed(monkeypatch):
    set_stdin(monkeypatch, b"x.png\n" * 10**6)
    before = sys.stdin.buffer.tell()
    batches = GivenImages([STDIN], print).batches()
    assert len(list(islice(chain.from_iterable(batches), 10))) == 10
    assert sys.stdin.buffer.tell() - before <= MAX_LINE_BYTES


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"\n\n\n"])
def test_no_path_is_an_error_that_names_standard_input(monkeypatch, content):
    set_stdin(monkeypatch, content)
    given = GivenImages([STDIN], print)
    assert [list(batch) for batch in given.batches()] == []
    with pytest.raises(DataError, match=r"^-: no image on standard input"):
        given.require_readable("")


def test_closed_standard_input_has_no_paths(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert listed([STDIN, Path("a.png")]) == ["a.png"]


def test_line_ends_and_bytes_that_are_no_text(monkeypatch):
    set_stdin(monkeypatch, b"a.png\r\n\r\ncaf\xe9.png\n-\n x \n")
    assert listed([STDIN]) == ["a.png", os.fsdecode(b"caf\xe9.png"), "-", " x "]


@pytest.mark.parametrize("line_break", [b"", b"\n"])
def test_an_endless_line_is_rejected(monkeypatch, line_break):
    set_stdin(monkeypatch, b"a.png\n" + bytes(3 * MAX_LINE_BYTES) + line_break)
    with pytest.raises(DataError, match=r"65,536 bytes"):
        listed([STDIN])


def test_arguments_keep_their_order(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    for name in ("1.png", "2.png"):
        Image.new("L", (4, 4)).save(tmp_path / "folder" / name)
    monkeypatch.chdir(tmp_path)
    set_stdin(monkeypatch, b"folder\nb.png\n")
    arguments = [Path("a.png"), Path("folder"), STDIN, Path("c.png"), STDIN]
    in_folder = [str(Path("folder", name)) for name in ("1.png", "2.png")]
    assert listed(arguments) == ["a.png", *in_folder, *in_folder, "b.png", "c.png"]


def test_labels_are_those_of_the_folders(tmp_path, monkeypatch):
    for name in ("x", "y"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / name / "1.png").touch()
    monkeypatch.chdir(tmp_path)
    set_stdin(monkeypatch, b"folder\nb.png\n")
    given = GivenImages([Path("a.png"), STDIN], print)
    in_folder = [(str(Path("folder", name, "1.png")), name) for name in ("x", "y")]
    assert list(given.labelled()) == [("a.png", ""), *in_folder, ("b.png", "")]
    for path, reason in (("a.png", ""), (in_folder[0][0], "broken"), (in_folder[1][0], "")):
        given.count(path, reason)
    given.require_readable("")  # the broken image was not named
    given.count("b.png", "broken")
    with pytest.raises(DataError, match=r"^b\.png: broken; 1 of 4"):
        given.require_readable("")


@pytest.mark.parametrize("listed", [b"", b"folder\n", b"folder/bad.png\n"])
def test_only_named_images_must_be_readable(tmp_path, monkeypatch, listed):
    for name in ("good.png", "bad.png"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / name).touch()
    monkeypatch.chdir(tmp_path)
    set_stdin(monkeypatch, listed)
    given = GivenImages([Path("folder"), STDIN], print)
    for batch in given.batches():
        for path in batch:
            given.count(path, "broken" if "bad" in path else "")
    if b"bad" in listed:
        with pytest.raises(DataError, match=r"bad\.png: broken; 1 of 3 images .* rows are empty"):
            given.require_readable("rows are empty")
    else:
        given.require_readable("rows are empty")
    folders = 1 + (listed == b"folder\n")
    assert (given.readable, given.unreadable) == (folders, folders + (b"bad" in listed))


def test_images_of_which_none_is_readable_are_an_error(tmp_path, capsys):
    (tmp_path / "bad.png").touch()
    given = GivenImages([tmp_path], print)
    for batch in given.batches():
        for path in batch:
            given.count(path, "broken")
    assert capsys.readouterr().out == f"skipped: {tmp_path / 'bad.png'}: broken\n"
    with pytest.raises(DataError, match=r"bad\.png: broken; 1 of 1 images"):
        given.require_readable("")


def test_counting_keeps_no_list(monkeypatch):
    set_stdin(monkeypatch, b"x.png\n" * 50_000)
    given = GivenImages([STDIN], print)
    waiting = 0
    for batch in given.batches():
        for path in batch:
            waiting = max(waiting, len(given._named))
            given.count(path, "missing")
    assert given.unreadable == 50_000 and waiting == 1


def test_several_processes_cannot_share_standard_input(monkeypatch):
    monkeypatch.setattr("pipeline.data.image_paths.rank_and_world_size", lambda: (0, 2))
    GivenImages([Path("a.png")], print)
    with pytest.raises(DataError, match=r"^-: several processes"):
        GivenImages([STDIN], print)


def test_outputs_that_would_replace_an_input(tmp_path):
    images = [tmp_path / "a.png", tmp_path]
    assert protected_paths(images, tmp_path / "rows.csv") == images
    inside, outside = tmp_path / "new.png", tmp_path.parent / "new.png"
    assert protected_paths(images, inside) == [*images, inside]
    assert protected_paths(images, outside) == images
    assert protected_paths([STDIN], outside) == [outside]  # it may be on the list
    assert protected_paths([STDIN], tmp_path / "rows.csv") == []
