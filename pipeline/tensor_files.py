"""Save and load files of named tensors with a checked header.

A file is in the safetensors format. Its header (:mod:`pipeline.checkpoint_header`) holds strings:

==================  ================================================================
``format_version``  Version of the file format, an integer.
``kind``            ``embedding``, ``classifier``, ``gallery``, ``vectors`` or ``state``.
``digest``          SHA-256 of the tensors, from :func:`stages.network.digest.state_digest`.
``record``          JSON: settings, data source, training history and versions.
``record_digest``   SHA-256 of the record's bytes in UTF-8.
==================  ================================================================

safetensors files contain no code, so a file from an untrusted source is safe to load. Digests find
damage; :mod:`pipeline.record` finds values that cannot work, also in an edited file.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.checkpoint_header import COMMANDS, Header, advice, make_header, parse_header
from pipeline.files import write_atomically
from stages.errors import CheckpointError, PipelineError
from stages.network.digest import TensorBytes, state_digest, streamed_digest

MAX_HEADER_BYTES = 100_000_000  # safetensors opens no file with a longer header
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_tensors(
    path: Path, kind: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> str:
    """Save named tensors and a record.

    Args:
        path: File to write.
        kind: Kind of checkpoint, stored in the header.
        tensors: Tensors by name, on any device and in any memory layout.
        record: JSON-serialisable record.

    Returns:
        Digest of the tensors.

    Raises:
        PipelineError: If the file cannot be written.
        MemoryError: If there is too little memory to write the file.
    """
    # safetensors rejects channels-last tensors and tensors that share memory.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    digest = state_digest(copies)
    # safetensors copies the tensors three times, and aborts with a Rust trace if memory runs out.
    np.empty(3 * sum(tensor.nbytes for tensor in copies.values()), np.uint8)
    write_atomically(path, save(copies, make_header(kind, digest, record)))
    return digest


def write_tensors(
    file: BinaryIO, kind: str, tensors: Mapping[str, TensorBytes], record: Mapping[str, Any]
) -> str:
    """Write named tensors and a record like :func:`save_tensors`, but never a whole tensor at once.

    Args:
        file: File to write to.
        kind: Kind of checkpoint, stored in the header.
        tensors: Tensors by name. Their values are read twice.
        record: JSON-serialisable record.

    Returns:
        Digest of the tensors.

    Raises:
        PipelineError: If the header is longer than safetensors can read.
        OSError: If the file cannot be written.
    """
    digest = streamed_digest(tensors)
    entries: dict[str, Any] = {"__metadata__": make_header(kind, digest, record)}
    # The largest values come first, so that each tensor begins at a multiple of their size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (begin, end),
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise PipelineError(
            f"the header has {len(header):,} bytes, more than the {MAX_HEADER_BYTES:,} that "
            "safetensors can read; use fewer or shorter names"
        )
    file.write(len(header).to_bytes(8, "little") + header)
    for name in names:
        for block in tensors[name].blocks():
            file.write(block)
    return digest


def read_header(path: Path) -> Header:
    """Read and check the header of a checkpoint. Its tensors are not read.

    Args:
        path: Checkpoint file of any kind.

    Returns:
        The header.

    Raises:
        CheckpointError: If the file is missing, damaged, not a checkpoint, or of another format.
    """
    with open_tensors(path) as file:
        return parse_header(path, file.metadata() or {})


def load_tensors(path: Path, kind: str) -> tuple[Header, dict[str, Tensor]]:
    """Load the header and all tensors, and compare both with their digests.

    Args:
        path: Checkpoint file.
        kind: Expected kind of checkpoint.

    Returns:
        The header, and the tensors by name, on the CPU.

    Raises:
        CheckpointError: If the file is missing, damaged, of another kind or of another format, or
            a tensor has values that are not finite.
    """
    with open_tensors(path, kind) as file:
        header = parse_header(path, file.metadata() or {})
        if header.kind != kind:
            raise CheckpointError(
                f"{path}: holds a checkpoint of kind {header.kind}; use one of kind {kind}"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if state_digest(tensors) != header.digest:
        raise CheckpointError(
            f"{path}: damaged: the tensors do not match the digest in the header; "
            f"{advice(path, kind)}"
        )
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{path}: {name} contains values that are not finite; {advice(path, kind)}"
            )
    return header, tensors


@contextmanager
def open_tensors(path: Path, kind: str = "") -> Iterator[Any]:
    """Open a safetensors file; its tensors are read only when they are asked for."""
    if not os.path.isfile(path):  # unlike Path.is_file, this raises no PermissionError
        found, remedy = "not a file", "use another path"
        if not os.path.exists(path):
            found = "no such file"
            if kind in COMMANDS:
                remedy = f"run `{COMMANDS[kind]} --out {path}` to create it, or {remedy}"
        raise CheckpointError(f"{path}: {found}; {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: damaged: not a complete safetensors file ({error}); {advice(path, kind)}"
        ) from error
