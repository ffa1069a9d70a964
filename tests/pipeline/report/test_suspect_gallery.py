"""The gallery of suspects shows the nearest training images of both classes."""

from dataclasses import replace

import numpy as np
import torch
from suspect_runs import with_suspects

from pipeline.report.galleries import GALLERY_SIZE
from pipeline.report.suspect_gallery import build_suspect_gallery


def nearest_ids(run, query: torch.Tensor, label: int) -> list[str]:
    """Return the ids of the two nearest training images of a class, one distance at a time."""
    distances = []
    for row, vector in enumerate(run.gallery.vectors):
        if int(run.gallery.labels[row]) == label:
            distances.append((float((query - vector).norm()), run.data.train.ids[row]))
    return [image for _, image in sorted(distances)[:2]]


def test_each_suspect_has_the_nearest_images_of_both_classes(good_report):
    run = with_suspects(good_report.runs[0], {"test": [0.4], "val": [0.2]})
    gallery = build_suspect_gallery(run)
    val, test = gallery["images"]
    assert (val["label"], val["suggested"], val["self_confidence"]) == ("cat", "dog", "20.0%")
    assert gallery["total"] == 2
    assert gallery["checked"] == len(run.images) + len(run.data.validation)
    for image, query in ((val, run.validation.vectors[0]), (test, run.test.vectors[0])):
        expected = nearest_ids(run, query, 0) + nearest_ids(run, query, 1)
        assert [neighbour["id"] for neighbour in image["nearest"]] == expected
        assert [neighbour["label"] for neighbour in image["nearest"]] == ["cat"] * 2 + ["dog"] * 2


def test_many_suspects_are_counted_but_not_all_shown(good_report):
    run = with_suspects(good_report.runs[0], {"test": np.linspace(0.01, 0.4, 30).tolist()})
    gallery = build_suspect_gallery(run)
    assert (len(gallery["images"]), gallery["total"]) == (GALLERY_SIZE, 30)
    assert gallery["images"][0]["self_confidence"] == "1.0%"


def test_a_fold_shows_its_own_training_images(good_report):
    """The second fold tests the same images with a gallery in another order."""
    run = with_suspects(good_report.runs[0], {"test": [0.4]})
    other = replace(run, gallery=replace(run.gallery, vectors=run.gallery.vectors.flip(0)))
    pooled = replace(run, folds=(other, run), validation=None)
    pooled.evaluation.evidence.pop("val")
    image = build_suspect_gallery(pooled)["images"][0]
    expected = nearest_ids(other, run.test.vectors[0], 0)
    assert [neighbour["id"] for neighbour in image["nearest"]][:2] == expected
    assert expected != nearest_ids(run, run.test.vectors[0], 0)
