"""Paths of images that are given on the command line or on standard input."""

import os
import select
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BufferedReader
from itertools import groupby
from pathlib import Path
from typing import cast

from pipeline.data.entries import Skipped
from pipeline.data.folder import IMAGE_SUFFIXES, find_labelled_images
from stages.distributed import rank_and_world_size
from stages.errors import DataError

STDIN = Path("-")  # argument that stands for the paths on standard input
MAX_LINE_BYTES = 65_536  # longer than any path


class GivenImages:
    """Images that a command is given, and how many of them could be read.

    Paths on standard input are read as they are needed, and memory does not grow with their number.

    Args:
        images: Files and folders; ``-`` stands for paths on standard input, one per line.
        say: Shows a message; called at once for every image that cannot be read.

    Attributes:
        readable: Number of images counted so far that could be read.
        unreadable: Number of images counted so far that could not be read.

    Raises:
        DataError: If several processes would have to share standard input.
    """

    def __init__(self, images: Sequence[Path], say: Callable[[str], None]):
        if STDIN in images and rank_and_world_size()[1] > 1:
            raise DataError(
                "-: several processes cannot share standard input; give files or folders"
            )
        self.images, self._say = images, say
        self.readable = self.unreadable = self._named_unreadable = 0
        self._first: Skipped | None = None  # the first unreadable image
        self._first_named: Skipped | None = None
        # For images that are not counted yet: True if the user named it, False if it was found in
        # a folder.
        self._named: deque[bool] = deque()

    def batches(self) -> Iterator[Iterator[str]]:
        """Yield iterators over the paths of image files; each is used up before the next.

        An iterator ends where the next path would have to be waited for. So the images of a slow
        producer are processed as they arrive, and those of a fast one in one large batch.
        """
        for paths in self._given():
            yield (path for path, _ in self._files(paths))

    def labelled(self) -> Iterator[tuple[str, str]]:
        """Yield the paths of all image files, with their labels.

        See :func:`pipeline.data.folder.find_labelled_images`; unknown labels are empty.
        """
        for paths in self._given():
            yield from self._files(paths)

    def _given(self) -> Iterator[Iterator[Path]]:
        for is_stdin, group in groupby(self.images, key=lambda path: path == STDIN):
            yield from _batches_on_stdin() if is_stdin else [iter(list(group))]

    def _files(self, paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
        for path in paths:
            for file, label in find_labelled_images(path):
                self._named.append(file == path)
                yield str(file), label

    def count(self, path: str, reason: str) -> None:
        """Count an image, and report it if it could not be read.

        The images are counted in the order of :meth:`batches` or :meth:`labelled`.

        Args:
            path: Path of the image.
            reason: Why it could not be read; empty if it could.
        """
        is_named = self._named.popleft()
        if not reason:
            self.readable += 1
            return
        self._say(f"skipped: {path}: {reason}")
        self.unreadable += 1
        self._first = self._first or Skipped(path, reason)
        if is_named:
            self._named_unreadable += 1
            self._first_named = self._first_named or Skipped(path, reason)

    def require_readable(self, effect: str) -> None:
        """Raise an error if a named image could not be read, or no image at all.

        Paths on standard input are named too. Unreadable images in folders are tolerated.

        Args:
            effect: The content of the output for the skipped images, for the message.

        Raises:
            DataError: As described.
        """
        if self._first is None and not self.readable:
            raise _no_image(self.images[0])
        if self._first_named:
            raise self._describe(self._first_named, self._named_unreadable, effect)
        if self._first and not self.readable:
            raise self._describe(self._first, self.unreadable, effect)

    def _describe(self, first: Skipped, number: int, effect: str) -> DataError:
        total = self.readable + self.unreadable
        return DataError(
            f"{first.path}: {first.reason}; {number} of {total} images could not be read, {effect}"
        )


def protected_paths(images: Sequence[Path], out: Path) -> list[Path]:
    """Return the paths that an output must not replace, because they are inputs.

    Args:
        images: Files and folders, and ``-`` for paths on standard input.
        out: File that the command will write. It is among the returned paths if it would be taken
            for one of the images, or is itself read on standard input.
    """
    paths = [image for image in images if image != STDIN]
    from_stdin = STDIN in images
    folders = {Path(os.path.realpath(image)) for image in paths if os.path.isdir(image)}
    may_be_listed = from_stdin or not folders.isdisjoint(Path(os.path.realpath(out)).parents)
    if (may_be_listed and out.suffix.lower() in IMAGE_SUFFIXES) or (from_stdin and _is_stdin(out)):
        paths.append(out)
    return paths


def _no_image(place: Path) -> DataError:
    if place == STDIN:
        return DataError("-: no image on standard input; give one path per line")
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    return DataError(f"{place}: contains no image; give images ({suffixes})")


def _is_stdin(path: Path) -> bool:
    """Return True if standard input reads the file at a path."""
    try:
        return os.path.samestat(os.fstat(0), os.stat(path))
    except OSError:  # no such file
        return False


def _batches_on_stdin() -> Iterator[Iterator[Path]]:
    """Yield iterators over the paths that can be read without waiting."""
    if sys.stdin is None:  # closed
        return
    lines = _Lines(cast(BufferedReader, sys.stdin.buffer))
    while lines.wait():
        yield (Path(os.fsdecode(line)) for line in lines.available())


class _Lines:
    """Lines of a stream, without empty ones, that can be read without waiting.

    Args:
        stream: Stream such as standard input. A regular file never has to be waited for.
    """

    def __init__(self, stream: BufferedReader):
        self._stream = stream
        self._complete: deque[bytes] = deque()
        self._rest = b""  # start of a line whose end is not read yet
        self._ended = False

    def wait(self) -> bool:
        """Wait for a line; return False at the end of the stream."""
        while not self._complete and not self._ended:
            self._read()
        return bool(self._complete)

    def available(self) -> Iterator[bytes]:
        """Yield lines until the next one would have to be waited for."""
        while self._complete or (not self._ended and _is_ready(self._stream)):
            if self._complete:
                yield self._complete.popleft()
            else:
                self._read()

    def _read(self) -> None:
        """Read what is there, waiting only if that is nothing."""
        try:
            chunk = self._stream.read1(MAX_LINE_BYTES)
        except OSError as error:  # a folder
            raise DataError(
                f"-: standard input cannot be read ({error.strerror}); give one path per line"
            ) from error
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if not chunk:  # the last line needs no line break
            self._ended = True
            lines, self._rest = [self._rest], b""
        for line in lines:
            if path := line.removesuffix(b"\r"):
                self._complete.append(path)
        if len(self._rest) > MAX_LINE_BYTES:
            raise DataError(
                f"-: a line on standard input has more than {MAX_LINE_BYTES:,} bytes; give one "
                "path per line"
            )


def _is_ready(stream: BufferedReader) -> bool:
    """Return True if a stream can be read without waiting.

    On Windows that is unknown: a batch then ends with what one call has read.
    """
    if not hasattr(select, "poll"):
        return False
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    except (OSError, ValueError):  # not a file of the operating system
        return False
