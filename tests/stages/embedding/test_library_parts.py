"""Objects of pytorch-metric-learning by name: parameters, and errors."""

import sys

import pytest
import torch
import torch.nn.functional as F
from library_classes import ABSTRACT, LOSSES, MINERS, UNUSABLE

from stages.embedding.library_loss import new_library_loss
from stages.errors import SettingsError
from stages.settings import EmbedSettings

pytest.importorskip("pytorch_metric_learning")


def assert_rejected(field, *texts, **changes):
    with pytest.raises(SettingsError) as raised:
        new_library_loss(EmbedSettings(**changes), torch.arange(3))
    assert raised.value.field == field
    for text in texts:
        assert text in str(raised.value)


def test_every_class_is_named():
    from pytorch_metric_learning import losses, miners

    found = {name for name, kind in vars(losses).items() if isinstance(kind, type)}
    assert found - {*LOSSES, *UNUSABLE, *ABSTRACT} == set()
    found = {name for name, kind in vars(miners).items() if isinstance(kind, type)}
    assert found - {*MINERS, "BaseMiner", "EmbeddingsAlreadyPackagedAsTriplets"} == set()


@pytest.mark.parametrize("name", UNUSABLE)
def test_loss_that_cannot_be_used_says_why(name):
    assert_rejected("loss", name, "cannot be used", loss=f"pml:{name}")


def test_parameters_that_are_objects():
    options = {
        "distance": {"name": "LpDistance", "p": 1, "normalize_embeddings": False},
        "reducer": "MeanReducer",
        "margin": 3,
    }
    loss = new_library_loss(
        EmbedSettings(loss="pml:TripletMarginLoss", loss_options=options), torch.arange(4)
    )
    vectors = F.normalize(torch.tensor([[1.0, 2], [2, 1], [-1, 1]]))
    distances = torch.cdist(vectors, vectors, p=1)
    costs = [distances[0, 1] - distances[a, 2] + 3 for a in (0, 1)]
    expected = sum(max(0.0, cost.item()) for cost in costs) / 2
    assert loss(vectors, torch.tensor([0, 0, 1])).item() == pytest.approx(expected, abs=1e-6)
    assert expected > 0


@pytest.mark.parametrize(
    ("field", "texts", "changes"),
    [
        ("loss", ["pml:SupConLoss"], {"loss": "pml:SupCon"}),
        ("loss", ["BaseMetricLossFunction"], {"loss": "pml:BaseMetricLossFunction"}),
        (
            "mining",
            ["pml:MultiSimilarityMiner"],
            {"loss": "pml:SupConLoss", "mining": "pml:MultiSimilarity"},
        ),
        (
            "mining",
            ["sorted by triplet"],
            {"loss": "pml:SupConLoss", "mining": "pml:EmbeddingsAlreadyPackagedAsTriplets"},
        ),
        (
            "loss_options",
            ["no parameter alpha", "temperature, ", "distance", "reducer"],
            {"loss": "pml:SupConLoss", "loss_options": {"alpha": 1}},
        ),
        (
            "mining_options",
            ["no parameter alpha", "epsilon"],
            {
                "loss": "pml:SupConLoss",
                "mining": "pml:MultiSimilarityMiner",
                "mining_options": {"alpha": 1},
            },
        ),
        ("loss_options", ["needs Tn, margin"], {"loss": "pml:RankedListLoss"}),
        ("loss_options", ["needs loss"], {"loss": "pml:CrossBatchMemory"}),
        (
            "loss_options",
            ["num_classes", "leave it out"],
            {"loss": "pml:ArcFaceLoss", "loss_options": {"num_classes": 7}},
        ),
        (
            "loss_options",
            ["CosineSimilarity"],
            {"loss": "pml:SupConLoss", "loss_options": {"distance": "Cosine"}},
        ),
        (
            "loss_options",
            ["no parameter q", "normalize_embeddings"],
            {
                "loss": "pml:SupConLoss",
                "loss_options": {"distance": {"name": "LpDistance", "q": 1}},
            },
        ),
        (
            "loss_options",
            ["distance is 3"],
            {"loss": "pml:SupConLoss", "loss_options": {"distance": 3}},
        ),
        (
            "loss_options",
            ["rejects"],
            {"loss": "pml:PNPLoss", "loss_options": {"variant": "X"}},
        ),
        (
            "loss_options",
            ["ProxyAnchorLoss"],
            {"loss": "pml:CrossBatchMemory", "loss_options": {"loss": "ProxyAnchorLoss"}},
        ),
        (
            "loss",
            ["TypeError"],
            {"loss": "pml:SupConLoss", "loss_options": {"temperature": "warm"}},
        ),
        (
            "loss",
            ["not finite"],
            {"loss": "pml:TripletMarginLoss", "loss_options": {"margin": 1e300}},
        ),
        (
            "loss",
            ["reducer"],
            {"loss": "pml:SupConLoss", "loss_options": {"reducer": "DoNothingReducer"}},
        ),
        (
            "loss",
            ["pml:MultiSimilarityMiner", "not supported"],
            {"loss": "pml:PNPLoss", "mining": "pml:MultiSimilarityMiner"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_name_or_parameter_is_rejected(field, texts, changes):
    assert_rejected(field, *texts, **changes)


def test_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    assert_rejected("loss", "pip install pytorch-metric-learning", loss="pml:SupConLoss")
