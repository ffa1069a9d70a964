"""Images: damaged, huge, of unusual formats, or no files at all. Also paths for `predict`."""

import os
from io import BytesIO

from hostile.case import Case, error, rejected, some_unreadable, works
from hostile.prepare import copy, device, fifo, file, folder, image, link, steps
from image_files import BAD, GOOD, RGB, encode, png_of_claimed_size
from PIL import Image

GOOD_ROW = "photos/ash/0.png,"


def bad(name: str, prepare: object, *reasons: str, path: str = "bad.png") -> Case:
    """Expect that an image named between two good ones has an empty row and a reason."""
    return some_unreadable(
        f"predict photos/ash/0.png {path} photos/ash/1.png",
        path,
        *reasons,
        prints=(GOOD_ROW, f"\n{path},,", "\nphotos/ash/1.png,"),
        prepare=prepare,
        name=f"bad image: {name}",
    )


def good(name: str, content: bytes) -> Case:
    """Expect that an unusual image is classified."""
    prepare = file("odd.png", content)
    return works("predict odd.png", prints=("\nodd.png,",), prepare=prepare, name=f"image: {name}")


def png(size: tuple[int, int], mode: str = "L", **options: object) -> bytes:
    """Return a PNG of one colour."""
    return encode(Image.new(mode, size, 0), "PNG", **options)


def animation() -> bytes:
    """Return an animated PNG of three frames."""
    buffer = BytesIO()
    frames = [Image.new("L", (12, 12), value) for value in (0, 90, 200)]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def sparse(size: int) -> object:
    """Create a file of zeros that takes no space on the disk."""

    def create() -> None:
        with open("bad.png", "wb") as target:
            target.truncate(size)

    return create


def below_limit() -> None:
    """Put a damaged image into a class, few enough to be skipped."""
    file("photos/ash/bad.png", BAD["truncated PNG"][0])()


UNREADABLE = [
    *(bad(name, file("bad.png", content), reason) for name, (content, reason) in BAD.items()),
    bad(
        "20,000 x 20,000 by its header", file("bad.png", png_of_claimed_size(20_000)), "bomb|large"
    ),
    bad("2 billion pixels wide", file("bad.png", png_of_claimed_size(2**31 - 1))),
    bad("no width", file("bad.png", png_of_claimed_size(0))),
    bad("no such file", lambda: None, "no such|missing"),
    bad("a broken link", link("bad.png", "nowhere"), "no such|missing|broken"),
    bad("a link to itself", link("bad.png", "bad.png")),
    bad("a named pipe", fifo("bad.png"), "not a file"),
    bad("the null device", device("bad.png", "null", 3), "not a file"),
    bad("the zero device", device("bad.png", "zero", 5), "not a file"),
    bad("2 GB of zeros", sparse(2**31), "GB"),
    bad("100 MB of zeros", sparse(10**8)),
    bad("a text file", lambda: None, "not an image", path="notes.txt"),
    bad("a checkpoint", lambda: None, "not an image", path="checkpoints/classifier.safetensors"),
    bad("a file as a folder", lambda: None, path="notes.txt/0.png"),
    bad("a name that is too long", lambda: None, "long", path="x" * 300),
    some_unreadable(
        "predict bad.png",
        "bad.png",
        prints=("\nbad.png,,",),
        name="one empty image",
        prepare=file("bad.png"),
    ),
    some_unreadable(
        "predict bad.png --json",
        "bad.png",
        prints=('"path": "bad.png"',),
        prepare=file("bad.png"),
        name="one empty image as JSON",
    ),
    some_unreadable("predict nowhere.png", "nowhere.png", prints=("\nnowhere.png,,",)),
    some_unreadable(
        "predict photos nowhere.png", "nowhere.png", prints=(GOOD_ROW, "\nnowhere.png,,")
    ),
    some_unreadable(
        "predict nowhere.png --out rows.csv", "nowhere.png", prints=("",), writes=("rows.csv",)
    ),
    some_unreadable(
        "predict '\x1b[2J.png'", ".png", prints=("path,",), name="escape code in a missing image"
    ),
    some_unreadable(
        "predict 'new\nline.png'",
        "line.png",
        prints=("path,",),
        name="line break in a missing image",
    ),
]

IN_FOLDERS = [
    works(
        "predict odd",
        "odd/bad.png",
        prints=("\nodd/bad.png,,", "\nodd/good.png,"),
        prepare=steps(copy("photos/ash/0.png", "odd/good.png"), file("odd/bad.png", "text")),
        name="a folder with an unreadable image",
    ),
    works(
        "predict odd",
        prints=("\nodd/pipe.png,,",),
        prepare=steps(copy("photos/ash", "odd"), fifo("odd/pipe.png")),
        name="a folder with a named pipe",
    ),
    works(
        "predict odd",
        prints=("odd/x.png/0.png",),
        prepare=copy("photos/ash", "odd/x.png"),
        name="a folder with the name of an image",
    ),
    works(
        "predict photos",
        prints=("cedar/7.png",),
        prepare=link("photos/loop", "../photos"),
        name="a folder that links to itself",
    ),
    works("predict photos/ash/0.png photos/ash/0.png", prints=(f"{GOOD_ROW}",)),
    works("predict ./photos/../photos/ash/0.png", prints=("photos/ash/0.png,",)),
    works(
        "data photos",
        prints=("24 images", "1 skipped"),
        prepare=below_limit,
        name="a class with a damaged image",
    ),
    works(
        "data photos",
        prints=("24 images", "1 skipped"),
        prepare=fifo("photos/ash/pipe.png"),
        name="a class with a named pipe",
    ),
    works(
        "data photos",
        prints=("25 images",),
        prepare=image("photos/ash/long.png", (5000, 1)),
        name="a class with a strip",
    ),
    works(
        "embed --data photos --out new.safetensors --epochs 1",
        "ash/bad.png",
        may_write=True,
        prepare=below_limit,
        name="training with a damaged image",
    ),
    error("predict empty", "empty", prepare=folder("empty")),
    error("predict odd", "odd", prepare=file("odd/notes.txt"), name="a folder without images"),
    rejected("predict ''", "IMAGE|''|path"),
    rejected("predict --classifier '' photos", "--classifier|''|folder"),
]

UNUSUAL = [
    *(good(name, content) for name, (content, _, _) in GOOD.items()),
    good("a wide strip", png((5000, 1))),
    good("a high strip", png((1, 5000))),
    good("two tones", png((12, 12), "1")),
    good("an animation", animation()),
    good("a damaged colour profile", png((12, 12), "RGB", icc_profile=b"\xff" * 99)),
    good("bytes after the end", png((12, 12)) + b"trailing" * 99),
    good("a JPEG named PNG", encode(RGB, "JPEG")),
    works(
        "predict odd",
        prints=("\nodd,",),
        prepare=copy("photos/ash/0.png", "odd"),
        name="an image without an ending",
    ),
    works(
        "predict .hidden.png",
        prints=("\n.hidden.png,",),
        prepare=copy("photos/ash/0.png", ".hidden.png"),
    ),
    works("predict ./-x.png", prints=("-x.png,",), prepare=copy("photos/ash/0.png", "-x.png")),
    works("predict -- -x.png", prints=("-x.png,",), prepare=copy("photos/ash/0.png", "-x.png")),
    works("predict 😀.png", prints=("😀.png,",), prepare=copy("photos/ash/0.png", "😀.png")),
    works("predict =1+1.png", prints=("'=1+1.png,",), prepare=copy("photos/ash/0.png", "=1+1.png")),
    works(
        "predict odd",
        prints=(".png",),
        name="an image name not in UTF-8",
        prepare=copy("photos/ash/0.png", os.path.join(b"odd", b"caf\xe9.png")),
    ),
    works(
        "predict odd --json",
        prints=(".png",),
        name="a JSON row of a name not in UTF-8",
        prepare=copy("photos/ash/0.png", os.path.join(b"odd", b"caf\xe9.png")),
    ),
    works(
        "predict odd --out rows.csv",
        name="a file of rows with a name not in UTF-8",
        writes=("rows.csv",),
        prepare=copy("photos/ash/0.png", os.path.join(b"odd", b"\xff.png")),
    ),
    works(
        "predict odd",
        prints=(".png",),
        name="an image name with escape codes",
        prepare=copy("photos/ash/0.png", "odd/\x1b[31mred\x07\r\n.png"),
    ),
]

CASES = [*UNREADABLE, *IN_FOLDERS, *UNUSUAL]
