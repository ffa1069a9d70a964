"""Environments: closed or full streams, encodings, limits of memory and files, other folders.

Each case is a bash script, because it needs a new process. In it `pipeline` is the program.
"""

import struct
import zlib
from pathlib import Path
from typing import Any

from hostile.case import Case, error, rejected, some_unreadable, works
from hostile.prepare import copy, file, image, steps

EMBED = "pipeline embed --data photos --out new/e.safetensors"
MEMORY = "ulimit -v 8000000"  # 8 GB
OUTPUT = "standard output|stdout"


def shell(make: Any, command: str, *mentions: str, **options: Any) -> Case:
    """Make a case of a bash script."""
    return make(command, *mentions, shell=True, **options)


def zeros_png(side: int, channels: int = 1, depth: int = 8) -> None:
    """Write ``huge.png``, a black image that is small as a file and huge in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    compressor = zlib.compressobj(1)
    row = bytes(1 + side * channels * depth // 8)
    pixels = b"".join(compressor.compress(row * 100) for _ in range(side // 100))
    colour = 0 if channels == 1 else 2
    content = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    content += chunk(b"IDAT", pixels + compressor.flush()) + chunk(b"IEND", b"")
    Path("huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)


PYTHONS = "mkdir stages; echo 'raise SystemExit(9)' | tee random.py stages/__init__.py > logging.py"

CASES = [
    # Streams.
    shell(works, "pipeline --help | head -1"),
    shell(works, "pipeline predict photos | head -1; exit ${PIPESTATUS[0]}", prints=("path,",)),
    shell(works, "ls photos/*/*.png | pipeline predict -", prints=("photos/cedar/7.png,",)),
    shell(works, "echo photos | pipeline predict - | head -1", prints=("path,",)),
    shell(error, "pipeline predict - < /dev/null", "-: no image on standard input"),
    shell(error, "pipeline predict - <&-", "-: no image on standard input"),
    shell(error, "pipeline predict - < /dev/zero", "65,536 bytes"),
    shell(
        some_unreadable,
        r"printf 'a\0b\nphotos/ash/0.png\r\n%300s' x | pipeline predict -",
        "1 of 3|2 of 3",
        prints=("\nphotos/ash/0.png,",),
    ),
    shell(error, "ls photos/ash/0.png | pipeline predict - --out photos/ash/0.png", "input"),
    shell(error, "pipeline predict - --out notes.txt < notes.txt", "notes.txt", "input"),
    shell(works, "pipeline data photos | true; exit ${PIPESTATUS[0]}"),
    shell(rejected, "pipeline --help > /dev/full", OUTPUT),
    shell(rejected, "pipeline predict photos > /dev/full", OUTPUT),
    shell(rejected, "pipeline data photos > /dev/full", OUTPUT),
    shell(rejected, "pipeline predict photos >&-", OUTPUT),
    shell(works, "pipeline predict photos 2>&-", prints=("photos/cedar/7.png,",)),
    shell(some_unreadable, "pipeline predict nowhere.png 2>&-", prints=("nowhere.png,,",)),
    shell(
        some_unreadable,
        "pipeline embed --epochs 0 2>&-; echo status $?; exit 1",
        prints=("status 1",),
    ),
    shell(
        some_unreadable,
        "pipeline embed --epochs 0 2> /dev/full; echo status $?; exit 1",
        prints=("status 1",),
    ),
    shell(error, "pipeline embed --epochs 0 >&-", "--epochs"),
    # Encodings.
    shell(
        works,
        "PYTHONIOENCODING=ascii pipeline predict 😀.png",
        prints=(".png,",),
        prepare=copy("photos/ash/0.png", "😀.png"),
    ),
    shell(error, "PYTHONIOENCODING=ascii pipeline data 😀", "error", "nowhere|such"),
    shell(
        works,
        "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 pipeline data photos",
        prints=("24 images",),
    ),
    shell(
        works,
        "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 pipeline report --out new",
        may_write=True,
        writes=("new/report.html",),
    ),
    # Memory.
    shell(
        some_unreadable,
        f"{MEMORY}; pipeline predict photos/ash/0.png huge.png",
        "huge.png",
        prints=("photos/ash/0.png,", "huge.png,,"),
        prepare=lambda: zeros_png(20_000),
    ),
    shell(
        works,
        f"{MEMORY}; pipeline data photos",
        "1 skipped|huge.png",
        prepare=steps(lambda: zeros_png(20_000), copy("huge.png", "photos/ash/huge.png")),
        prints=("24 images",),
        name="data: an image of 20,000 x 20,000",
    ),
    shell(
        works,
        "ulimit -v 5000000; pipeline predict huge.png photos/ash/0.png || [ $? = 1 ]",
        prints=("\nhuge.png,", "\nphotos/ash/0.png,"),
        prepare=lambda: zeros_png(9_400, channels=3, depth=16),
        name="16-bit colour image of 9,400 x 9,400 in little memory",
    ),
    shell(rejected, f"{MEMORY}; {EMBED} --dim 100000000", "--dim", "100000000"),
    shell(rejected, f"{MEMORY}; {EMBED} --images-per-class 99999", "--images-per-class", "99999"),
    shell(
        rejected,
        f"ulimit -v 5000000; {EMBED} --size 1024 --channels 3 --network conv-deep --epochs 1",
        "memory",
        "--images-per-class|--size",
        may_write=True,
    ),
    shell(rejected, f"{MEMORY}; {EMBED} --threads 100000", "--threads", "100000"),
    shell(rejected, f"{MEMORY}; pipeline classify --force --threads 100000", "--threads"),
    # Files.
    shell(error, f"ulimit -f 100; {EMBED} --epochs 1 --dim 8", "e.safetensors", may_write=True),
    shell(error, "ulimit -f 100; pipeline report --out new", "new", may_write=True),
    shell(error, "ulimit -f 0; pipeline predict photos --out rows.csv", "rows.csv"),
    shell(works, "ulimit -n 40; pipeline data photos", prints=("24 images",)),
    shell(works, "TMPDIR=/nowhere pipeline data photos", prints=("24 images",)),
    shell(
        rejected, "XDG_CACHE_HOME=/proc/nowhere pipeline data photos", "/proc/nowhere", "--cache"
    ),
    shell(works, f"{PYTHONS}; pipeline data photos", may_write=True, prints=("24 images",)),
    # Variables.
    shell(rejected, f"RANK=0 WORLD_SIZE=two {EMBED} --epochs 1", "WORLD_SIZE", "two"),
    shell(rejected, f"RANK=zero WORLD_SIZE=2 {EMBED} --epochs 1", "RANK", "zero"),
    shell(works, "PYTHONOPTIMIZE=2 pipeline embed --help", prints=("--images-per-class",)),
    shell(works, "TERM=nonsense NO_COLOR=1 pipeline data --help", prints=("SOURCE",)),
    shell(works, "OMP_NUM_THREADS=many pipeline data photos", prints=("24 images",)),
    shell(
        works,
        "pipeline data photos < /dev/null",
        prints=("24 images",),
        prepare=steps(file("x"), image("y.png")),
    ),
]
