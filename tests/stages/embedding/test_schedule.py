"""Schedule of stage one: learning rate, epochs and validated epochs."""

from typing import Any

import pytest
import torch

from stages.embedding.schedule import (
    augmentation_strength,
    is_validated,
    learning_rate_factor,
    plan_training,
)
from stages.settings import EmbedSettings


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 7, 100])
def test_learning_rate_rises_to_its_peak_and_then_falls(steps):
    factors = [learning_rate_factor(step, steps) for step in range(steps + 1)]
    peak = factors.index(max(factors))
    assert max(factors) == 1
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_learning_rate_ends_at_zero():
    assert learning_rate_factor(0, 100) == 0.2
    assert learning_rate_factor(0, 100, from_library=True) == 0.05
    assert learning_rate_factor(100, 100) == 0


def plan(images_per_class: int, **options: Any) -> tuple[int, int, int]:
    """Return P, K and the number of epochs for 10 classes."""
    labels = torch.arange(10).repeat_interleave(images_per_class)
    batches, epochs = plan_training(labels, EmbedSettings(**options))
    return batches.classes_per_batch, batches.images_per_class, epochs


def test_small_data_sets_get_more_epochs():
    assert [plan(16), plan(160), plan(16_000)] == [(10, 16, 300), (10, 16, 30), (10, 16, 15)]


def test_conv_deep_gets_three_times_the_epochs_unless_they_are_given():
    assert plan(160, network="conv-deep") == (10, 16, 90)
    assert plan(160, network="conv-deep", epochs=7) == (10, 16, 7)


def test_pretrained_trunks_get_small_batches_and_few_epochs_unless_frozen():
    pretrained = {"network": "torchvision:resnet18", "weights": "default"}
    assert plan(16, **pretrained) == (4, 8, 10)
    assert plan(16, **pretrained, trunk="frozen") == (10, 16, 400)


@pytest.mark.parametrize("epochs", [1, 3, 19, 20, 63, 200])
def test_about_ten_epochs_and_the_last_are_validated(epochs):
    validated = [epoch for epoch in range(1, epochs + 1) if is_validated(epoch, epochs)]
    assert validated[-1] == epochs
    assert min(epochs, 10) <= len(validated) <= 20
    gaps = [b - a for a, b in zip([0, *validated[:-1]], validated, strict=True)]
    assert max(gaps) == gaps[0]


@pytest.mark.parametrize(
    ("images", "final"), [(2, 1), (300, 1), (3_000, 0.5), (30_000, 0), (10**9, 0)]
)
def test_more_images_are_augmented_less_in_the_end(images, final):
    assert augmentation_strength(0, 8, images) == 1
    assert augmentation_strength(4, 8, images) == pytest.approx((1 + final) / 2)
    assert augmentation_strength(8, 8, images) == pytest.approx(final)
