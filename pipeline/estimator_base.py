"""Base class of the scikit-learn estimators: the commands train, and a checkpoint is the state.

torch is imported by the first call of ``fit``, ``transform`` or ``predict``, not with this module.
"""

import os
import threading
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from pipeline.estimator_inputs import (
    Images,
    Labels,
    check_images,
    check_labels,
    pipeline_errors_as_value_errors,
)
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.context import RunContext
    from pipeline.data.dataset import Dataset
    from pipeline.data.entries import Entry, SourceFile
    from pipeline.image_vectors import Embedder

# The commands change settings of the whole process, so one thread at a time runs them.
_RUNNING = threading.RLock()

Settings = TypeVar("Settings", ReadSettings, EmbedSettings, ClassifySettings)


class ImageEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Estimator of images that is fitted by the commands.

    Subclasses have the fields of the settings as parameters.

    Attributes:
        checkpoint_: Content of the checkpoint file that the command has written.
        classes_: Distinct labels, sorted.
    """

    checkpoint_: bytes
    classes_: npt.NDArray[Any]
    cache: str | os.PathLike[str] | None
    _embedder: "Embedder | None" = None  # loaded from `checkpoint_`

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the checkpoint file, for the commands.

        Args:
            path: File to write.
            force: Replace an existing file.

        Returns:
            The path.

        Raises:
            FileExistsError: If the file exists and ``force`` is False.
            ValueError: If the file cannot be written.
        """
        check_is_fitted(self)
        from pipeline.files import check_output_file, write_atomically

        target = Path(path)
        with pipeline_errors_as_value_errors():
            check_output_file(target)
            if target.exists() and not force:
                raise FileExistsError(f"{target}: exists; use another path, or force=True")
            write_atomically(target, self.checkpoint_)
        return target

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True  # paths
        tags.input_tags.positive_only = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_embedder", None)  # the checkpoint's bytes are enough
        return state

    def _parameters(self, names: set[str]) -> dict[str, Any]:
        """Return parameters by name. In a grid of numbers they may be numpy's scalars."""
        values = {}
        for name, value in self.get_params(deep=False).items():
            if name in names:
                values[name] = value.item() if isinstance(value, np.generic) else value
        return values

    def _settings(self, kind: type[Settings], **fixed: Any) -> Settings:
        """Return settings whose fields are parameters of this estimator."""
        return kind(**self._parameters({field.name for field in fields(kind)}), **fixed)

    def _head_settings(self) -> ClassifySettings | None:
        """Return the settings of stage two, or None to train stage one only."""
        return None

    def _context(self, cache: Path | None = None) -> "RunContext":
        """Return the device and output options, with a folder for decoded images."""
        from pipeline.context import RunContext
        from pipeline.device import PRECISIONS
        from stages.errors import SettingsError

        values = self._parameters({"device", "precision", "threads", "quiet"})
        threads, precision = values["threads"], values["precision"]
        if threads is not None and type(threads) is not int:
            raise SettingsError("threads", repr(threads), "use a whole number or None")
        if precision not in PRECISIONS:
            raise SettingsError("precision", precision, f"use {', '.join(PRECISIONS)}")
        return RunContext(**values, cache=Path(self.cache) if self.cache else cache)

    def _train(self, X: Any, y: Any) -> "Embedder":
        """Train with the commands in a temporary folder; keep and return the checkpoint."""
        images = check_images(X)
        labels = check_labels(y, images)
        with (
            _RUNNING,
            pipeline_errors_as_value_errors(),
            TemporaryDirectory(prefix="embedding-", ignore_cleanup_errors=True) as folder,
        ):
            path = self._run_commands(images, labels, Path(folder))
            self._embedder = embedder = _load_checkpoint(path)
            self.checkpoint_ = path.read_bytes()
        self.classes_ = labels.classes
        return embedder

    def _run_commands(self, images: Images, labels: Labels, folder: Path) -> Path:
        """Train one or both stages and return the path of the last checkpoint."""
        from pipeline.commands.classify import classify
        from pipeline.commands.embed import embed
        from pipeline.commands.inputs import EmbedInputs, say_network_notes
        from pipeline.network_choice import choose_network
        from pipeline.weights import load_weights, with_pretrained_size

        settings, head_settings = self._settings(EmbedSettings), self._head_settings()
        context = self._context(folder / "cache")
        read = self._settings(ReadSettings, test=0.0)
        entries = _entries(images, labels)
        given = _source_files(images, entries) if isinstance(images, list) else images
        read, settings, reason = choose_network(given, read, settings, context)
        read = with_pretrained_size(read, settings)
        pretrained = load_weights(settings)
        data = _read_dataset(given, entries, read, context)
        say_network_notes(settings, data, context)
        inputs = EmbedInputs(data, pretrained, warnings=(), network_choice=reason)
        embedding = folder / "embedding.safetensors"
        try:
            embed(inputs, read, settings, out=embedding, context=context)
        except KeyboardInterrupt:  # without its message: nothing can be resumed here
            raise KeyboardInterrupt from None
        if head_settings is None:
            return embedding
        classifier = folder / "classifier.safetensors"
        return classify(embedding, head_settings, out=classifier, context=context, source=data)

    def _embed(self, X: Any) -> "tuple[Tensor, Embedder]":
        """Return the vectors of images, float32 (N, D), and the checkpoint that computes them."""
        check_is_fitted(self)
        images = check_images(X)
        from pipeline.device import restore_torch_settings
        from pipeline.image_vectors import embed_arrays
        from stages.network.embedding_net import to_device

        with _RUNNING, pipeline_errors_as_value_errors(), restore_torch_settings():
            device = self._context().start()
            if self._embedder is None:
                self._embedder = _checkpoint_from_bytes(self.checkpoint_)
            embedder = self._embedder
            to_device(embedder.network, device)
            if isinstance(images, list):
                return _embed_all_files(images, embedder, device), embedder
            return embed_arrays(images, embedder, device=device), embedder


def _entries(images: Images, labels: Labels) -> "list[Entry]":
    """Return the id and label of each image."""
    from pipeline.data.entries import Entry

    ids = images if isinstance(images, list) else [f"X[{row}]" for row in range(len(images))]
    names = [labels.names[row] for row in labels.rows]
    return [Entry(name, label, "", "") for name, label in zip(ids, names, strict=True)]


def _source_files(paths: list[str], entries: "list[Entry]") -> "list[SourceFile]":
    from pipeline.data.decoding_pool import file_state
    from pipeline.data.entries import SourceFile

    files = []
    for path, entry in zip(paths, entries, strict=True):
        full = os.path.realpath(path)
        files.append(SourceFile(full, file_state(full), entry))
    return files


def _read_dataset(
    images: "npt.NDArray[np.uint8] | list[SourceFile]",
    entries: "list[Entry]",
    read: ReadSettings,
    context: "RunContext",
) -> "Dataset":
    """Read images into a data set without a test split."""
    from pipeline.data.array_images import source_from_arrays
    from pipeline.data.dataset import describe_skipped
    from pipeline.data.readable_images import source_from_files
    from pipeline.data.splits import split_source
    from stages.errors import DataError

    if isinstance(images, list):
        assert context.cache is not None  # the temporary folder or the user's choice
        source = source_from_files("X", images, [], read, context.cache, context.show)
        if source.skipped:
            raise DataError(f"X: {describe_skipped(source)}; remove or repair these files")
    else:
        source = source_from_arrays("X", images, entries, read)
    data = split_source(source)
    for note in data.notes:
        context.say(f"note: {note}")
    return data


def _embed_all_files(paths: list[str], embedder: "Embedder", device: "torch.device") -> "Tensor":
    """Return a vector per file, float32 (N, D)."""
    import torch

    from pipeline.image_vectors import embed_files
    from stages.errors import DataError

    vectors = []
    for block in embed_files(paths, embedder, device=device):
        if block.skipped:
            path, reason = block.skipped[0]
            raise DataError(f"X: {path}: {reason}; remove or repair this file")
        vectors.append(block.vectors)
    return torch.cat(vectors)


def _checkpoint_from_bytes(content: bytes) -> "Embedder":
    with TemporaryDirectory(prefix="embedding-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "checkpoint.safetensors"
        path.write_bytes(content)
        return _load_checkpoint(path)


def _load_checkpoint(path: Path) -> "Embedder":
    from pipeline.checkpoint import load_classifier, load_embedding
    from pipeline.tensor_files import read_header

    return load_classifier(path) if read_header(path).kind == "classifier" else load_embedding(path)
