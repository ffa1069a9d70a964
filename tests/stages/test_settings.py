"""Settings of a wrong type or out of range raise an error that names the field and the value."""

from typing import Any

import pytest

from stages.errors import SettingsError
from stages.settings import MAX_DIM, ClassifySettings, EmbedSettings, ReadSettings

NAN, INF = float("nan"), float("inf")

REJECTED: list[tuple[type, str, Any]] = [
    *((EmbedSettings, "dim", value) for value in (0, -1, MAX_DIM + 1, 10**8, 1.5, True, "8")),
    *((EmbedSettings, "epochs", value) for value in (0, 10**20, 1.5, True, [1], {})),
    *((EmbedSettings, "patience", value) for value in (0, 10**20, 2.0)),
    *((EmbedSettings, "lr", value) for value in (0.0, -1.0, 1.5, NAN, INF, "0.1", None, True)),
    *((EmbedSettings, "margin", value) for value in (0.0, NAN, INF, -INF, 2.1, "soft")),
    *((EmbedSettings, "seed", value) for value in (-1, 2**32, 0.0, None)),
    *((EmbedSettings, "classes_per_batch", value) for value in (1, 2.5, "4")),
    *((EmbedSettings, "images_per_class", value) for value in (1, 2.5, "4")),
    *((EmbedSettings, "augment", value) for value in (1, "yes", None)),
    *((EmbedSettings, "network", value) for value in (None, 3, b"conv", "")),
    *((EmbedSettings, "trunk", value) for value in (None, "last-", "last-0", "last--1")),
    *((ReadSettings, "size", value) for value in (3, 1025, 8.0, True, "64")),
    *((ReadSettings, "channels", value) for value in (0, 2, 4, True, 1.0)),
    *((ReadSettings, "val", value) for value in (-0.1, 0.9, NAN, INF, "0.1", True)),
    *((ReadSettings, "test", value) for value in (-0.1, 0.9, NAN, INF, None)),
    *((ReadSettings, "max_unreadable", value) for value in (-0.1, 1.1, NAN, False)),
    *((ReadSettings, "unseen_classes", value) for value in (1, -2, 1.0, 2.5, -0.1, NAN, INF)),
    *((ReadSettings, "unseen_classes", value) for value in ("3", None, True)),
    *((ReadSettings, "split_seed", value) for value in (0.5, "1", None)),
    *((ClassifySettings, "max_iter", value) for value in (0, 10**20, 1.5, None)),
    *((ClassifySettings, "dropout", value) for value in (-0.1, 1.0, NAN, INF, "0.5")),
]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("loss", {"loss": "pml:a b"}),
        ("margin", {"loss": "pml:SupConLoss", "margin": None}),
        ("distance", {"loss": "pml:SupConLoss", "distance": "squared"}),
        ("mining", {"loss": "pml:SupConLoss", "mining": "random"}),
        ("loss_options", {"loss_options": {"margin": 1}}),
        ("loss_options", {"loss": "pml:X", "loss_options": {"margin": [NAN]}}),
        ("loss_options", {"loss": "pml:X", "loss_options": {"margin": {"a": 10**20}}}),
        ("loss_options", {"loss": "pml:X", "loss_options": {1: 2}}),
        ("mining_options", {"loss": "pml:X", "mining": "pml:Y", "mining_options": {"a": print}}),
    ],
)
def test_loss_that_does_not_fit_the_other_settings_is_rejected(field, changes):
    with pytest.raises(SettingsError) as raised:
        EmbedSettings(**changes)
    assert raised.value.field == field


@pytest.mark.parametrize(("settings", "field", "value"), REJECTED)
def test_invalid_value_names_field_and_value(settings, field, value):
    with pytest.raises(SettingsError) as error:
        settings(**{field: value})
    assert error.value.field == field
    assert str(value) in str(error.value)


def test_bounds_are_accepted():
    EmbedSettings(dim=MAX_DIM, epochs=1_000_000, margin=2, lr=1)  # whole numbers for shares too
    ReadSettings(val=0, test=0, max_unreadable=1, size=4, unseen_classes=2)
    ClassifySettings(dropout=0, max_iter=1_000_000)


def test_settings_of_earlier_versions_with_a_loss_of_a_library_are_accepted():
    EmbedSettings(loss="pml:SupConLoss", mining="batch-all", margin=0.1)
    with pytest.raises(SettingsError, match="belongs to the triplet loss"):
        EmbedSettings(loss="pml:SupConLoss", margin=0.3)
