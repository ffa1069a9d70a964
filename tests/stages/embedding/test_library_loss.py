"""Losses of pytorch-metric-learning: values, learning, resuming and errors."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from factories import make_dataset, unit_vectors

from stages.embedding.library_loss import (
    RATE_FACTOR,
    LibraryLoss,
    library_batch_loss,
    new_library_loss,
)
from stages.embedding.loss import triplet_loss
from stages.embedding.sampler import BatchPlan
from stages.embedding.train import train_embedding
from stages.errors import CheckpointError, SettingsError
from stages.network.digest import state_digest
from stages.settings import EmbedSettings

pytest.importorskip("pytorch_metric_learning")

CPU = torch.device("cpu")
SHORT = {"dim": 8, "epochs": 3, "images_per_class": 4, "classes_per_batch": 3}
QUEUE = {"loss": "ContrastiveLoss", "memory_size": 20}
NEEDED = {
    "CrossBatchMemory": QUEUE,
    "RankedListLoss": {"margin": 0.4, "Tn": 10},
}
# `test_every_class_is_named` finds classes that a new version of the library adds.
LOSSES = [
    "AngularLoss",
    "ArcFaceLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
    "CrossBatchMemory",
    "DynamicSoftMarginLoss",
    "FastAPLoss",
    "GeneralizedLiftedStructureLoss",
    "HistogramLoss",
    "InstanceLoss",
    "IntraPairVarianceLoss",
    "LargeMarginSoftmaxLoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NPairsLoss",
    "NTXentLoss",
    "NormalizedSoftmaxLoss",
    "P2SGradLoss",
    "PNPLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "RankedListLoss",
    "SignalToNoiseRatioContrastiveLoss",
    "SmoothAPLoss",
    "SoftTripleLoss",
    "SphereFaceLoss",
    "SubCenterArcFaceLoss",
    "SupConLoss",
    "ThresholdConsistentMarginLoss",
    "TripletMarginLoss",
    "TupletMarginLoss",
]
UNUSABLE = [
    "ManifoldLoss",
    "MultipleLosses",
    "SelfSupervisedLoss",
    "VICRegLoss",
]
ABSTRACT = [
    "BaseLossWrapper",
    "BaseMetricLossFunction",
    "EmbeddingRegularizerMixin",
    "GenericPairLoss",
    "WeightRegularizerMixin",
]
MINERS = [
    "AngularMiner",
    "BatchEasyHardMiner",
    "BatchHardMiner",
    "DistanceWeightedMiner",
    "HDCMiner",
    "MultiSimilarityMiner",
    "PairMarginMiner",
    "TripletMarginMiner",
    "UniformHistogramMiner",
]


@pytest.fixture(scope="module")
def train():
    return make_dataset(("a", "b", "c")).train


def pml(loss, **changes):
    """Return settings with a loss of the library, and the options it cannot be built without."""
    return EmbedSettings(
        **{**SHORT, "loss": f"pml:{loss}", "loss_options": NEEDED.get(loss), **changes}
    )


def assert_rejected(field, *texts, **changes):
    with pytest.raises(SettingsError) as raised:
        new_library_loss(EmbedSettings(**changes), torch.arange(3))
    assert raised.value.field == field
    for text in texts:
        assert text in str(raised.value)


def test_triplet_margin_loss_equals_our_batch_all():
    labels = torch.arange(5).repeat_interleave(4)
    theirs = unit_vectors(20, 6, seed=3).double().requires_grad_()
    ours = theirs.detach().clone().requires_grad_()
    distance = {"name": "LpDistance", "normalize_embeddings": False}
    options = {"margin": 0.3, "distance": distance}
    loss = new_library_loss(pml("TripletMarginLoss", loss_options=options), torch.arange(5))
    value, expected = loss(theirs, labels), triplet_loss(ours, labels, margin=0.3)
    assert 0 < expected.active < expected.triplets
    assert value.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    value.backward()
    expected.loss.backward()
    assert ours.grad.norm() > 0.01
    torch.testing.assert_close(theirs.grad, ours.grad, atol=1e-6, rtol=0)


def test_every_class_is_named():
    from pytorch_metric_learning import losses, miners

    found = {name for name, kind in vars(losses).items() if isinstance(kind, type)}
    assert found - {*LOSSES, *UNUSABLE, *ABSTRACT} == set()
    found = {name for name, kind in vars(miners).items() if isinstance(kind, type)}
    assert found - {*MINERS, "BaseMiner", "EmbeddingsAlreadyPackagedAsTriplets"} == set()


@pytest.mark.parametrize(
    "settings",
    [
        *[pml(name) for name in LOSSES],
        *[pml("TripletMarginLoss", mining=f"pml:{name}") for name in MINERS],
        pml("CrossBatchMemory", loss_options={**QUEUE, "miner": "MultiSimilarityMiner"}),
        pml("MarginLoss", loss_options={"learn_beta": True, "num_classes": 3}),
    ],
    ids=lambda settings: f"{settings.loss} {settings.mining}",
)
def test_loss_trains_and_its_whole_state_is_known_before(train, settings):
    states = []

    def keep_state(step):
        states.append(copy.deepcopy(step.state().loss))
        return len(states) == 2

    trained = train_embedding(train, None, settings, device=CPU, on_step=keep_state)
    log = trained.history[0]
    assert log.active_share is None and 0.05 < log.mean_distance < 2
    before = new_library_loss(settings, torch.arange(3)).saved_state()
    assert states[-1].keys() == before.keys()
    assert [value.shape for value in states[-1].values()] == [v.shape for v in before.values()]
    names = new_library_loss(settings, torch.arange(3)).state_dict().keys()
    changed = {name for name in names if not torch.equal(states[0][name], states[-1][name])}
    assert changed == set(names)  # each proxy, weight and queue is trained


@pytest.mark.parametrize("name", UNUSABLE)
def test_loss_that_cannot_be_used_says_why(name):
    assert_rejected("loss", name, "cannot be used", loss=f"pml:{name}")


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "pml:ProxyAnchorLoss"},
        {"loss": "pml:ArcFaceLoss", "mining": "pml:DistanceWeightedMiner"},  # draws random numbers
        {"loss": "pml:CrossBatchMemory", "loss_options": QUEUE},
        {"loss": "pml:DynamicSoftMarginLoss"},  # keeps a tensor that is no buffer
    ],
    ids=lambda changes: changes["loss"],
)
def test_resumed_run_equals_uninterrupted_run(changes):
    stop = 5  # in the middle of the second epoch of 3 steps
    train = make_dataset(("a", "b", "c"), train=12).train
    settings = EmbedSettings(**{**SHORT, **changes})
    states, last = [], []

    def keep_state(step):
        if step.done in (stop, 9):
            states.append(copy.deepcopy(step.state()))

    def keep_last(step):
        last[:] = [step.state()]

    whole = train_embedding(train, None, settings, device=CPU, on_step=keep_state)
    torch.rand(7)  # draws between the two runs must not matter
    resumed = train_embedding(train, None, settings, device=CPU, state=states[0], on_step=keep_last)
    assert last[0].step == 9
    assert (
        state_digest(last[0].loss) == state_digest(states[1].loss) != state_digest(states[0].loss)
    )
    assert state_digest(resumed.network.state_dict()) == state_digest(whole.network.state_dict())
    assert [vars(log) for log in resumed.history] == [vars(log) for log in whole.history]


def test_state_without_the_weights_of_the_loss_is_rejected(train):
    states = []
    settings = pml("ProxyAnchorLoss")
    train_embedding(
        train, None, settings, device=CPU, on_step=lambda s: states.append(s.state()) or True
    )
    del states[0].loss["loss.proxies"]
    with pytest.raises(CheckpointError, match=r"loss: missing loss\.proxies"):
        train_embedding(train, None, settings, device=CPU, state=states[0])


def test_weights_of_a_loss_have_their_own_group_and_are_not_in_the_network(train):
    groups = []

    def keep_groups(step):
        groups.extend(step.state().optimiser["param_groups"])
        return True

    settings = pml("ProxyAnchorLoss", lr=1e-3)
    network = train_embedding(train, None, settings, device=CPU, on_step=keep_groups).network
    assert len(groups[-1]["params"]) == 1 and groups[-1]["weight_decay"] == 0
    assert groups[-1]["lr"] == pytest.approx(RATE_FACTOR * groups[0]["lr"])
    assert not any("prox" in name for name in network.state_dict())


def test_half_precision_vectors_are_computed_in_float32():
    vectors, labels = unit_vectors(12, 8, seed=1), torch.arange(3).repeat_interleave(4)
    loss = LibraryLoss(pml("SupConLoss"), torch.arange(3))
    half = vectors.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half, labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(half.float(), labels))


def test_weights_are_those_of_the_classes_that_are_trained_on():
    vectors, labels = unit_vectors(6, 8, seed=1), torch.arange(3).repeat_interleave(2)
    torch.manual_seed(2)
    expected = new_library_loss(pml("ProxyAnchorLoss"), torch.arange(3))(vectors, labels)
    classes = torch.tensor([1, 5, 8])  # the others are held out
    torch.manual_seed(2)
    loss = new_library_loss(pml("ProxyAnchorLoss"), classes)
    assert loss.loss.proxies.shape == (3, 8)
    assert torch.equal(loss(vectors, classes[labels]), expected)


def test_mean_distance_is_that_of_the_triplet_loss():
    vectors, labels = unit_vectors(12, 8, seed=1), torch.arange(3).repeat_interleave(4)
    loss = new_library_loss(pml("SupConLoss"), torch.arange(3))
    expected = triplet_loss(vectors, labels).mean_distance
    assert library_batch_loss(loss, vectors, labels).mean_distance == pytest.approx(expected)


def test_too_few_classes_in_a_parameter_are_found_before_training():
    options = {"learn_beta": True, "num_classes": 30}
    plan = BatchPlan(classes_per_batch=3, images_per_class=4, per_epoch=1)
    with pytest.raises(SettingsError, match="IndexError"):
        new_library_loss(pml("MarginLoss", loss_options=options), torch.arange(62), plan)


def test_trial_changes_no_random_numbers():
    plan = BatchPlan(classes_per_batch=3, images_per_class=4, per_epoch=1)
    torch.manual_seed(4)
    expected = LibraryLoss(pml("ProxyAnchorLoss"), torch.arange(3)).loss.proxies, torch.rand(3)
    torch.manual_seed(4)
    actual = (
        new_library_loss(pml("ProxyAnchorLoss"), torch.arange(3), plan).loss.proxies,
        torch.rand(3),
    )
    assert torch.equal(expected[0], actual[0]) and torch.equal(expected[1], actual[1])


def test_parameters_that_are_objects():
    options = {
        "distance": {"name": "LpDistance", "p": 1, "normalize_embeddings": False},
        "reducer": "MeanReducer",
        "margin": 3,
    }
    loss = new_library_loss(pml("TripletMarginLoss", loss_options=options), torch.arange(4))
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


def test_queue_smaller_than_a_batch_is_rejected_before_training(train):
    settings = pml("CrossBatchMemory", loss_options={**QUEUE, "memory_size": 11})
    with pytest.raises(SettingsError, match="12 images") as raised:
        train_embedding(train, None, settings, device=CPU, on_step=lambda _: pytest.fail("trained"))
    assert raised.value.field == "loss"


def test_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    assert_rejected("loss", "embedding-pipeline[losses]", loss="pml:SupConLoss")
