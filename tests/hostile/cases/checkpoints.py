"""Checkpoint files: missing, damaged, of another kind or format, or with other tensors."""

import struct

import torch
from hostile.case import Case, error, works
from hostile.prepare import (
    CLASSIFIER,
    EMBEDDING,
    copy,
    device,
    fifo,
    file,
    flipped,
    folder,
    header,
    link,
    record,
    remove,
    steps,
    tensors,
    truncated,
)

VECTORS = "checkpoints/embedding.vectors"
COMMANDS = {
    "predict photos": CLASSIFIER,
    "classify --force": EMBEDDING,
    "report --out new": CLASSIFIER,
    "report --out new --quiet": EMBEDDING,
}


def damaged(title: str, prepare: object, *mentions: str, kind: str = "classifier") -> Case:
    """Expect that the command that reads a checkpoint rejects it."""
    command, path = ("predict photos", CLASSIFIER)
    if kind == "embedding":
        command, path = ("classify --force", EMBEDDING)
    return error(command, path, *mentions, prepare=prepare, name=f"{kind}: {title}")


def spoiled(title: str, name: str, change: object, *mentions: str) -> Case:
    """Expect that `predict` rejects a tensor, even where the digest is right."""

    def edit(values: dict[str, torch.Tensor]) -> None:
        new = change(values[name])
        if new is None:
            del values[name]
        else:
            values[name] = new

    prepare = tensors(CLASSIFIER, "classifier", edit)
    return damaged(f"{name} {title}", prepare, *mentions)


def safetensors_header(text: bytes, length: int | None = None) -> bytes:
    """Return the start of a safetensors file with any header."""
    return struct.pack("<Q", len(text) if length is None else length) + text


CASES = [
    # For each command that reads checkpoints.
    *(
        error(command, path, prepare=remove(path), name=f"{command}: no {path}")
        for command, path in COMMANDS.items()
    ),
    *(
        error(command, path, prepare=file(path), name=f"{command}: {path} is empty")
        for command, path in COMMANDS.items()
    ),
    *(
        error(command, path, prepare=truncated(path), name=f"{command}: {path} is truncated")
        for command, path in COMMANDS.items()
    ),
    *(
        error(command, path, prepare=flipped(path, 0.9), name=f"{command}: {path} has a wrong bit")
        for command, path in COMMANDS.items()
    ),
    *(
        error(command, path, prepare=steps(remove(path), folder(path)), name=f"{command}: a folder")
        for command, path in COMMANDS.items()
    ),
    # Other files.
    error("classify --embedding nowhere.safetensors", "nowhere.safetensors", "pipeline embed"),
    error("predict photos --classifier nowhere.safetensors", "nowhere.safetensors"),
    error("predict photos --classifier notes.txt", "notes.txt"),
    error("predict photos --classifier photos", "photos"),
    error("predict photos --classifier photos/ash/0.png", "photos/ash/0.png"),
    error(f"predict photos --classifier {EMBEDDING}", EMBEDDING, "embedding", "classifier"),
    error(f"predict photos --classifier {VECTORS}", VECTORS, "vectors", "classifier"),
    error("predict photos --classifier checkpoints/embedding.state", "embedding.state"),
    error(f"predict photos --classifier {'x' * 300}", "xxx"),
    error("predict photos --classifier notes.txt/x", "notes.txt/x"),
    error("predict photos --classifier pipe", "pipe", prepare=fifo("pipe")),
    error("predict photos --classifier zero", "zero", prepare=device("zero", "zero", 5)),
    error("predict photos --classifier loop", "loop", prepare=link("loop", "loop")),
    error(f"classify --force --embedding {CLASSIFIER} --out new", CLASSIFIER, "classifier"),
    error(f"report --out new --classifier {EMBEDDING}", EMBEDDING, "classifier"),
    error(f"report --out new --embedding {CLASSIFIER}", CLASSIFIER, "embedding"),
    error(
        "report --out new --embedding checkpoints/other.safetensors",
        CLASSIFIER,
        "other.safetensors",
        "pipeline classify",
    ),
    error("embed --data photos --dim 9 --epochs 5000", EMBEDDING, "dim", "--force"),
    error("embed --data photos --dim 8 --epochs 5000", EMBEDDING, "epochs", "--force"),
    error("embed --data digits --dim 8 --epochs 5000", EMBEDDING, "photos", "--force"),
    error("classify --dropout 0.1", CLASSIFIER, "dropout", "--force"),
    error(f"classify --out {EMBEDDING}", EMBEDDING),
    error("embed --data photos --epochs 5000 --out notes.txt", "notes.txt"),
    error("classify --out notes.txt", "notes.txt"),
    # The header.
    *(
        damaged(f"first byte wrong, {kind}", flipped(path, 0), kind=kind)
        for kind, path in (("classifier", CLASSIFIER), ("embedding", EMBEDDING))
    ),
    damaged("wrong bit in the header", flipped(CLASSIFIER, 0.0002)),
    damaged("wrong bit in the record", flipped(CLASSIFIER, 0.001)),
    damaged("header of 2^63 bytes", file(CLASSIFIER, safetensors_header(b"{}", 2**63))),
    damaged("header beyond the end", file(CLASSIFIER, safetensors_header(b"{}", 9999))),
    damaged("header without content", file(CLASSIFIER, safetensors_header(b"{}"))),
    damaged("header of text", file(CLASSIFIER, safetensors_header(b"hello"))),
    damaged(
        "tensor of 2^62 bytes",
        file(
            CLASSIFIER,
            safetensors_header(
                b'{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4]}}'
            )
            + b"1234",
        ),
    ),
    damaged("deeply nested header", file(CLASSIFIER, safetensors_header(b"[" * 100_000))),
    damaged("pickle", file(CLASSIFIER, b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.")),
    damaged("zip", file(CLASSIFIER, b"PK\x03\x04" + bytes(99))),
    damaged("format 1", header(CLASSIFIER, format_version="1"), "format 1"),
    damaged("format 99", header(CLASSIFIER, format_version="99"), "99", "newer"),
    damaged("format -1", header(CLASSIFIER, format_version="-1")),
    damaged("format in words", header(CLASSIFIER, format_version="two")),
    damaged("format ²", header(CLASSIFIER, format_version="²")),
    damaged("format of 5,000 digits", header(CLASSIFIER, format_version="9" * 5000)),
    damaged("no format", header(CLASSIFIER, format_version=None)),
    damaged("no kind", header(CLASSIFIER, kind=None)),
    damaged("another kind", header(CLASSIFIER, kind="embedding")),
    damaged("unknown kind", header(CLASSIFIER, kind="\x1b[2J")),
    damaged("no digest", header(CLASSIFIER, digest=None)),
    damaged("another digest", header(CLASSIFIER, digest="0" * 64), "digest"),
    damaged("no record", header(CLASSIFIER, record=None)),
    damaged("another record digest", header(CLASSIFIER, record_digest="0" * 64), "record"),
    damaged("no record digest", header(CLASSIFIER, record_digest=None)),
    *(
        damaged(f"record {text[:9]}", header(CLASSIFIER, record=text))
        for text in ("", "{", "[]", "null", "5", '"text"', "[" * 100_000, "9" * 5000, '{"k": 5}')
    ),
    damaged("format 1", header(EMBEDDING, format_version="1"), "format 1", kind="embedding"),
    damaged("no record", header(EMBEDDING, record=None), kind="embedding"),
    damaged("record {}", header(EMBEDDING, record="{}"), kind="embedding"),
    # Tensors.
    spoiled("missing", "head.weight", lambda _: None, "head.weight"),
    spoiled("missing", "gallery.vectors", lambda _: None, "gallery.vectors"),
    spoiled("missing", "gallery.labels", lambda _: None, "gallery.labels"),
    spoiled("of another shape", "head.weight", lambda old: old[:, :-1].clone()),
    spoiled("of another type", "gallery.vectors", lambda old: old.half(), "vectors"),
    spoiled("not finite", "head.weight", lambda old: old * torch.nan, "head.weight|finite"),
    spoiled("not finite", "gallery.vectors", lambda old: old * torch.inf, "vectors"),
    spoiled("not of unit length", "gallery.vectors", lambda old: old * 2, "vectors"),
    spoiled(
        "of another dimension",
        "gallery.vectors",
        lambda old: torch.nn.functional.normalize(torch.ones(len(old), 5)),
        "vectors",
    ),
    spoiled("out of range", "gallery.labels", lambda old: old + 7, "labels"),
    spoiled("negative", "gallery.labels", lambda old: old - 7, "labels"),
    spoiled("one too few", "gallery.labels", lambda old: old[:-1].clone(), "labels"),
    spoiled("empty", "gallery.labels", lambda old: old[:0].clone(), "labels"),
    damaged(
        "an unknown tensor",
        tensors(CLASSIFIER, "classifier", lambda values: values.update(extra=torch.ones(1))),
        "extra",
    ),
    damaged("no tensors", tensors(CLASSIFIER, "classifier", lambda values: values.clear())),
    damaged(
        "no tensors",
        tensors(EMBEDDING, "embedding", lambda values: values.clear()),
        kind="embedding",
    ),
    # Saved vectors are made again.
    works(
        "classify --force",
        prepare=truncated(VECTORS),
        may_write=True,
        writes=(VECTORS,),
        name="vectors are truncated",
    ),
    works(
        "classify --force",
        prepare=file(VECTORS, "text"),
        may_write=True,
        writes=(VECTORS,),
        name="vectors are text",
    ),
    works(
        "classify --force",
        prepare=record(VECTORS, {"fingerprint": ...}),
        may_write=True,
        writes=(VECTORS,),
        name="vectors without a fingerprint",
    ),
    works(
        "classify --force",
        prepare=record(VECTORS, {"embedding_digest": ...}),
        may_write=True,
        writes=(VECTORS,),
        name="vectors without a digest of the embedding",
    ),
    works(
        "classify --force",
        prepare=tensors(VECTORS, "vectors", lambda values: values.pop("val.labels")),
        may_write=True,
        writes=(VECTORS,),
        name="vectors without labels",
    ),
    works(
        "classify --force",
        prepare=header(VECTORS, format_version="1"),
        may_write=True,
        writes=(VECTORS,),
        name="vectors of format 1",
    ),
    works(
        "classify --force",
        prepare=copy(CLASSIFIER, VECTORS),
        may_write=True,
        writes=(VECTORS,),
        name="vectors are a classifier",
    ),
]
