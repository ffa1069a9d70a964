"""Translate a module into the bytes of an ONNX file."""

import importlib
import importlib.metadata
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from stages.checkpoints import ClassifierCheckpoint
from stages.errors import PipelineError

MISSING = (
    "needs the packages onnx, onnxscript and onnxruntime; "
    "run pip install onnx onnxscript onnxruntime"
)
MAX_BYTES = 2**31 - 1  # limit of protobuf, the encoding of ONNX files


def require_onnx() -> None:
    """Check that the optional packages are installed.

    Raises:
        PipelineError: If one of them cannot be imported.
    """
    try:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(name)
    except ImportError as error:
        raise PipelineError(f"export: {MISSING}") from error


def to_onnx(
    graph: nn.Module,
    example: Tensor,
    *,
    dynamic: Mapping[int, str],
    names: tuple[str, Sequence[str]],
    metadata: Mapping[str, str],
) -> bytes:
    """Translate a module with one input into an ONNX file, weights included.

    Args:
        graph: Module in evaluation mode, on the CPU.
        example: Example of the input.
        dynamic: Dimensions of the input that may have any size, with their names.
        names: Name of the input, and names of the outputs.
        metadata: Entries of the file's metadata.

    Returns:
        Content of the file.

    Raises:
        PipelineError: If the module has operations without a translation, or if the file would be
            larger than 2 GB.
    """
    tensors = [*graph.parameters(), *graph.buffers()]
    _check_size(sum(tensor.nbytes for tensor in tensors))
    shapes = {index: torch.export.Dim(name, min=1) for index, name in dynamic.items()}
    try:
        with torch.no_grad(), _silence():
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=[names[0]],
                output_names=list(names[1]),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise PipelineError(
            f"the network cannot be translated into ONNX ({_reason(error)}); use another network"
        ) from error
    assert program is not None  # it is None for the older exporter only
    model = program.model_proto
    _remove_traces(model.graph)
    del model.metadata_props[:]
    for name, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value
    _check_size(model.ByteSize())
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def make_metadata(classifier: ClassifierCheckpoint) -> dict[str, str]:
    """Return the metadata of an exported classifier.

    Args:
        classifier: The classifier.

    Returns:
        Texts by name. ``class_names`` and ``record`` are JSON.
    """
    read = classifier.record["read"]
    return {
        "class_names": json.dumps(classifier.classes),
        "temperature": repr(classifier.temperature),
        "calibrated": json.dumps(classifier.calibrated),
        "k": str(classifier.k),
        "size": str(read["size"]),
        "channels": str(read["channels"]),
        "resize": read["resize"],
        "jpeg": read["jpeg"],
        "embedding_digest": classifier.embedding_digest,
        "digest": classifier.digest,
        "record": json.dumps(classifier.record),
        "program": f"embedding-pipeline {_program_version()}",
    }


def _program_version() -> str:
    try:
        return importlib.metadata.version("embedding-pipeline")
    except importlib.metadata.PackageNotFoundError:  # run from a folder
        return "(not installed)"


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise PipelineError(
            f"the ONNX file would have {size / 1e9:.1f} GB, more than its format allows (2 GB); "
            "use a smaller network, fewer training images or a smaller --dim"
        )


@contextmanager
def _silence() -> Iterator[None]:
    """Hide the exporter's warnings, messages and printed graphs, which users cannot act on."""
    level, printed = logging.root.manager.disable, io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(printed), redirect_stderr(printed):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)  # several packages log, some under changing names
        try:
            yield
        finally:
            logging.disable(level)


def _remove_traces(graph: Any) -> None:
    """Remove Python stack traces, with paths of this machine, that the exporter records."""
    for part in (graph.node, graph.value_info, graph.input, graph.output, graph.initializer):
        for entry in part:
            del entry.metadata_props[:]
            entry.doc_string = ""
    del graph.metadata_props[:]


def _reason(error: BaseException) -> str:
    """Return the first line of the innermost cause."""
    while error.__cause__:
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
