"""A classifier as one module, from pixels to predictions, in operations that ONNX has."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.checkpoints import ClassifierCheckpoint
from stages.distance import SQUARED_RESOLUTION
from stages.network.square_graph import SquareGraph

# Names of the outputs of `ClassifierGraph`, in order.
OUTPUTS = ("vector", "log_probabilities", "nearest_distance", "typicality")


class ClassifierGraph(nn.Module):
    """The embedding network, the head, the nearest training image and typicality in one module.

    It computes what :func:`stages.network.inference.embed_images`,
    :func:`stages.network.head.probabilities`, :func:`stages.evaluation.knn.nearest_distances` and
    :func:`stages.evaluation.typicality.classifier_typicality` compute, without data-dependent
    control flow.

    Args:
        classifier: Classifier on the CPU. Its tensors are shared, not copied.
    """

    gallery: Tensor
    squared_lengths: Tensor
    validation: Tensor
    enrolled: Tensor
    of_new_class: Tensor

    def __init__(self, classifier: ClassifierCheckpoint):
        super().__init__()
        self.network, self.head = classifier.network, classifier.head
        self.temperature = classifier.temperature
        gallery = classifier.gallery.vectors
        self.register_buffer("gallery", gallery)
        self.register_buffer("squared_lengths", gallery.double().square().sum(1))
        self.register_buffer("validation", classifier.validation_distances)
        self.register_buffer("enrolled", classifier.enrolled_distances)
        self.has_new_classes = len(classifier.new_classes) > 0
        new_classes = torch.tensor(classifier.new_classes, dtype=torch.int64)
        self.register_buffer("of_new_class", torch.isin(classifier.gallery.labels, new_classes))
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Classify images.

        Args:
            images: uint8, shape (B, C, S, S).

        Returns:
            Unit vectors, float32 (B, D); log-probabilities with the temperature, float32
            (B, classes); Euclidean distances to the nearest gallery vector, float32 (B,); and
            typicalities, float32 (B,), NaN if the classifier has no validation distances.
        """
        vectors: Tensor = self.network(images)  # (B, D)
        log_probabilities = F.log_softmax(self.head(vectors) / self.temperature, dim=1)
        distances, rows = self._nearest(vectors)
        return vectors, log_probabilities, distances, self._typicality(distances, rows)

    def _nearest(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance to the nearest gallery vector, float32 (B,), and its row, int64 (B,).

        float64, as in :func:`stages.distance.exact_distances`: a float32 product cannot tell
        distances below 0.001 apart.
        """
        queries = vectors.double()
        products = queries @ self.gallery.double().T  # (B, G)
        squares = queries.square().sum(1, keepdim=True) - 2 * products + self.squared_lengths
        nearest = squares.amin(dim=1)
        distances = torch.where(nearest > SQUARED_RESOLUTION, nearest, 0).sqrt().float()
        return distances, squares.argmin(dim=1)

    def _typicality(self, distances: Tensor, rows: Tensor) -> Tensor:
        """Return the typicality of distances to gallery rows, float32 (B,)."""
        if len(self.validation) == 0:
            return torch.full_like(distances, torch.nan)
        values = _typicality_among(self.validation, distances)
        if not self.has_new_classes:
            return values
        among_enrolled = torch.ones_like(distances)
        if len(self.enrolled):
            among_enrolled = _typicality_among(self.enrolled, distances)
        return torch.where(self.of_new_class[rows], among_enrolled, values)


def _typicality_among(calibration: Tensor, distances: Tensor) -> Tensor:
    """Return the typicality of distances among n > 0 other ones, float32 (B,)."""
    farther = (calibration >= distances[:, None]).sum(dim=1)  # (B,)
    return (1 + farther).float() / (len(calibration) + 1)


class AnySizeGraph(nn.Module):
    """A square for an image of any size, and a classifier for the square, in one module.

    Args:
        square: Fits an image to a square.
        classifier: Classifies the square.
    """

    def __init__(self, square: SquareGraph, classifier: ClassifierGraph):
        super().__init__()
        self.square, self.classifier = square, classifier
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Classify an image.

        Args:
            image: RGB, uint8, shape (H, W, 3).

        Returns:
            As :meth:`ClassifierGraph.forward`, with B = 1.
        """
        outputs: tuple[Tensor, Tensor, Tensor, Tensor] = self.classifier(self.square(image))
        return outputs
