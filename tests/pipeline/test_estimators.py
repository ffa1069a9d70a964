"""The scikit-learn estimators: results of the commands, and use inside scikit-learn's tools."""

import copy
import csv
import inspect
import os
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    StratifiedShuffleSplit,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline

from pipeline.checkpoint import load_classifier, load_embedding
from pipeline.context import RunContext
from pipeline.data.folder import list_folder
from pipeline.estimators import EmbedThenClassify, TripletEmbedding
from pipeline.tensor_files import read_header
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
TINY = {"dim": 8, "epochs": 2, "device": "cpu", "precision": "fp32"}
OPTIONS = ("--dim", 8, "--epochs", 2, "--device", "cpu", "--precision", "fp32", "--quiet")
ESTIMATORS = [TripletEmbedding, EmbedThenClassify]


@pytest.fixture(scope="module")
def images(digits):
    """Images of the digits, uint8 (150, 8, 8), and their labels."""
    return digits[0][:150], digits[1][:150]


@pytest.fixture(scope="module")
def classifier(images):
    """A fitted classifier, which no test changes."""
    return EmbedThenClassify(**TINY).fit(*images)


@pytest.fixture
def files(digit_folder):
    """Paths of 300 images and their labels as text, in the order in which the commands read."""
    listed, _ = list_folder(digit_folder)
    return [file.path for file in listed], [file.entry.label for file in listed]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_parameters_are_the_fields_of_the_settings(estimator):
    parameters = inspect.signature(estimator).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    expected = {"cache": None, "quiet": True}
    kinds = [ReadSettings, EmbedSettings, RunContext]
    if estimator is EmbedThenClassify:
        kinds.append(ClassifySettings)
    for kind in kinds:
        for field in fields(kind):
            expected.setdefault(field.name, field.default)
    for name in ("test", "unseen_classes", "max_unreadable", "root", "download", "given"):
        del expected[name]  # X is no data source, and all of it is for training
    del expected["jpeg"]  # always the default
    assert defaults == expected
    assert estimator().get_params() == expected


def test_results_equal_the_commands(files, digit_folder, run_command, tmp_path):
    assert run_command("embed", digit_folder, "--test", 0, *OPTIONS)[0] == 0
    assert run_command("classify", "--device", "cpu", "--quiet")[0] == 0
    paths, labels = files
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    for X in (paths, pixels):
        embedding = TripletEmbedding(**TINY).fit(X, labels)
        classifier = EmbedThenClassify(**TINY).fit(X, labels)
        embedding.save(tmp_path / "e.safetensors", force=True)
        classifier.save(tmp_path / "c.safetensors", force=True)
        for file, name in (("e", "embedding"), ("c", "classifier")):
            header = read_header(tmp_path / f"{file}.safetensors")
            assert header.digest == read_header(Path(f"checkpoints/{name}.safetensors")).digest
    assert run_command("predict", digit_folder, "--out", "labels.csv", "--device", "cpu")[0] == 0
    with Path("labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == paths
    assert classifier.predict(paths).tolist() == [row["label"] for row in rows]
    for name, values in (
        ("probability", classifier.predict_proba(paths).max(axis=1)),
        ("typicality", classifier.typicality(paths)),
    ):
        np.testing.assert_allclose(values, [float(row[name]) for row in rows], atol=2e-6)


def test_arrays_and_paths_have_the_same_vectors(files):
    paths, labels = files
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    embedding = TripletEmbedding(**TINY).fit(pixels, labels)
    vectors = embedding.transform(pixels)
    assert vectors.dtype == np.float32 and vectors.shape == (300, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for X in (
        paths,
        [Path(path) for path in paths],
        np.array(paths),
        np.array(paths, dtype=object),
        pd.Series(paths),
        pixels[..., None],
        np.repeat(pixels[..., None], 3, axis=3),
        list(pixels),
        np.asfortranarray(pixels),
    ):
        assert np.array_equal(embedding.transform(X), vectors), type(X)


def test_files_of_other_sizes_and_colours(tmp_path):
    generator = np.random.default_rng(0)
    paths = []
    for number in range(12):
        shape = (9 + number, 30, 3) if number % 3 else (20, 12 + number)
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    embedding = TripletEmbedding(**TINY, size=16).fit(paths, [0, 1] * 6)
    assert embedding.transform(paths[:5]).shape == (5, 8)


@pytest.mark.parametrize(
    "classes",
    [
        ("b", "a", "c"),
        (-1, -20, 10),
        (True, False),
        (2.0, 10.0, 1.0),
        (np.uint8(200), np.uint8(3), np.uint8(7)),
    ],
    ids=str,
)
@pytest.mark.parametrize("container", [np.array, list, pd.Series])
def test_labels_keep_their_type(images, classes, container):
    number = images[1] % len(classes)
    y = container([classes[index] for index in number])
    classifier = EmbedThenClassify(**TINY, augment=False).fit(images[0], y)
    expected = np.unique(np.asarray(y))
    assert classifier.classes_.tolist() == expected.tolist()
    predicted, probability = classifier.predict(images[0]), classifier.predict_proba(images[0])
    assert predicted.dtype == expected.dtype
    assert probability.shape == (150, len(classes))
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-12)
    # The columns belong to the labels: the probability of the own label is usually high.
    own = np.searchsorted(expected, np.asarray(y))
    right = probability[np.arange(150), own]
    assert right.mean() > 1.3 / len(classes)
    assert classifier.score(images[0], y) == np.mean(predicted == np.asarray(y))


def test_columns_are_in_the_order_of_the_sorted_labels(images):
    """In a checkpoint, -1 comes after 10."""
    y = np.where(images[1] < 5, -1, 10)
    classifier = EmbedThenClassify(**TINY).fit(images[0], y)
    assert classifier.classes_.tolist() == [-1, 10]
    assert classifier._embedder.classes == ("10", "-1")
    assert classifier.score(images[0], y) > 0.8


def test_bad_images_and_labels_are_rejected(images):
    X, y = images
    for estimator in ESTIMATORS:
        with pytest.raises(ValueError, match="float64 instead of uint8"):
            estimator(**TINY).fit(X / 16, y)
        with pytest.raises(ValueError, match="1 class"):
            estimator(**TINY).fit(X, np.zeros_like(y))
        with pytest.raises(ValueError, match="two images of one class"):
            estimator(**TINY).fit(X[:10], np.arange(10))


@pytest.mark.parametrize(
    "name, value",
    [
        *(("dim", 0), ("margin", -1), ("network", "vgg"), ("size", 2), ("val", 2), ("seed", -1)),
        *(("device", "tpu"), ("precision", "fp8"), ("threads", 0), ("max_iter", 0), ("mining", 3)),
        ("threads", "2"),
    ],
)
def test_bad_parameters_are_named(images, name, value):
    estimator = EmbedThenClassify().set_params(**{name: value})
    with pytest.raises(ValueError, match=f"^{name} "):
        estimator.fit(*images)


def test_an_unreadable_image_is_an_error(files, tmp_path):
    paths, labels = files
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"bad\.png: not an image"):
        TripletEmbedding(**TINY).fit([*paths, bad], [*labels, "0"])
    embedding = TripletEmbedding(**TINY).fit(paths, labels)
    for path, reason in (
        (bad, "not an image"),
        ("absent.png", "no such file"),
        (tmp_path, "folder"),
    ):
        with pytest.raises(ValueError, match=f"{Path(path).name}: .*{reason}"):
            embedding.transform([*paths[:130], path])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_estimator_that_is_not_fitted(estimator, images, tmp_path):
    methods = {"transform", "predict", "predict_proba", "typicality"}
    for name in methods & set(dir(estimator)):
        with pytest.raises(NotFittedError):
            getattr(estimator(), name)(images[0])
    with pytest.raises(NotFittedError):
        estimator().save(tmp_path / "x.safetensors")


def test_copies_predict_the_same(classifier, images, tmp_path):
    expected = classifier.predict_proba(images[0])
    joblib.dump(classifier, tmp_path / "c.joblib")
    copies = [
        pickle.loads(pickle.dumps(classifier)),
        copy.deepcopy(classifier),
        joblib.load(tmp_path / "c.joblib"),
    ]
    for other in copies:
        assert np.array_equal(other.predict_proba(images[0]), expected)
    assert not hasattr(clone(classifier), "checkpoint_")
    assert clone(classifier).get_params() == classifier.get_params()


@pytest.mark.slow
def test_a_pickled_estimator_predicts_the_same_in_another_process(classifier, images, tmp_path):
    (tmp_path / "c.pickle").write_bytes(pickle.dumps(classifier))
    np.save(tmp_path / "X.npy", images[0])
    code = (
        "import pickle, numpy as np\n"
        "classifier = pickle.load(open('c.pickle', 'rb'))\n"
        "np.save('p.npy', classifier.predict_proba(np.load('X.npy')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, check=True)
    assert np.array_equal(np.load(tmp_path / "p.npy"), classifier.predict_proba(images[0]))


def test_the_import_does_not_load_torch():
    code = "import sys, pipeline.estimators; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True)


def test_a_pipeline_is_cross_validated(images):
    model = make_pipeline(TripletEmbedding(**TINY), LogisticRegression())
    scores = cross_val_score(model, *images, cv=StratifiedKFold(3))
    assert scores.min() > 0.4
    names = model[:-1].fit(*images).get_feature_names_out()
    assert names.tolist() == [f"tripletembedding{column}" for column in range(8)]


def test_grid_search_chooses_parameters(images):
    """Numbers of a grid may be numpy's."""
    grid = {"margin": np.array([0.1, 0.3]), "epochs": np.array([1])}
    folds = StratifiedShuffleSplit(1, random_state=0)
    search = GridSearchCV(EmbedThenClassify(**TINY), grid, cv=folds, error_score="raise")
    search.fit(*images)
    assert set(search.best_params_) == {"margin", "epochs"}
    assert search.predict(images[0][:7]).shape == (7,)


def test_threads_do_not_change_each_other(images):
    """The commands change settings of the process, such as deterministic algorithms."""

    def fit_and_transform(seed: int) -> np.ndarray:
        return TripletEmbedding(**TINY, seed=seed).fit(*images).transform(images[0])

    torch.use_deterministic_algorithms(False)  # as outside the tests
    try:
        expected = [fit_and_transform(seed) for seed in range(2)]
        jobs = [joblib.delayed(fit_and_transform)(seed) for seed in range(2)]
        results = joblib.Parallel(n_jobs=2, backend="threading")(jobs)
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(True)
    assert np.array_equal(results, expected) and not np.array_equal(*expected)


@pytest.mark.slow
def test_grid_search_in_two_processes(files):
    grid = {"margin": [0.1]}
    results = []
    for jobs in (1, 2):
        search = GridSearchCV(
            EmbedThenClassify(**TINY), grid, cv=2, n_jobs=jobs, error_score="raise"
        )
        results.append(search.fit(*files).cv_results_["mean_test_score"])
    assert np.array_equal(*results)


@pytest.mark.parametrize("per_class", [2, 3])
def test_few_images_leave_none_for_validation(images, per_class):
    rows = np.concatenate([np.flatnonzero(images[1] == label)[:per_class] for label in range(4)])
    X, y = images[0][rows], images[1][rows]
    classifier = EmbedThenClassify(**TINY).fit(X, y)
    assert classifier.predict(X).shape == (4 * per_class,)
    assert np.isnan(classifier.typicality(X)).all()


def test_vectors_as_a_data_frame(images):
    embedding = TripletEmbedding(**TINY).set_output(transform="pandas")
    table = embedding.fit_transform(*images)
    assert list(table) == embedding.get_feature_names_out().tolist()
    assert table.shape == (150, 8)


def test_a_saved_checkpoint_is_not_replaced_without_force(classifier, images, tmp_path):
    path = tmp_path / "c.safetensors"
    assert classifier.save(path) == path
    with pytest.raises(FileExistsError, match="force"):
        classifier.save(path)
    path.write_bytes(b"other")
    classifier.save(str(path), force=True)
    assert load_classifier(path).record["counts"]["test"] == 0
    with pytest.raises(ValueError, match="folder"):
        classifier.save(tmp_path, force=True)
    embedding = TripletEmbedding(**TINY).fit(*images)
    assert load_embedding(embedding.save(tmp_path / "e.safetensors")).record["source"] == "X"


def test_messages_are_shown_on_request(images, capsys):
    EmbedThenClassify(**TINY).fit(*images)
    assert capsys.readouterr() == ("", "")
    EmbedThenClassify(**TINY, quiet=False).fit(*images)
    assert "classifier: weight decay" in capsys.readouterr().err


def test_decoded_images_are_kept_in_the_cache(files, tmp_path):
    paths, labels = files
    estimator = TripletEmbedding(**TINY, cache=tmp_path / "cache")
    first = estimator.fit(paths, labels).transform(paths)
    stores = sorted((tmp_path / "cache").iterdir())
    assert np.array_equal(estimator.fit(paths, labels).transform(paths), first)
    assert stores and sorted((tmp_path / "cache").iterdir()) == stores
