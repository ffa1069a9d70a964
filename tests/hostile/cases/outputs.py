"""Outputs: every path is checked before the work, and no file is lost."""

from collections.abc import Iterator
from typing import Any

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
    remove,
    steps,
)

from pipeline.report.write import NAMES

# Takes long if the output is not checked first.
EPOCHS = "--data photos --dim 8 --epochs 5000"
FILE_OUTPUTS = {
    "embed --out": f"embed {EPOCHS} --out",
    "classify --out": "classify --out",
    "predict --out": "predict photos --out",
    "export --out": "export --force --out",
    "export --any-size": "export --force --out new.onnx --any-size",
    "run --embedding": f"run {EPOCHS} --classifier c.safetensors --out new --embedding",
    "run --classifier": f"run {EPOCHS} --embedding e.safetensors --out new --classifier",
}
FOLDER_OUTPUTS = {
    "report --out": "report --out",
    "report --figures": "report --out new --figures",
    "run --out": f"run {EPOCHS} --embedding e.safetensors --classifier c.safetensors --out",
    "run --figures": f"run {EPOCHS} --embedding e.safetensors --classifier c.safetensors "
    "--out new --figures",
    "run --folds --out": f"run {EPOCHS} --folds 2 --out",
    "run --folds --figures": f"run {EPOCHS} --folds 2 --out new --figures",
    "compare --out": f"compare {EPOCHS} --networks conv,conv-deep --out",
    "compare --figures": f"compare {EPOCHS} --networks conv,conv-deep --out new --figures",
    "embed --tensorboard": f"embed {EPOCHS} --out e.safetensors --tensorboard",
}
LONG = "x" * 300


def unwritable(
    outputs: dict[str, str], title: str, path: str, place: str = "", prepare: Any = None
) -> Iterator[Case]:
    """Expect that each output rejects a path, and names it or ``place``."""
    for option, command in outputs.items():
        yield rejected(
            f"{command} '{path}'",
            place or path,
            prepare=prepare or nothing,
            name=f"{option}: {title}",
        )


def nothing() -> None:
    """Prepare nothing."""


def report_with(name: str) -> object:
    """Make a file of the report a folder."""
    return steps(remove(f"reports/{name}"), folder(f"reports/{name}"))


EVERY = FILE_OUTPUTS | FOLDER_OUTPUTS

CASES = [
    *unwritable(EVERY, "below a file", "notes.txt/below", "notes.txt"),
    *unwritable(EVERY, "far below a file", "notes.txt/be/low", "notes.txt"),
    *unwritable(EVERY, "below /proc", "/proc/nowhere/x", "/proc/nowhere"),
    *unwritable(EVERY, "name too long", LONG),
    *unwritable(EVERY, "link to itself", "loop", prepare=link("loop", "loop")),
    *unwritable(EVERY, "below a link to itself", "loop/x", "loop", link("loop", "loop")),
    *unwritable(EVERY, "empty", "", "--|''|path"),
    *unwritable(FILE_OUTPUTS, "a folder", "photos"),
    *unwritable(FILE_OUTPUTS, "a linked folder", "linked", prepare=link("linked", "photos")),
    *unwritable(FILE_OUTPUTS, "the full device", "full", prepare=device("full", "full", 7)),
    *unwritable(FOLDER_OUTPUTS, "a file", "notes.txt"),
    *unwritable(FOLDER_OUTPUTS, "a linked file", "linked", prepare=link("linked", "notes.txt")),
    *unwritable(FOLDER_OUTPUTS, "a device", "null", prepare=device("null", "null", 3)),
    *unwritable(FOLDER_OUTPUTS, "a named pipe", "pipe", prepare=fifo("pipe")),
    # An input is no output.
    error(f"classify --force --out {EMBEDDING}", EMBEDDING),
    error(f"predict photos --out {CLASSIFIER}", CLASSIFIER),
    error("predict photos/ash/0.png --out photos/ash/0.png", "photos/ash/0.png"),
    error("predict photos --out photos/ash/0.png", "photos/ash/0.png"),
    error(f"embed {EPOCHS} --out photos/ash/0.png", "photos/ash/0.png"),
    error(
        "embed --data list.csv --epochs 5000 --out list.csv --force",
        "list.csv",
        prepare=file(
            "list.csv",
            "path,label\n"
            + "".join(
                f"photos/{name}/{i}.png,{name}\n" for name in ("ash", "birch") for i in range(8)
            ),
        ),
    ),
    rejected(f"run {EPOCHS} --embedding x.safetensors --classifier x.safetensors", "x.safetensors"),
    rejected(
        f"run {EPOCHS} --embedding x.safetensors --classifier sub/../x.safetensors",
        "x.safetensors",
        prepare=folder("sub"),
    ),
    rejected(f"run {EPOCHS} --seeds 0,1 --embedding x --classifier x", "x"),
    rejected(
        f"run {EPOCHS} --embedding linked/x.safetensors --classifier x.safetensors",
        "x.safetensors",
        prepare=link("linked", "."),
    ),
    rejected(f"run {EPOCHS} --embedding new --classifier new/c.safetensors --out reports2", "new"),
    rejected(f"run {EPOCHS} --embedding new --classifier c.safetensors --out new", "new"),
    error(f"export --force --out {CLASSIFIER}", CLASSIFIER),
    error("export photos/ash/0.png --force --out photos/ash/0.png", "photos/ash/0.png"),
    rejected("export --out new.onnx --any-size new.onnx", "new.onnx"),
    error("export --out notes.txt", "notes.txt", "--force"),
    error(f"export --classifier {EMBEDDING} --out new.onnx", EMBEDDING, "classifier"),
    error("export photos missing.png --out new.onnx", "missing.png"),
    error("export reports --out new.onnx", "reports"),
    # Reports that cannot be written, or not be made again.
    *(
        error("report", f"reports/{name}", prepare=report_with(name), name=f"{name} is a folder")
        for name in NAMES
    ),
    error(
        f"run {EPOCHS} --out folds --embedding e.safetensors --classifier c.safetensors",
        "folds",
        "--force",
    ),
    error("report --out folds", "folds", "--force"),
    error(f"run {EPOCHS} --folds 2 --out folds", "folds", "--force"),
    error(f"compare {EPOCHS} --networks conv,conv-deep --out folds", "folds", "--force"),
    error(
        f"run {EPOCHS} --out reports",
        "reports",
        "--force",
        prepare=file("reports/compared.csv"),
        name="run over a comparison",
    ),
    error(f"run {EPOCHS} --folds 2 --out reports --figures photos/ash/0.png", "photos/ash/0.png"),
    error(f"run {EPOCHS} --out folds --seeds 0,1", "folds", "--force"),
    works("report --out folds --force", may_write=True, writes=("folds/accuracy.csv",)),
    # Checkpoints of other runs stay.
    error("run --data photos --epochs 1 --dim 9", EMBEDDING, "dim", "--force"),
    error("run --data photos --epochs 5000 --dim 8", EMBEDDING, "epochs", "--force"),
    error(f"run {EPOCHS} --embedding new/e --classifier notes.txt --out new", "notes.txt"),
    error(f"run {EPOCHS} --embedding notes.txt --classifier new/c --out new", "notes.txt"),
    error(
        f"run {EPOCHS} --seeds 0,1 --embedding e --classifier c --out new",
        "e-seed-1",
        prepare=file("e-seed-1", "notes"),
    ),
    error(
        f"run {EPOCHS} --seeds 0,1 --embedding e --classifier c --out new",
        "c-seed-1",
        prepare=folder("c-seed-1"),
        name="run --seeds: a checkpoint is a folder",
    ),
    error(
        f"embed {EPOCHS} --out new.safetensors",
        "new.state",
        prepare=folder("new.state"),
        name="the state is a folder",
    ),
    error(
        f"embed {EPOCHS} --out new.safetensors",
        "new.history.csv",
        prepare=folder("new.history.csv"),
        name="the history is a folder",
    ),
    error(f"embed {EPOCHS} --out pipe", "pipe", prepare=fifo("pipe")),
    # Tolerated.
    works("predict photos --out new/deep/rows.csv", may_write=True, writes=("new/deep/rows.csv",)),
    works("predict photos --out null", prepare=device("null", "null", 3)),
    works("predict photos --out -", prints=("photos/ash/0.png,",)),
    works("predict photos --out notes.txt", writes=("notes.txt",)),
    works(
        "predict photos --out linked.csv",
        may_write=True,
        prepare=link("linked.csv", "rows.csv"),
        name="predict --out: link to a new file",
    ),
    works("predict photos --out '😀.csv'", writes=("😀.csv",)),
    works("report --out new/deep", may_write=True, writes=("new/deep/report.html",)),
    works("report", may_write=True, writes=("reports/report.html",), name="report made again"),
    works("report --figures new --out new", may_write=True, writes=("new/report.html",)),
    works("classify", "finished|", may_write=True, name="the same classifier again"),
    works("embed --data photos --epochs 1 --dim 8", may_write=True, name="the same run again"),
    works(
        "classify --out a/../b.safetensors",
        may_write=True,
        prepare=folder("a"),
        writes=("b.safetensors",),
    ),
    error(
        "predict photos/ash/0.png copy.png --out copy.png",
        "copy.png",
        prepare=copy("photos/ash/1.png", "copy.png"),
    ),
    error("predict photos --out rows.csv/", "rows.csv", prepare=folder("rows.csv")),
    error(
        f"embed {EPOCHS} --out new.safetensors --cache photos/ash/0.png",
        "photos/ash/0.png",
        prepare=image("new/x.png"),
    ),
]
