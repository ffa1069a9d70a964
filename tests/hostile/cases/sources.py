"""Sources: missing, empty, of another structure, with unusual names or links."""

import os
from pathlib import Path

from hostile.case import Case, error, rejected, works
from hostile.prepare import (
    CLASSIFIER,
    EMBEDDING,
    copy,
    device,
    fifo,
    file,
    folder,
    image,
    link,
    record,
    remove,
    steps,
)

NEW = "--out new.safetensors --epochs 5000"  # takes long if it is not rejected


def classes(*names: str | bytes, root: str = "odd") -> object:
    """Copy the images of one class below several names."""
    return steps(
        *(copy("photos/ash", os.path.join(os.fsencode(root), os.fsencode(name))) for name in names)
    )


def odd_class(title: str, *names: str | bytes) -> Case:
    """Expect that a source with an oddly named class is read."""
    count = 8 * (1 + len(names))
    prepare = classes("plain", *names)
    return works(
        "data odd", prints=(f"{count} images",), prepare=prepare, name=f"class name: {title}"
    )


def spoil(*names: str) -> None:
    """Replace all images of classes by text."""
    for name in names:
        for path in (Path("photos") / name).iterdir():
            path.write_text("no image")


def forget_source() -> None:
    """Let the checkpoints name a source that is no longer there."""
    for path in (EMBEDDING, CLASSIFIER):
        record(path, {"source": str(Path("old/photos").resolve())})()


CASES = [
    # No such source.
    error("data nowhere", "nowhere"),
    error("embed --data nowhere", "nowhere"),
    error("run --data nowhere --out new", "nowhere"),
    error("run --data nowhere --folds 2 --out new", "nowhere"),
    rejected("data ''", "data|source|''"),
    rejected("embed --data ''", "data|source|''"),
    error("data digits/", "digits/"),
    error("data Digits", "Digits", "digits"),
    error("data 'photos/*'", "photos/*"),
    error("data '~/photos'", "~/photos"),
    error("data file://photos", "file://photos"),
    error("data https://example.org/photos.zip", "https://example.org/photos.zip"),
    error(f"data {'x' * 300}", "xxx"),
    error(f"data {'x/' * 3000}", "x/x"),
    error("data 'no\nwhere'", "where"),
    error("data '\x1b[2Jnowhere'", "nowhere", name="escape code in a missing source"),
    error("data photos/ash/0.png", "photos/ash/0.png", "csv"),
    error("data notes.txt", "notes.txt", "csv"),
    error("data checkpoints/classifier.safetensors", "classifier.safetensors"),
    error("data null", "null", prepare=device("null", "null", 3)),
    error("data pipe.csv", "pipe.csv", prepare=fifo("pipe.csv")),
    error("data loop", "loop", prepare=link("loop", "loop")),
    error("data gone", "gone", prepare=link("gone", "nowhere")),
    error("data torchvision:", "torchvision:", "FashionMNIST"),
    error("data torchvision:Nope", "torchvision:Nope", "FashionMNIST"),
    error("data torchvision:mnist", "torchvision:mnist", "MNIST"),
    error("data torchvision:MNIST/letters", "torchvision:MNIST/letters"),
    error("data torchvision:MNIST --root cache", "torchvision:MNIST", "--download"),
    error("data torchvision:EMNIST/nope --root cache", "torchvision:EMNIST/nope"),
    error("embed --data torchvision:SVHN --root cache", "torchvision:SVHN", "--download"),
    # Another structure.
    error("data empty", "empty", prepare=folder("empty")),
    error("data photos/ash", "photos/ash", "subfolder"),
    error("embed --data photos/ash " + NEW, "photos/ash", "8"),
    error("data odd", "odd", prepare=file("odd/a/notes.txt"), name="classes without images"),
    error("data odd", "odd", prepare=steps(folder("odd/a"), folder("odd/b")), name="empty classes"),
    error(f"embed --data odd {NEW}", "odd", "1 class", prepare=classes("a"), name="one class"),
    error(
        f"run --folds 2 --data odd {NEW}",
        "odd",
        "class",
        prepare=classes("a"),
        name="folds of one class",
    ),
    error(
        f"embed --data odd {NEW}",
        "odd|--data",
        prepare=steps(image("odd/a/1.png"), image("odd/b/1.png", mode="RGB")),
        name="one image per class",
    ),
    error("data odd", "odd", "train", prepare=copy("photos", "odd/test"), name="only test/"),
    error("data odd", "odd", "train", prepare=copy("photos", "odd/val"), name="only val/"),
    error(
        "data odd",
        "odd",
        "stray",
        prepare=steps(copy("photos", "odd/train"), copy("photos/ash", "odd/stray")),
        name="a class next to train/",
    ),
    error(
        f"embed --data odd {NEW}",
        "odd",
        "Ash",
        "case",
        prepare=steps(copy("photos", "odd/train"), copy("photos/ash", "odd/test/Ash")),
        name="a test class that differs from a training class only by case",
    ),
    error(
        f"embed --data odd {NEW}",
        "odd",
        "yew",
        prepare=steps(copy("photos", "odd/train"), copy("photos/ash", "odd/val/yew")),
        name="a validation class without training images",
    ),
    error(
        f"embed --data photos {NEW}",
        "photos",
        prepare=lambda: spoil("ash", "birch", "cedar"),
        name="no readable image",
    ),
    error(
        f"embed --data photos {NEW}",
        "photos",
        "--max-unreadable",
        "0.25",
        prepare=lambda: spoil("ash"),
        name="a third unreadable",
    ),
    error(
        f"embed --data photos {NEW} --max-unreadable 1",
        "photos",
        "1 class",
        prepare=lambda: spoil("ash", "birch"),
        name="one readable class",
    ),
    error("classify --data digits --force", "digits"),
    error("classify --data nowhere --force", "nowhere"),
    error("report --data digits --out new", "digits"),
    error("report --data nowhere --out new", "nowhere"),
    error(
        "report --data odd --out new",
        "odd",
        prepare=classes("ash", "birch", "cedar"),
        name="other images than those of stage one",
    ),
    error(
        "report --out new",
        "old/photos",
        "--data",
        prepare=forget_source,
        name="images that have moved",
    ),
    # Tolerated.
    works(
        "run --data odd --epochs 1 --dim 8",
        r"unseen: 2 classes (\x1b[2Joak, yew\nold), 16 test images",
        prepare=steps(
            copy("photos", "odd/train"),
            copy("photos/ash", "odd/test/yew\nold"),
            copy("photos/cedar", "odd/test/\x1b[2Joak"),
            remove("checkpoints"),
        ),
        may_write=True,
        name="control characters in names of unseen classes",
    ),
    works(
        "data photos",
        "Ash",
        "case",
        prepare=copy("photos/ash", "photos/Ash"),
        name="classes that differ only by case",
    ),
    works(
        "data odd",
        "Unicode",
        prepare=classes("caf\u00e9", "cafe\u0301", "other"),
        name="classes that differ only by Unicode normalisation",
    ),
    works(
        "embed --data odd --out new.safetensors --epochs 1",
        "case",
        may_write=True,
        prepare=classes("a", "A", "b"),
        name="embed: classes that differ only by case",
    ),
    works(
        "data odd", prints=("24 images",), prepare=copy("photos", "odd/train"), name="only train/"
    ),
    works(
        "data photos", prints=("24 images",), prepare=folder("photos/empty"), name="an empty class"
    ),
    works(
        "data photos",
        prints=("25 images",),
        prepare=image("photos/ash/deep/er/9.png"),
        name="nested folders",
    ),
    works(
        "data photos",
        prints=("24 images",),
        prepare=copy("photos/ash", "photos/.hidden"),
        name="a hidden class",
    ),
    works(
        "data photos",
        prints=("24 images",),
        prepare=link("photos/ash/loop", "../ash"),
        name="a link to its own folder",
    ),
    works(
        "data photos",
        prints=("24 images",),
        prepare=link("photos/ash/up", "../.."),
        name="a link to a folder above",
        may_write=True,
    ),
    works(
        "data photos",
        prints=("24 images",),
        prepare=link("photos/ash/self", "self"),
        name="a link to itself",
    ),
    works(
        "data photos",
        prints=("24 images", "1 skipped"),
        prepare=link("photos/ash/9.png", "none.png"),
        name="a broken link to an image",
    ),
    works("data odd", prints=("24 images",), prepare=link("odd", "photos"), name="a linked source"),
    works("data photos/", prints=("24 images",)),
    works("data ./photos/../photos", prints=("24 images",)),
    works("data .", prepare=lambda: None, may_write=True, name="the working folder"),
    works(
        "data odd",
        prints=("2",),
        name="a class with a single image",
        prepare=steps(classes("a", "b"), image("odd/lone/1.png")),
    ),
    odd_class("emoji", "😀"),
    odd_class("line break", "line\nbreak"),
    odd_class("escape code", "\x1b[2J\x1b[31mred"),
    odd_class("carriage return and bell", "a\rb\x07"),
    odd_class("not UTF-8", b"caf\xe9"),
    odd_class("right-to-left override", "a\u202eb"),
    odd_class("spaces", "  ", " a "),
    odd_class("formula", "=1+1", "@SUM(A1)"),
    odd_class("markup", "<script>alert(1)<", "%s{0}"),
    odd_class("quotes", "a\"b'c", "a,b;c"),
    odd_class("dashes", "--force", "-"),
    odd_class("very long", "x" * 250),
    odd_class("reserved words", "null", "nan", "True"),
    odd_class("names of splits", "training", "Test"),
]
