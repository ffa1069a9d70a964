"""Standardisation of vectors, and its inverse in the weights of the head."""

import numpy as np
import pytest
import torch
from clusters import make_clusters, standardise

from stages.classifier.standardisation import Standardisation
from stages.network.head import Head


def test_vectors_have_mean_0_and_variance_1():
    vectors = make_clusters(200).vectors
    ours = Standardisation.of(vectors).apply(vectors).numpy()
    np.testing.assert_allclose(ours, standardise(vectors.double().numpy()), atol=1e-5)
    np.testing.assert_allclose(ours.mean(axis=0), 0, atol=1e-5)
    assert np.square(ours).mean() == pytest.approx(1, abs=1e-5)


def test_folded_head_computes_the_same():
    vectors = make_clusters(200, dim=8).vectors * 0.01 + 0.3
    standardisation = Standardisation.of(vectors)
    head = Head(8, 3).eval()
    with torch.inference_mode():
        expected = head(standardisation.apply(vectors))
        standardisation.fold_into(head)
        assert head(vectors).allclose(expected, atol=1e-4)


def test_equal_vectors_stay_finite():
    vectors = torch.full((5, 4), 0.5)
    standardised = Standardisation.of(vectors).apply(vectors)
    assert standardised.abs().max() < 1e-5
