"""Stage three: measure an embedding and its classifier on images that neither has seen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from stages.distance import exact_distances
from stages.metrics import SplitMeasures, knn, measure_gallery, measure_split, triplet_accuracy
from stages.records import ClassifierCheckpoint, Embeddings, Paired, Prediction, Score, Scored, Split

RESAMPLES = 1000
BINS = 15  # of confidence, as in Guo et al. 2017
PIXELS = 32  # side to which the raw-pixel baseline averages larger images
CLEAN = "test-without-duplicates"
PAIRS = (  # within a run, a minus b
    ("classification_accuracy", "knn_accuracy"),
    ("knn_accuracy", "pixel_knn_accuracy"),
    ("classification_accuracy", "pixel_knn_accuracy"),
    ("knn_accuracy", "untrained_knn_accuracy"),
    ("knn_accuracy", "majority_accuracy"),
)

BLOCK = 2**22  # distances handled at once
DISTANCE_BINS = 50  # of [0, 2]
PAIRED_UP_TO = 10_000  # images whose distances the histogram counts
MAPPED = 2500


class Baseline(NamedTuple):
    """Another space to search: queries (N, D) and gallery (G, D) in the order of the test and training part, and its k."""

    queries: Tensor
    gallery: Tensor
    k: int


class Exploration(NamedTuple):
    """What the pictures show.

    positives, negatives: int64 (DISTANCE_BINS,), pairs of one class and of two by distance, bins even over [0, 2].
    triplets: int64 (T, 3), anchor, farthest positive, nearest negative; the worst first, one an anchor.
    sides: float32 (T, 2), their distances. mapped: int64 (M,), the images on the map; points: float32 (M, 2).
    """

    positives: np.ndarray
    negatives: np.ndarray
    triplets: np.ndarray
    sides: np.ndarray
    mapped: np.ndarray
    points: np.ndarray


def score_split(
    test: Embeddings,
    classifier: ClassifierCheckpoint,
    *,
    pixels: Baseline,
    untrained: Baseline | None,
    leaked: Sequence[int] = (),
    validated: bool = True,
    within: bool = True,
) -> Scored:
    """The comparison: kNN, triplet and classification accuracy, retrieval, calibration and three baselines, on the same images.

    pixels, untrained: raw pixels, and the vectors of the network before training; None where it can't be had, then its
    scores are undefined. leaked: positions of test images whose pixels stand in the training or validation part; every
    figure is given with them and without. validated: whether validation images chose each k. within: whether test images
    query each other; otherwise, where they are too few, they query the training images. Every interval is a 95 % one; nothing
    here is chosen on these images.
    """
    labels, rows = test.labels.numpy(), np.arange(len(test))
    gallery = classifier.gallery
    before, after = (probabilities(classifier.head, test.vectors, temperature=t).numpy() for t in (1.0, classifier.temperature))
    named = after.argmax(1)
    found = knn(test.vectors, gallery.vectors, gallery.labels, k=classifier.k)

    def named_by(space: Baseline) -> np.ndarray:
        return np.asarray(knn(space.queries, space.gallery, gallery.labels, k=space.k).labels == labels)

    common = int(np.bincount(gallery.labels.numpy()).argmax())
    right = {
        "knn_accuracy": found.labels == labels,
        "classification_accuracy": named == labels,
        "majority_accuracy": labels == common,
        "pixel_knn_accuracy": named_by(pixels),
    }
    if untrained:
        right["untrained_knn_accuracy"] = named_by(untrained)
    how = "chosen on validation" if validated else "from the class sizes"
    votes = [f"{min(one.k, len(gallery))} nearest training images (k {how}" if one else None for one in (classifier, pixels, untrained)]
    definitions = _define(f"training class, {test.classes[common]}", *votes)

    def measure(keep: np.ndarray) -> SplitMeasures:
        queries = test.vectors[keep], test.labels[keep]
        return measure_split(*queries) if within else measure_gallery(*queries, gallery.vectors, gallery.labels)

    measures = measure(rows)
    with np.errstate(invalid="ignore"):
        by_anchor = measures.won / measures.total
    prediction = Prediction(found.labels, named, after[rows, named], before[rows, named], by_anchor, found.nearest, found.distance)
    figures = _figures("test", right, right, prediction, measures, definitions, within)
    if len(leaked):
        keep = np.setdiff1d(rows, np.asarray(leaked))
        part, hits = (Prediction(*(values[keep] for values in vars(prediction).values())), {m: r[keep] for m, r in right.items()})
        clean = _figures(CLEAN, hits, hits, part, measure(keep), definitions, within)
    else:
        clean = _relabel(figures)
    centre, other = (vectors.double().mean(0) for vectors in (test.vectors, test.vectors if within else gallery.vectors))
    spread = math.sqrt(max(0.0, 2 - 2 * float(centre @ other)))  # of unit vectors
    return Scored((*figures[0], *clean[0]), (*figures[1], *clean[1]), prediction, right, measures, spread, tuple(leaked))


def pool_folds(folds: Sequence[Scored], places: Sequence[np.ndarray], labels: np.ndarray, classes: Sequence[str]) -> Scored:
    """The test images of all folds as one test of every image.

    folds: all of one repeat, then all of the next; scored against their training images. places: int64 (n,) for each,
    where its test images stand among all N. labels: int64 (R * N,), fold after fold as `right` and `prediction` of the result.
    A figure is the mean over images of the mean over repeats; its interval is over the N images, since predicting an image
    again makes no new one.
    """
    where = np.concatenate(places)
    count = int(where.max()) + 1
    repeats = len(where) // count
    order = np.argsort(where, kind="stable").reshape(count, repeats)  # of each image its repeats
    prediction = Prediction(*(np.concatenate(parts) for parts in zip(*(vars(one.prediction).values() for one in folds), strict=True)))
    right = {metric: np.concatenate([one.right[metric] for one in folds]) for metric in folds[0].right}
    common = int(np.bincount(labels).argmax())
    right["majority_accuracy"] = labels == common  # of all: the class most frequent in training is the rarest in the test
    shares = {metric: hits[order[:, 0]] if repeats == 1 else hits[order].mean(1) for metric, hits in right.items()}
    each = [np.concatenate(parts)[order] for parts in zip(*(one.measures for one in folds), strict=True)]
    measures = SplitMeasures(*(part.mean(1) if part.dtype.kind == "f" else part.sum(1) for part in each))
    vote = "k nearest training images (k and these as in each fold"
    definitions = _define(f"class, {classes[common]}", vote, vote, vote if "untrained_knn_accuracy" in right else None)
    scores, paired = _figures("test", shares, right, prediction, measures, definitions, within=False)
    told = "; each image tested by models that never saw it" + f"; mean of {repeats} repeats, interval over images" * (repeats > 1)
    scores = tuple(
        replace(one, definition=one.definition + told, count=one.count if one.metric == "triplet_accuracy" else min(one.count, count))
        for one in scores
    )
    clean = _relabel((scores, paired))
    return Scored((*scores, *clean[0]), (*paired, *clean[1]), prediction, right, measures, min(one.spread for one in folds))


def _define(common: str, known: str | None, raw: str | None, fresh: str | None) -> dict[str, str]:
    """What each share is; the last three say who votes, or None."""
    vote = "share of images that the majority of the {}; all ties at the edge vote, equal votes go to the nearest) names rightly"
    return {
        "knn_accuracy": vote.format(known),
        "classification_accuracy": "share of images that dropout + linear + log-softmax on the frozen embedding names rightly",
        "majority_accuracy": f"share of images of the most frequent {common}",
        "pixel_knn_accuracy": vote.format(raw) + f", Euclidean distance of raw pixels (images above {PIXELS} pixels averaged down to it)",
        "untrained_knn_accuracy": (vote.format(fresh) if fresh else "left out: its weights are gone")
        + ", the same network before training",
    }


def _figures(
    split: str,
    shares: Mapping[str, np.ndarray],
    right: Mapping[str, np.ndarray],
    prediction: Prediction,
    measures: SplitMeasures,
    definitions: Mapping[str, str],
    within: bool,
) -> tuple[tuple[Score, ...], tuple[Paired, ...]]:
    """Every score and paired test. shares, measures: an entry an image; right, prediction: an entry a prediction."""
    each = {metric: shares[metric] if metric in shares else np.zeros(0, bool) for metric in definitions}
    named = {metric: _share(metric, split, each[metric].astype(float), definitions[metric]) for metric in definitions}
    hits = right["classification_accuracy"]
    scores = (
        named.pop("knn_accuracy"),
        _triplets(split, measures, within),
        named.pop("classification_accuracy"),
        *_retrieval(split, measures, within),
        *named.values(),
        _calibration("calibration_error", split, prediction.probability, hits, "after temperature"),
        _calibration("calibration_error_uncalibrated", split, prediction.uncalibrated, hits, "before temperature"),
    )
    return scores, tuple(compare_shares(a, b, split, each[a][: len(each[b])], each[b]) for a, b in PAIRS)


def _relabel(figures: tuple[tuple[Score, ...], tuple[Paired, ...]]) -> tuple[tuple[Score, ...], tuple[Paired, ...]]:
    """The figures without duplicates, where there are none."""
    return tuple(replace(one, split=CLEAN) for one in figures[0]), tuple(replace(one, split=CLEAN) for one in figures[1])


def probabilities(head: nn.Module, vectors: Tensor, *, temperature: float) -> Tensor:
    """Calibrated class probabilities, float32 (N, classes), of unit vectors (N, D): softmax of the head's output / temperature."""
    with torch.inference_mode():
        scores: Tensor = head(vectors)
        return F.softmax(scores / temperature, dim=1)


def raw_pixels(split: Split) -> Tensor:
    """Pixels as vectors, float32 (N, C * S * S), S at most 32: a baseline needs no more, and larger ones no memory has."""
    small = (F.adaptive_avg_pool2d(images.float(), min(PIXELS, images.shape[-1])) for images in split.blocks())
    return torch.cat([images.flatten(1) for images in small])


def compare_shares(metric_a: str, metric_b: str, split: str, a: np.ndarray, b: np.ndarray) -> Paired:
    """Two ways of naming the same images: exact McNemar test, and an interval for the difference of the shares.

    a, b: bool (N,), right or wrong; or float64 (N,), the share of repeats in which an image was named rightly. McNemar 1947
    in its exact, binomial form, which over shares is the sign test; the interval is the adjusted Wald one of
    Bonett and Price 2012 (doi 10.3102/1076998611411915), which keeps its coverage where few images differ.
    """
    gap, count = a.astype(float) - b, len(a)
    only_a, only_b = int((gap > 0).sum()), int((gap < 0).sum())
    test = f"exact McNemar: {only_a} images right by a alone, {only_b} by b alone; interval: Bonett-Price"
    if a.dtype != bool:
        test = f"exact sign test over images: {only_a} right more often by a, {only_b} by b; interval: Bonett-Price"
    if count == 0:
        return Paired(metric_a, metric_b, split, None, None, None, None, 0, test)
    p_value = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    share_a, share_b = ((part.clip(min=0).sum() + 1) / (count + 2) for part in (gap, -gap))
    centre = share_a - share_b
    half = _z() * math.sqrt((share_a + share_b - centre**2) / (count + 2))
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Paired(metric_a, metric_b, split, float(gap.mean()), low, high, p_value, count, test)


def compare_runs(a: Scored, b: Scored) -> tuple[Paired, ...]:
    """Two runs on the same test images, in the same order: run a minus run b, measure by measure.

    Named shares as in `compare_shares`; triplet accuracy by the jackknife over images of the difference; MAP@R by a
    paired t-test over queries.
    """
    names = ("knn_accuracy", "classification_accuracy")
    named = tuple(compare_shares(name, name, "test", a.right[name], b.right[name]) for name in names)
    return (*named, _compare_triplets(a.measures, b.measures), _compare_map(a.measures.map_at_r, b.measures.map_at_r))


def _compare_triplets(a: SplitMeasures, b: SplitMeasures) -> Paired:
    metric, test = "triplet_accuracy", "normal test and interval, error by the jackknife over images of the difference"
    total = int(a.total.sum())
    left = total - a.total_any
    if total == 0 or (kept := left > 0).sum() < 2:
        return Paired(metric, metric, "test", None, None, None, None, 0, test)
    gap = (a.won - b.won).sum()
    without = (gap - (a.won_any - b.won_any)[kept]) / left[kept]
    count = int(kept.sum())
    error = math.sqrt((count - 1) / count * float(np.square(without - without.mean()).sum()))
    return _normal(metric, gap / total, error, len(left), test)


def _compare_map(a: np.ndarray, b: np.ndarray) -> Paired:
    metric, test = "map_at_r", "paired t-test and interval over queries"
    gaps = (a - b)[~np.isnan(a)]
    if len(gaps) < 2:
        return Paired(metric, metric, "test", None, None, None, None, 0, test)
    error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    return _normal(metric, float(gaps.mean()), error, len(gaps), test, degrees=len(gaps) - 1)


def _normal(metric: str, gap: float, error: float, count: int, test: str, *, degrees: float = math.inf) -> Paired:
    law = stats.t(degrees)
    half = float(law.ppf(0.975)) * error
    p_value = 2 * float(law.sf(abs(gap) / error)) if error else float(gap == 0)
    return Paired(metric, metric, "test", float(gap), max(-1.0, gap - half), min(1.0, gap + half), p_value, count, test)


def pool_runs(runs: Sequence[Scored], what: str = "runs") -> tuple[tuple[Score, ...], tuple[Score, ...]]:
    """Mean and standard deviation (n - 1) over runs, figure by figure; `count` is how many of them had a value."""
    means, deviations = [], []
    for same in zip(*(run.scores for run in runs), strict=True):
        values = [score.value for score in same if score.value is not None]
        metric, split, count = same[0].metric, same[0].split, len(values)
        mean = min(1.0, math.fsum(values) / count) if values else None
        means.append(Score(metric, split, mean, None, None, count, f"mean over {count} {what}"))
        deviation = float(np.std(values, ddof=1)) if count > 1 else None
        deviations.append(
            Score(metric, split, deviation, None, None, count if count > 1 else 0, f"standard deviation over {count} {what} (n - 1)")
        )
    return tuple(means), tuple(deviations)


def reliability(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, mean confidence and share right, each (15,), in even bins of confidence over (0, 1]; NaN in empty bins."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return counts, np.bincount(bins, confidence, BINS) / counts, np.bincount(bins, right, BINS) / counts


def _triplets(split: str, measures: SplitMeasures, within: bool) -> Score:
    which = "of the split" if within else "of a test image and two training images, of its class and of another,"
    pooled = f"share of all triplets {which} with d(anchor, positive) < d(anchor, negative), ties lost; interval: jackknife over images"
    if not (count := int(measures.total.sum())):
        return Score("triplet_accuracy", split, None, None, None, 0, pooled)
    return Score("triplet_accuracy", split, *triplet_accuracy(measures), count, pooled)


def _retrieval(split: str, measures: SplitMeasures, within: bool) -> tuple[Score, ...]:
    ranking = "each image queries the others of the split, itself left out" if within else "each test image queries the training images"
    return (
        _share("precision_at_1", split, measures.precision_at_1, f"share of queries whose nearest image has their class; {ranking}"),
        _mean(
            "r_precision",
            split,
            measures.r_precision,
            f"share of a query's class among its R nearest, R = others of its class; {ranking}",
        ),
        _mean("map_at_r", split, measures.map_at_r, f"mean of precision at the hits among the R nearest, divided by R; {ranking}"),
        _mean(
            "mean_average_precision",
            split,
            measures.average_precision,
            f"mean over queries of the average precision of the whole ranking; {ranking}",
        ),
    )


def _calibration(metric: str, split: str, confidence: np.ndarray, right: np.ndarray, when: str) -> Score:
    """Expected calibration error (Guo et al. 2017)."""
    definition = f"mean gap between the classifier's confidence and its share right, {BINS} even bins, {when}"
    if len(right) == 0:
        return Score(metric, split, None, None, None, 0, definition)
    counts, mean, share = reliability(confidence, right)
    return Score(metric, split, float(np.nansum(counts * np.abs(mean - share)) / len(right)), None, None, len(right), definition)


def _share(metric: str, split: str, right: np.ndarray, definition: str) -> Score:
    """A share of images (1 right, 0 wrong, a share of repeats between, NaN dropped) with Wilson's interval."""
    kept, definition = _defined(right, definition)
    if len(kept) == 0:
        return Score(metric, split, None, None, None, 0, definition)
    value, count, z = float(kept.mean()), len(kept), _z()
    centre, half = value + z * z / (2 * count), z * math.sqrt(value * (1 - value) / count + (z / (2 * count)) ** 2)
    low, high = (round(bound / (1 + z * z / count), 12) for bound in (centre - half, centre + half))  # 0 and 1 to the last bit
    return Score(metric, split, value, low, high, count, f"{definition}; interval: Wilson")


def _mean(metric: str, split: str, values: np.ndarray, definition: str) -> Score:
    """A mean over queries (NaN dropped) with a percentile bootstrap over queries."""
    kept, definition = _defined(values, definition)
    if len(kept) == 0:
        return Score(metric, split, None, None, None, 0, definition)
    value = min(1.0, math.fsum(kept) / len(kept))
    if len(kept) == 1:
        return Score(metric, split, value, None, None, 1, definition)
    generator = np.random.default_rng(0)
    means = [kept[generator.integers(len(kept), size=len(kept))].mean() for _ in range(RESAMPLES)]
    low, high = (float(bound) for bound in np.quantile(means, (0.025, 0.975)))
    return Score(metric, split, value, low, high, len(kept), f"{definition}; interval: bootstrap over queries")


def _defined(values: np.ndarray, definition: str) -> tuple[np.ndarray, str]:
    """The values that exist, and the definition with how many don't."""
    kept = values[~np.isnan(values)]
    dropped = len(values) - len(kept)
    return kept, f"{definition}; {dropped} queries without another image of their class dropped" if dropped else definition


def _z() -> float:
    return float(stats.norm.ppf(0.975))


def explore(test: Embeddings, *, triplets: int = 8) -> Exploration:
    """Distances between pairs, the worst triplets and a flat map; O(N^2) time, memory for a block of distances.

    Above 10,000 images the pairs are those of 10,000 evenly spaced ones; the map shows at most 2,500, spaced over the classes.
    """
    shown = torch.linspace(0, len(test) - 1, min(len(test), PAIRED_UP_TO)).round().long()
    vectors, labels = test.vectors[shown], test.labels[shown]
    counts = torch.zeros(2, DISTANCE_BINS, dtype=torch.int64)
    worst: list[Tensor] = []
    step = max(1, BLOCK // len(shown))
    for start in range(0, len(shown), step):
        rows = torch.arange(start, min(start + step, len(shown)))
        distances = exact_distances(vectors[rows], vectors)  # (b, N)
        same = labels[rows][:, None] == labels
        cells = (distances * (DISTANCE_BINS / 2)).long().clamp_(max=DISTANCE_BINS - 1)
        counts[1] += torch.bincount(cells[~same], minlength=DISTANCE_BINS)
        same[torch.arange(len(rows)), rows] = False
        counts[0] += torch.bincount(cells[same], minlength=DISTANCE_BINS)
        far, positive = distances.masked_fill(~same, -math.inf).max(dim=1)
        same[torch.arange(len(rows)), rows] = True
        near, negative = distances.masked_fill(same, math.inf).min(dim=1)
        worst.append(torch.stack([rows.float(), positive.float(), negative.float(), far, near], dim=1))
    table = torch.cat(worst)
    table = table[torch.isfinite(table).all(1)]  # without a positive, or a negative, there is no triplet
    table = table[(table[:, 4] - table[:, 3]).argsort(stable=True)[:triplets]]
    mapped = test.labels.argsort(stable=True)[torch.linspace(0, len(test) - 1, min(len(test), MAPPED)).round().long()]
    return Exploration(
        (counts[0] // 2).numpy(),
        (counts[1] // 2).numpy(),
        shown[table[:, :3].long()].numpy(),
        table[:, 3:].numpy(),
        mapped.numpy(),
        flat_map(test.vectors[mapped].numpy()),
    )


def flat_map(vectors: np.ndarray) -> np.ndarray:
    """t-SNE of (M, D), float32 (M, 2), the same each time; principal components where there are too few or too equal points."""
    if len(vectors) < 10 or vectors.shape[1] < 3 or float(vectors.std(0).max()) < 1e-5:
        flat = np.zeros((len(vectors), 2), np.float32)
        left, sizes, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
        flat[:, : len(sizes[:2])] = left[:, :2] * sizes[:2]
        return flat
    from sklearn.manifold import TSNE  # slow to import

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    flat = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=0).fit_transform(vectors)
    return np.asarray(flat, dtype=np.float32)


def nearest(queries: Tensor, gallery: Tensor, *, count: int) -> np.ndarray:
    """The rows of the nearest gallery vectors, the nearest first, int64 (Q, count or all); for a few queries (Q, D)."""
    count = min(count, len(gallery))
    return np.asarray(exact_distances(queries, gallery).topk(count, largest=False).indices)
