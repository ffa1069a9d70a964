"""scikit-learn estimators: a transformer and a classifier trained by the commands."""

import os
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from pipeline.estimator_base import ImageEstimator
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

if TYPE_CHECKING:
    from torch import Tensor

    from stages.checkpoints import ClassifierCheckpoint


class TripletEmbedding(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]  # scikit-learn has no types
    TransformerMixin,  # type: ignore[misc]  # scikit-learn has no types
    ImageEstimator,
):
    """Embedding of images, trained with triplet loss: the command `embed` as a transformer.

    ``fit`` trains a network on the images X, a uint8 array of shape (N, H, W) or (N, H, W, C) with
    C 1 or 3, or a list of paths, with labels y of any type. ``transform`` returns unit vectors.
    Images are prepared as by the commands. After ``fit``, ``classes_`` has the distinct labels,
    sorted, and ``checkpoint_`` the content of the file that `embed` writes.

    The parameters of the network and of training are those of
    :class:`stages.settings.EmbedSettings`, with the same defaults. So colour images above 64 pixels
    get a pretrained trunk, if the extra ``offline`` is installed and size, weights and trunk have
    their default values.

    Args:
        size, channels, resize, split_seed: As in :class:`stages.settings.ReadSettings`.
        val: Share of X that chooses the epoch; the network is trained on the other images.
        device, precision, threads, quiet: As in :class:`pipeline.context.RunContext`.
        cache: Folder for decoded images and trunk features, which later fits to the same images
            reuse. None: a temporary folder.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> digits = load_digits()
        >>> images = (digits.images * (255 / 16)).round().astype(np.uint8)
        >>> embedding = TripletEmbedding(epochs=1).fit(images[:200], digits.target[:200])
        >>> embedding.transform(images[200:300]).shape
        (100, 128)
    """

    def __init__(
        self,
        *,
        network: str = EmbedSettings.network,
        weights: str = EmbedSettings.weights,
        trunk: str = EmbedSettings.trunk,
        dim: int = EmbedSettings.dim,
        mining: str = EmbedSettings.mining,
        margin: float | None = EmbedSettings.margin,
        distance: str = EmbedSettings.distance,
        classes_per_batch: int | None = EmbedSettings.classes_per_batch,
        images_per_class: int | None = EmbedSettings.images_per_class,
        epochs: int | None = EmbedSettings.epochs,
        lr: float = EmbedSettings.lr,
        augment: bool = EmbedSettings.augment,
        patience: int | None = EmbedSettings.patience,
        seed: int = EmbedSettings.seed,
        loss: str = EmbedSettings.loss,
        loss_options: dict[str, Any] | None = EmbedSettings.loss_options,
        mining_options: dict[str, Any] | None = EmbedSettings.mining_options,
        size: int | None = ReadSettings.size,
        channels: int | None = ReadSettings.channels,
        resize: str = ReadSettings.resize,
        split_seed: int = ReadSettings.split_seed,
        val: float = ReadSettings.val,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        quiet: bool = True,
        cache: str | os.PathLike[str] | None = None,
    ):
        self.network = network
        self.weights = weights
        self.trunk = trunk
        self.dim = dim
        self.mining = mining
        self.margin = margin
        self.distance = distance
        self.classes_per_batch = classes_per_batch
        self.images_per_class = images_per_class
        self.epochs = epochs
        self.lr = lr
        self.augment = augment
        self.patience = patience
        self.seed = seed
        self.loss, self.loss_options, self.mining_options = loss, loss_options, mining_options
        self.size = size
        self.channels = channels
        self.resize = resize
        self.split_seed = split_seed
        self.val = val
        self.device = device
        self.precision = precision
        self.threads = threads
        self.quiet = quiet
        self.cache = cache

    def fit(self, X: Any, y: Any) -> Self:
        """Train the embedding network.

        Args:
            X: N images: uint8, shape (N, H, W) or (N, H, W, C) with C 1 or 3, or paths of files.
            y: N labels: whole numbers, strings or booleans.

        Returns:
            The estimator.

        Raises:
            ValueError: If an image cannot be read, or images, labels or parameters cannot be used.
        """
        checkpoint = self._train(X, y)
        self._n_features_out = checkpoint.record["network"]["dim"]
        return self

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Embed images.

        Args:
            X: N images, as for :meth:`fit`.

        Returns:
            Unit vectors, float32, shape (N, D).

        Raises:
            ValueError: If an image cannot be read.
        """
        vectors, _ = self._embed(X)
        return vectors.numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # uint8 becomes float32
        return tags


class EmbedThenClassify(
    ClassifierMixin,  # type: ignore[misc]  # scikit-learn has no types
    ImageEstimator,
):
    """Classifier on a frozen embedding: the commands `embed` and `classify` as a classifier.

    ``fit`` trains the embedding as :class:`TripletEmbedding` does, freezes it, and trains the
    classifier on its vectors. X and y are as there. After ``fit``, ``classes_`` has the distinct
    labels, sorted, ``n_iter_`` the number of L-BFGS passes, and ``checkpoint_`` the content of the
    file that `classify` writes.

    The parameters are those of :class:`TripletEmbedding` and of
    :class:`stages.settings.ClassifySettings`, with the same defaults.

    Args:
        seed: Random seed of both stages.
        val: Share of X that chooses the epoch, the weight decay and the temperature; the
            network and the classifier are trained on the other images.
        dropout, max_iter, balance: As in :class:`stages.settings.ClassifySettings`.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> digits = load_digits()
        >>> images = (digits.images * (255 / 16)).round().astype(np.uint8)
        >>> classifier = EmbedThenClassify(epochs=1).fit(images[:200], digits.target[:200])
        >>> classifier.predict_proba(images[200:300]).shape
        (100, 10)
    """

    def __init__(
        self,
        *,
        network: str = EmbedSettings.network,
        weights: str = EmbedSettings.weights,
        trunk: str = EmbedSettings.trunk,
        dim: int = EmbedSettings.dim,
        mining: str = EmbedSettings.mining,
        margin: float | None = EmbedSettings.margin,
        distance: str = EmbedSettings.distance,
        classes_per_batch: int | None = EmbedSettings.classes_per_batch,
        images_per_class: int | None = EmbedSettings.images_per_class,
        epochs: int | None = EmbedSettings.epochs,
        lr: float = EmbedSettings.lr,
        augment: bool = EmbedSettings.augment,
        patience: int | None = EmbedSettings.patience,
        seed: int = EmbedSettings.seed,
        loss: str = EmbedSettings.loss,
        loss_options: dict[str, Any] | None = EmbedSettings.loss_options,
        mining_options: dict[str, Any] | None = EmbedSettings.mining_options,
        dropout: float = ClassifySettings.dropout,
        max_iter: int = ClassifySettings.max_iter,
        balance: bool = ClassifySettings.balance,
        size: int | None = ReadSettings.size,
        channels: int | None = ReadSettings.channels,
        resize: str = ReadSettings.resize,
        split_seed: int = ReadSettings.split_seed,
        val: float = ReadSettings.val,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        quiet: bool = True,
        cache: str | os.PathLike[str] | None = None,
    ):
        self.network = network
        self.weights = weights
        self.trunk = trunk
        self.dim = dim
        self.mining = mining
        self.margin = margin
        self.distance = distance
        self.classes_per_batch = classes_per_batch
        self.images_per_class = images_per_class
        self.epochs = epochs
        self.lr = lr
        self.augment = augment
        self.patience = patience
        self.seed = seed
        self.loss, self.loss_options, self.mining_options = loss, loss_options, mining_options
        self.dropout, self.max_iter, self.balance = dropout, max_iter, balance
        self.size = size
        self.channels = channels
        self.resize = resize
        self.split_seed = split_seed
        self.val = val
        self.device = device
        self.precision = precision
        self.threads = threads
        self.quiet = quiet
        self.cache = cache

    def fit(self, X: Any, y: Any) -> Self:
        """Train the embedding network, then the classifier.

        Args:
            X: N images: uint8, shape (N, H, W) or (N, H, W, C) with C 1 or 3, or paths of files.
            y: N labels: whole numbers, strings or booleans.

        Returns:
            The estimator.

        Raises:
            ValueError: If an image cannot be read, or images, labels or parameters cannot be used.
        """
        checkpoint = self._train(X, y)
        self.n_iter_ = checkpoint.record["history"][-1]["epoch"]
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Classify images.

        Args:
            X: N images, as for :meth:`fit`.

        Returns:
            The most probable label of each image, of the type of y, shape (N,).

        Raises:
            ValueError: If an image cannot be read.
        """
        rows = self.predict_proba(X).argmax(axis=1)
        labels: npt.NDArray[Any] = self.classes_[rows]
        return labels

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Compute class probabilities, calibrated if there were enough validation images.

        Args:
            X: N images, as for :meth:`fit`.

        Returns:
            Probabilities in the order of ``classes_``, float64, shape (N, K).

        Raises:
            ValueError: If an image cannot be read.
        """
        vectors, classifier = self._embed_and_load(X)
        from stages.network.head import probabilities

        values = probabilities(classifier.head, vectors, temperature=classifier.temperature)
        # The classifier has its classes in natural order: -1 after 10, for example.
        columns = [classifier.classes.index(str(label)) for label in self.classes_.tolist()]
        ordered = values[:, columns].double()
        return np.asarray(ordered / ordered.sum(dim=1, keepdim=True))

    def typicality(self, X: Any) -> npt.NDArray[np.float64]:
        """Compute how usual images are; see :func:`stages.evaluation.typicality.typicality`.

        Args:
            X: N images, as for :meth:`fit`.

        Returns:
            Typicality in (0, 1], float64, shape (N,); NaN if the classifier was fitted without
            validation images. An image below 0.05 is probably of no class in ``classes_``.

        Raises:
            ValueError: If an image cannot be read.
        """
        vectors, classifier = self._embed_and_load(X)
        from stages.evaluation.knn import knn
        from stages.evaluation.typicality import classifier_typicality

        gallery = classifier.gallery
        neighbours = knn(vectors, gallery.vectors, gallery.labels, k=1)
        return classifier_typicality(neighbours.distance, neighbours.nearest, classifier)

    def _head_settings(self) -> ClassifySettings:
        return self._settings(ClassifySettings)

    def _embed_and_load(self, X: Any) -> "tuple[Tensor, ClassifierCheckpoint]":
        """Return the vectors of images, float32 (N, D), and the fitted classifier."""
        vectors, checkpoint = self._embed(X)
        from stages.checkpoints import ClassifierCheckpoint

        assert isinstance(checkpoint, ClassifierCheckpoint)
        return vectors, checkpoint
