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
    :func:`stages.evaluation.typicality.typicality` compute, without data-dependent control flow.

    Args:
        classifier: Classifier on the CPU. Its tensors are shared, not copied.
    """

    gallery: Tensor
    squared_lengths: Tensor
    calibration: Tensor

    def __init__(self, classifier: ClassifierCheckpoint):
        super().__init__()
        self.network, self.head = classifier.network, classifier.head
        self.temperature = classifier.temperature
        gallery = classifier.gallery.vectors
        self.register_buffer("gallery", gallery)
        self.register_buffer("squared_lengths", gallery.double().square().sum(1))
        self.register_buffer("calibration", classifier.calibration_distances)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Classify images.

        Args:
            images: uint8, shape (B, C, S, S).

        Returns:
            Unit vectors, float32 (B, D); log-probabilities with the temperature, float32
            (B, classes); Euclidean distances to the nearest gallery vector, float32 (B,); and
            typicalities, float32 (B,), NaN if the classifier has no calibration distances.
        """
        vectors: Tensor = self.network(images)  # (B, D)
        log_probabilities = F.log_softmax(self.head(vectors) / self.temperature, dim=1)
        distances = self._nearest_distances(vectors)
        return vectors, log_probabilities, distances, self._typicality(distances)

    def _nearest_distances(self, vectors: Tensor) -> Tensor:
        """Return the distance to the nearest gallery vector, float32 (B,).

        float64, as in :func:`stages.distance.exact_distances`: a float32 product cannot tell
        distances below 0.001 apart.
        """
        queries = vectors.double()
        products = queries @ self.gallery.double().T  # (B, G)
        squares = queries.square().sum(1, keepdim=True) - 2 * products + self.squared_lengths
        nearest = squares.amin(dim=1)
        return torch.where(nearest > SQUARED_RESOLUTION, nearest, 0).sqrt().float()

    def _typicality(self, distances: Tensor) -> Tensor:
        """Return the typicality of distances, float32 (B,)."""
        count = len(self.calibration)
        if count == 0:
            return torch.full_like(distances, torch.nan)
        farther = (self.calibration >= distances[:, None]).sum(dim=1)  # (B,)
        return (1 + farther).float() / (count + 1)


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
