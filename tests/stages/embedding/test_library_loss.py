"""Losses of pytorch-metric-learning: values, learning and resuming."""

import copy

import pytest
import torch
from factories import make_dataset, unit_vectors
from library_classes import LOSSES, MINERS

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


@pytest.fixture(scope="module")
def train():
    return make_dataset(("a", "b", "c")).train


def pml(loss, **changes):
    """Return settings with a loss of the library, and the options it cannot be built without."""
    return EmbedSettings(
        **{**SHORT, "loss": f"pml:{loss}", "loss_options": NEEDED.get(loss), **changes}
    )


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


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "pml:ProxyAnchorLoss"},
        {"loss": "pml:ArcFaceLoss", "mining": "pml:DistanceWeightedMiner"},  # draws random numbers
        {"loss": "pml:CrossBatchMemory", "loss_options": QUEUE},
        {"loss": "pml:DynamicSoftMarginLoss"},  # keeps a tensor that is no buffer
        {"loss": "pml:MultiSimilarityLoss", "loss_options": {"alpha": 2.3}},
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
    assert state_digest(last[0].loss) == state_digest(states[1].loss)
    is_trained = state_digest(states[1].loss) != state_digest(states[0].loss)
    assert is_trained == (changes["loss"] != "pml:MultiSimilarityLoss")  # has no weights
    assert state_digest(resumed.network.state_dict()) == state_digest(whole.network.state_dict())
    assert [vars(log) for log in resumed.history] == [vars(log) for log in whole.history]


def test_parameters_keep_double_precision_in_the_state():
    settings = pml(
        "TripletMarginLoss", mining="pml:HDCMiner", mining_options={"filter_percentage": 0.3}
    )
    loss = LibraryLoss(settings, torch.arange(3))
    loss.restore(loss.saved_state())
    assert loss.miner.filter_percentage == 0.3


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


def test_queue_smaller_than_a_batch_is_rejected_before_training(train):
    settings = pml("CrossBatchMemory", loss_options={**QUEUE, "memory_size": 11})
    with pytest.raises(SettingsError, match="12 images") as raised:
        train_embedding(train, None, settings, device=CPU, on_step=lambda _: pytest.fail("trained"))
    assert raised.value.field == "loss"
