"""Compare an ONNX file, run by onnxruntime, with what `pipeline predict` computes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stages.checkpoints import ClassifierCheckpoint
from stages.errors import PipelineError
from stages.evaluation.knn import nearest_distances
from stages.evaluation.typicality import enrolled_typicality, typicality
from stages.network.classifier_graph import OUTPUTS
from stages.network.head import probabilities
from stages.network.inference import embed_images
from stages.network.square_graph import SquareGraph

BATCH_SIZES = (1, 3, 64)
# Largest differences that are accepted. Probabilities depend on vectors times the weights of the
# head, which are well above 1 for a sharp classifier.
TOLERANCES = {"vector": 1e-5, "probability": 1e-4, "nearest_distance": 1e-5, "typicality": 1e-6}
EQUALLY_PROBABLE = 1e-5  # difference of two probabilities that rounding may reverse
# The same for pixels that differ by one grey level: five times the largest difference of
# probabilities, 0.004, that was measured for photographs.
PIXEL_MARGIN = 0.02

Outputs = dict[str, np.ndarray]
Run = Callable[[np.ndarray], Outputs]


@dataclass
class Parity:
    """Largest differences between onnxruntime and PyTorch over all images so far.

    Attributes:
        tolerances: Largest differences that are accepted.
        margin: Classes whose probabilities differ by at most this may be exchanged.
        images: Number of different images.
        differences: Largest absolute difference per key of ``TOLERANCES``.
        other_labels: Number of results with another label.
        wrong_labels: Number of them whose probability is lower by more than ``margin``.
        levels: Largest difference of resized pixels, in grey levels.
    """

    tolerances: Mapping[str, float] = field(default_factory=lambda: TOLERANCES)
    margin: float = EQUALLY_PROBABLE
    images: int = 0
    differences: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TOLERANCES, 0.0))
    other_labels: int = 0
    wrong_labels: int = 0
    levels: int = 0

    def add(self, outputs: Outputs, expected: Outputs) -> None:
        """Compare the outputs for some images.

        Args:
            outputs: Outputs of onnxruntime, by the names of ``OUTPUTS``.
            expected: Outputs of :func:`expected_outputs`.
        """
        probability = np.exp(outputs["log_probabilities"])
        largest = {
            "vector": _largest(outputs["vector"] - expected["vector"]),
            "probability": _largest(probability - expected["probability"]),
            "nearest_distance": _largest(
                outputs["nearest_distance"] - expected["nearest_distance"]
            ),
            "typicality": _largest(
                _outside(outputs["typicality"], expected["lowest"], expected["highest"])
            ),
        }
        for name, value in largest.items():
            # numpy's maximum, unlike Python's, keeps NaN.
            self.differences[name] = float(np.maximum(self.differences[name], value))
        self._compare_labels(probability, expected["probability"])

    def _compare_labels(self, probability: np.ndarray, expected: np.ndarray) -> None:
        rows, labels = np.arange(len(expected)), probability.argmax(axis=1)
        lower = expected.max(axis=1) - expected[rows, labels]
        self.other_labels += int((labels != expected.argmax(axis=1)).sum())
        self.wrong_labels += int((lower > self.margin).sum())

    def check(self) -> None:
        """Raise an error if a difference is larger than accepted.

        Raises:
            PipelineError: As described.
        """
        problems = []
        if self.levels > 1:
            problems.append(f"resized pixels differ by {self.levels} grey levels, more than 1")
        if self.wrong_labels:
            problems.append(f"{self.wrong_labels} labels differ")
        for name, tolerance in self.tolerances.items():
            value = self.differences[name]
            if not value <= tolerance:  # NaN is not
                problems.append(f"{name} differs by {value:.1e}, more than {tolerance:g}")
        if problems:
            raise PipelineError(
                f"onnxruntime and `pipeline predict` disagree on {self.images:,} images: "
                f"{'; '.join(problems)}; nothing was written; try other versions of torch, Pillow, "
                "onnx and onnxruntime"
            )

    def describe(self) -> str:
        """Return the differences as text."""
        listed = []
        for name in ("vector", "probability", "nearest_distance"):
            listed.append(f"{name.replace('_', ' ')} {self.differences[name]:.1g}")
        labels = "equal labels"
        if self.other_labels:
            labels = f"{self.other_labels} labels differ, of almost equally probable classes"
        return f"{labels}; largest differences: {', '.join(listed)}"


def run_onnx(content: bytes, name: str) -> Run:
    """Load an ONNX file into onnxruntime, on the CPU.

    Args:
        content: Content of the file.
        name: Name of the input.

    Returns:
        Function from the input to the outputs by name.

    Raises:
        PipelineError: If onnxruntime cannot load the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session: Any = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors have no common base class
        reason = str(error).strip().splitlines()[0][:200]
        raise PipelineError(
            f"onnxruntime cannot load the exported network ({reason}); nothing was written; try "
            "another version of onnxruntime"
        ) from error

    def run(values: np.ndarray) -> Outputs:
        return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {name: values}), strict=True))

    return run


def expected_outputs(images: np.ndarray, classifier: ClassifierCheckpoint) -> Outputs:
    """Compute what `pipeline predict` computes.

    Args:
        images: uint8, shape (B, C, S, S).
        classifier: Classifier on the CPU.

    Returns:
        ``vector``, float32 (B, D); ``probability``, float32 (B, classes); ``nearest_distance``,
        float32 (B,); and ``lowest`` and ``highest``, the range of typicality, float64 (B,).
    """
    batch = torch.from_numpy(images)
    vectors = embed_images(classifier.network, [batch], device=torch.device("cpu"))
    probability = probabilities(classifier.head, vectors, temperature=classifier.temperature)
    distances = nearest_distances(vectors, classifier.gallery.vectors)
    lowest, highest = _typicality_range(vectors, distances.numpy(), classifier)
    return {
        "vector": vectors.numpy(),
        "probability": probability.numpy(),
        "nearest_distance": distances.numpy(),
        "lowest": lowest,
        "highest": highest,
    }


def compare_batches(
    run: Run, classifier: ClassifierCheckpoint, blocks: Iterable[np.ndarray]
) -> Parity:
    """Compare onnxruntime with PyTorch in batches of several sizes.

    Args:
        run: The exported classifier.
        classifier: The classifier.
        blocks: Blocks of up to 64 images, uint8 (b, C, S, S).

    Returns:
        The differences.
    """
    parity = Parity()
    for number, block in enumerate(blocks):
        expected = expected_outputs(block, classifier)
        parity.images += len(block)
        for size in BATCH_SIZES if number == 0 else BATCH_SIZES[-1:]:
            # A few images are repeated, so that the batch has its size.
            rows = np.arange(max(size, len(block) // size * size)) % len(block)
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                outputs = run(block[part])
                parity.add(outputs, {name: value[part] for name, value in expected.items()})
    return parity


def compare_photos(
    run: Run,
    classifier: ClassifierCheckpoint,
    square: SquareGraph,
    photos: Iterable[tuple[np.ndarray, np.ndarray]],
) -> Parity:
    """Compare onnxruntime with `pipeline predict` on images of any size.

    The outputs must be those of PyTorch for the squares of ``square``: this checks the translation.
    The result compares them with those for the squares of Pillow. These may differ from the others
    by one grey level, for example with another version of Pillow, and then the outputs differ too.
    A label may differ only if the probabilities of both classes differ by up to ``PIXEL_MARGIN``.

    Args:
        run: The exported classifier.
        classifier: The classifier.
        square: The module that makes the squares in the exported classifier.
        photos: Images, uint8 (H, W, 3), and the squares that Pillow makes of them, uint8 (C, S, S).

    Returns:
        The differences from `pipeline predict`.

    Raises:
        PipelineError: If the translation has other outputs, or the result fails its check.
    """
    translation, parity = Parity(), Parity(tolerances={}, margin=PIXEL_MARGIN)
    for pixels, fitted in photos:
        outputs = run(pixels)
        computed = square(torch.from_numpy(pixels)).numpy()  # (1, C, S, S)
        expected = expected_outputs(computed, classifier)
        translation.images += 1
        translation.add(outputs, expected)
        levels = int(np.abs(computed[0].astype(int) - fitted).max())
        if levels:
            expected = expected_outputs(np.ascontiguousarray(fitted[None]), classifier)
        parity.images += 1
        parity.levels = max(parity.levels, levels)
        parity.add(outputs, expected)
    translation.check()
    parity.check()
    return parity


def _largest(differences: np.ndarray) -> float:
    """Return the largest absolute value, NaN if there is one, 0 for an empty array."""
    return float(np.abs(differences).max(initial=0))


def _typicality_range(
    vectors: torch.Tensor, nearest: np.ndarray, classifier: ClassifierCheckpoint
) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest typicality that rounding allows, float64 (B,) each.

    Typicality is a rank: where a calibration distance is as far as the image up to rounding, the
    rank may differ by one. Where an old and a new class are equally near up to rounding, either may
    be the nearest. The range is that of all distances within the tolerance.

    Args:
        vectors: Vectors of the images, float32, shape (B, D).
        nearest: Their distances to the nearest gallery vector, float32, shape (B,).
        classifier: The classifier.
    """
    tolerance = TOLERANCES["nearest_distance"]
    validation = classifier.validation_distances.numpy()
    lowest = typicality(nearest + tolerance, validation)
    highest = typicality(nearest - tolerance, validation)
    gallery = classifier.gallery
    is_new = torch.isin(gallery.labels, torch.tensor(classifier.new_classes, dtype=torch.int64))
    if len(validation) == 0 or not is_new.any():
        return lowest, highest
    enrolled = classifier.enrolled_distances.numpy()
    low_new = enrolled_typicality(nearest + tolerance, enrolled)
    high_new = enrolled_typicality(nearest - tolerance, enrolled)
    can_be_new = nearest_distances(vectors, gallery.vectors[is_new]).numpy() <= nearest + tolerance
    can_be_old = np.zeros(len(nearest), dtype=bool)
    if not is_new.all():
        to_old = nearest_distances(vectors, gallery.vectors[~is_new]).numpy()
        can_be_old = to_old <= nearest + tolerance
    return (
        np.minimum(np.where(can_be_old, lowest, 1), np.where(can_be_new, low_new, 1)),
        np.maximum(np.where(can_be_old, highest, 0), np.where(can_be_new, high_new, 0)),
    )


def _outside(values: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> np.ndarray:
    """Return how far typicalities are outside a range; infinity where only one of them is NaN."""
    undefined = np.where(np.isnan(values), 0.0, np.inf)
    return np.where(np.isnan(lowest), undefined, values - values.clip(lowest, highest))
