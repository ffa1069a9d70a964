"""`pipeline search`: files of vectors that are damaged, edited, of another kind or embedding."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from hostile.case import Case, error, rejected, some_unreadable, usage, works
from hostile.prepare import (
    CLASSIFIER,
    EMBEDDING,
    Step,
    fifo,
    file,
    flipped,
    folder,
    header,
    steps,
    truncated,
)
from vector_table_files import ENDINGS, npy, replace_member, write_table

from pipeline.checkpoint import load_classifier
from pipeline.tensor_files import save_tensors

GALLERY = "photos.safetensors"
SEARCH = f"search photos/ash/0.png --within {GALLERY}"
OTHER = "checkpoints/other.safetensors"


def gallery(change: Callable[[dict, dict], object] = lambda values, record: None) -> Step:
    """Write the classifier's training images as a gallery, and as the other files of vectors.

    ``change`` edits its tensors and its record before.
    """

    def write() -> None:
        classifier = load_classifier(Path(CLASSIFIER))
        embedding = classifier.network.state_dict()
        values = {f"embedding.{name}": value for name, value in embedding.items()}
        vectors, labels = classifier.gallery.vectors.clone(), classifier.gallery.labels
        values |= {"vectors": vectors, "labels": labels}
        names = ("network", "read", "classes", "embedding_digest", "versions")
        record = {name: classifier.record[name] for name in names}
        record["ids"] = list(classifier.gallery_ids)
        change(values, record)
        save_tensors(Path(GALLERY), "gallery", values, record)
        texts = [classifier.classes[label] for label in labels.tolist()]
        for ending in ENDINGS:
            path = Path(f"photos{ending}")
            write_table(path, vectors, classifier.gallery_ids, texts, record["embedding_digest"])

    return write


def table(ending: str, *more: str) -> str:
    """Return the command that searches a file without an embedding network."""
    embedding = more or ("--embedding", EMBEDDING)
    return " ".join(["search photos/ash/0.png --within", f"photos{ending}", *embedding])


def edited_npz(name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> Step:
    """Write the files of vectors, and replace one array of photos.npz."""
    return steps(gallery(), lambda: replace_member(Path("photos.npz"), name, content, method))


def npy_of_texts(characters: int, values: bytes) -> bytes:
    header = f"{{'descr': '<U{characters}', 'fortran_order': False, 'shape': ()}}"
    return npy(header, values)


def damaged_lzma() -> None:
    """Compress photos.npz by LZMA, and overwrite a part of the vectors."""
    replace_member(Path("photos.npz"), "", b"", zipfile.ZIP_LZMA)
    content = bytearray(Path("photos.npz").read_bytes())
    start = zipfile.ZipFile("photos.npz").getinfo("vectors.npy").header_offset + 300
    content[start : start + 200] = bytes([255]) * 200
    Path("photos.npz").write_bytes(content)


def with_nan(values: dict[str, torch.Tensor], _: dict) -> None:
    values["vectors"][1, 0] = torch.nan


def without_vectors(values: dict[str, torch.Tensor], _: dict) -> None:
    del values["vectors"]


def with_formulas(_: dict, record: dict) -> None:
    record["ids"][:3] = ["=1+1", "new\nline", "\x1b[2J"]


CASES: list[Case] = [
    works(f"search photos --within {CLASSIFIER}", prints=("photos/ash/0.png,1,",)),
    works(SEARCH, prints=("photos/ash/0.png,10,",), prepare=gallery()),
    works(f"{SEARCH} --k 999999999999", prints=(",1,",), prepare=gallery()),
    works(f"{SEARCH} --json", prints=('"rank": 1',), prepare=gallery()),
    works(f"{SEARCH} --out rows.csv", writes=("rows.csv",), may_write=True, prepare=gallery()),
    works(f"{SEARCH} --k 30", prints=("'=1+1,",), prepare=gallery(with_formulas)),
    *(works(table(ending), prints=(",1,",), prepare=gallery()) for ending in ENDINGS),
    *(
        error(table(ending, "--quiet"), f"photos{ending}", "--embedding", prepare=gallery())
        for ending in ENDINGS
    ),
    *(
        error(table(ending, "--embedding", OTHER), f"photos{ending}", OTHER, prepare=gallery())
        for ending in (*ENDINGS, ".safetensors")
    ),
    *(
        error(
            table(ending),
            f"photos{ending}",
            prepare=steps(gallery(), truncated(f"photos{ending}")),
            name=f"search: {ending} is truncated",
        )
        for ending in (*ENDINGS, ".safetensors")
    ),
    *(
        error(table(ending), f"photos{ending}", prepare=gallery(with_nan), name=f"{ending}: NaN")
        for ending in (*ENDINGS, ".safetensors")
    ),
    *(
        error(table(ending), f"photos{ending}", "no such file", name=f"{ending}: missing")
        for ending in ENDINGS
    ),
    *(
        error(
            table(ending),
            f"photos{ending}",
            prepare=fifo(f"photos{ending}"),
            name=f"{ending}: pipe",
        )
        for ending in ENDINGS
    ),
    *(
        error(
            table(".npz"),
            "photos.npz",
            "header of vectors",
            prepare=edited_npz("vectors.npy", npy(text)),
            name=f"search: an array with the header {text[:8]!r}",
        )
        for text in ("{5L", "  x\n y\n", "{[1]: 2}", "-" * 9000 + "1")
    ),
    error(
        table(".npz"),
        "photos.npz",
        prepare=edited_npz("embedding_digest.npy", npy_of_texts(1, b"\xff" * 4)),
        name="search: text that is not Unicode",
    ),
    error(
        table(".npz"),
        "photos.npz",
        "characters",
        prepare=edited_npz(
            "embedding_digest.npy", npy_of_texts(10**7, bytes(4 * 10**7)), zipfile.ZIP_DEFLATED
        ),
        name="search: a text of 40 MB",
    ),
    error(
        table(".npz"),
        "photos.npz",
        prepare=steps(gallery(), damaged_lzma),
        name="search: damaged LZMA",
    ),
    error(SEARCH, GALLERY, "pipeline vectors", name="search: no gallery"),
    error(SEARCH, GALLERY, prepare=folder(GALLERY), name="search: a folder"),
    error(SEARCH, GALLERY, prepare=file(GALLERY, "text"), name="search: a text file"),
    error(SEARCH, GALLERY, prepare=steps(gallery(), flipped(GALLERY, 0.9)), name="a wrong bit"),
    error(SEARCH, GALLERY, prepare=gallery(without_vectors), name="gallery without vectors"),
    error(
        SEARCH, GALLERY, prepare=steps(gallery(), header(GALLERY, digest="0" * 64)), name="digest"
    ),
    error(f"search photos --within {EMBEDDING}", EMBEDDING, "embedding", "pipeline vectors"),
    error("search photos --within notes.txt", "notes.txt"),
    error(f"{SEARCH} --k 0", "--k", prepare=gallery()),
    error(f"{SEARCH} --k -1", "--k", prepare=gallery()),
    usage(f"{SEARCH} --k many", "--k", prepare=gallery()),
    usage(f"search --within {GALLERY}", "QUERY"),
    usage("search photos", "--within"),
    error(f"{SEARCH} --out {GALLERY}", GALLERY, prepare=gallery()),
    error(f"{SEARCH} --out photos/ash/0.png", "photos/ash/0.png", prepare=gallery()),
    rejected(f"{SEARCH} --out photos", "photos", prepare=gallery()),
    some_unreadable(
        "search bad.png photos/ash/0.png --within photos.safetensors --k 1",
        "bad.png",
        prints=("\nbad.png,,,,\n", "\nphotos/ash/0.png,1,"),
        prepare=steps(gallery(), file("bad.png")),
    ),
    error(
        "search empty --within photos.safetensors",
        "empty",
        prepare=steps(gallery(), folder("empty")),
    ),
]
