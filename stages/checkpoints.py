"""The results of the two training stages, as loaded from their files."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from stages.records import Embeddings


@dataclass(frozen=True, eq=False)
class EmbeddingCheckpoint:
    """Result of stage one.

    Attributes:
        network: The trained embedding network.
        classes: Names of the training classes.
        record: JSON-compatible description of the run: ``network`` (how to build it),
            ``classes``, ``settings``, ``read``, ``source``, ``fingerprint``, ``history``.
        digest: Digest of the network's weights and buffers, from
            :func:`stages.network.digest.state_digest`.
    """

    network: nn.Module
    classes: tuple[str, ...]
    record: dict[str, Any]
    digest: str


@dataclass(frozen=True, eq=False)
class ClassifierCheckpoint:
    """Result of stage two.

    Attributes:
        network: The frozen embedding network.
        head: The trained classifier head.
        gallery: Embeddings of the training split, searched by kNN.
        gallery_ids: Ids of the gallery's images.
        validation: Embeddings of the validation images, or None if there are none.
        validation_distances: Distance of each validation image to the nearest gallery image,
            float32, shape (V,) for V validation images.
        enrolled_distances: Distance of enrolled images of new classes to the nearest other gallery
            image, float32, shape (E,). Empty if none is enrolled.
        classes: Class names.
        record: JSON-compatible description of the run.
        embedding_digest: Digest of the embedding network that the head was trained on.
        digest: Digest of all tensors of the checkpoint.
        temperature: Divisor of the head's log-probabilities before the softmax.
        calibrated: True if the temperature was fitted; otherwise it is 1.
        k: Number of neighbours of kNN, chosen on validation.
    """

    network: nn.Module
    head: nn.Module
    gallery: Embeddings
    gallery_ids: tuple[str, ...]
    validation: Embeddings | None
    validation_distances: Tensor
    enrolled_distances: Tensor
    classes: tuple[str, ...]
    record: dict[str, Any]
    embedding_digest: str
    digest: str
    temperature: float
    calibrated: bool
    k: int

    @property
    def new_classes(self) -> tuple[int, ...]:
        """Return the indices of the classes that were added by enrolment."""
        names = {name for item in self.record.get("enrolled", ()) for name in item["new_classes"]}
        return tuple(label for label, name in enumerate(self.classes) if name in names)
