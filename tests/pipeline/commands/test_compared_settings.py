"""Shared settings apply to the networks, losses and mining modes that take them."""

import pytest

from pipeline.commands.compared_settings import check_shared, settings_of
from stages.errors import SettingsError
from stages.settings import EmbedSettings


@pytest.mark.parametrize(
    ("network", "weights", "trunk"),
    [
        ("conv", "none", "tune"),
        ("conv-deep", "none", "tune"),
        ("auto", "none", "tune"),
        ("efficientnet-lite0", "default", "frozen"),
        ("timm:resnet18", "default", "frozen"),
    ],
)
def test_weights_apply_to_networks_of_a_library(network, weights, trunk):
    shared = {"weights": "default", "trunk": "frozen", "dim": 32}
    settings = settings_of("network", network, shared)
    assert (settings.weights, settings.trunk, settings.dim) == (weights, trunk, 32)


def test_mining_and_parameters_apply_to_the_losses_that_take_them():
    shared = {"mining": "batch-hard", "margin": 0.3, "loss_options": {"temperature": 0.1}}
    triplet = settings_of("loss", "triplet", shared)
    other = settings_of("loss", "pml:SupConLoss", shared)
    assert (triplet.mining, triplet.margin, triplet.loss_options) == ("batch-hard", 0.3, None)
    assert (other.mining, other.loss_options) == ("semi-hard", {"temperature": 0.1})
    shared = {"mining": "pml:MultiSimilarityMiner", "mining_options": {"epsilon": 0.2}}
    triplet = settings_of("loss", "triplet", shared)
    other = settings_of("loss", "pml:SupConLoss", shared)
    assert (triplet.mining, triplet.mining_options) == ("semi-hard", None)
    assert (other.mining, other.mining_options) == (
        "pml:MultiSimilarityMiner",
        {"epsilon": 0.2},
    )


def test_parameters_by_name_apply_to_one_loss():
    options = {"pml:ArcFaceLoss": {"margin": 20}, "pml:SupConLoss": {"temperature": 0.2}}
    shared = {"loss_options": options}
    for name in ("triplet", "pml:ArcFaceLoss", "pml:SupConLoss", "pml:TripletMarginLoss"):
        assert settings_of("loss", name, shared).loss_options == options.get(name)
    assert settings_of("mining", "pml:BatchHardMiner", shared | {"loss": "pml:SupConLoss"}) == (
        EmbedSettings(
            loss="pml:SupConLoss", mining="pml:BatchHardMiner", loss_options={"temperature": 0.2}
        )
    )
    check_shared("loss", ["triplet", *options], shared)
    with pytest.raises(SettingsError, match="pml:ArcFaceLoss is not among") as raised:
        check_shared("loss", ["triplet", "pml:SupConLoss"], shared)
    assert raised.value.field == "loss_options"


def test_losses_share_the_trunk_that_is_given():
    shared = {"network": "conv", "trunk": "last-2"}
    assert settings_of("loss", "triplet", shared).trunk == "last-2"


@pytest.mark.parametrize(
    ("field", "value", "shared"),
    [
        ("network", "nonsense", {}),
        ("loss", "nonsense", {}),
        ("mining", "pml:MultiSimilarityMiner", {"loss": "triplet"}),
        ("mining", "batch-hard", {"loss": "pml:SupConLoss"}),
    ],
)
def test_value_that_does_not_fit_is_an_error(field, value, shared):
    with pytest.raises(SettingsError) as raised:
        settings_of(field, value, shared)
    assert raised.value.field == field
