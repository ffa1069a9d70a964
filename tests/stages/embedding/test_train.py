"""Training loop: learning, determinism, resuming, best epoch and errors."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from stages.embedding.best_epoch import is_kept
from stages.embedding.inputs import training_input
from stages.embedding.schedule import augmentation_strength
from stages.embedding.train import Step, train_embedding
from stages.embedding.validation import evenly_spaced_subset, validate, validate_held_out
from stages.errors import PipelineError, SettingsError
from stages.network.digest import state_digest
from stages.network.initialization import new_network
from stages.records import EpochLog, Split, TrainingState
from stages.settings import EmbedSettings

CPU = torch.device("cpu")
SHORT = EmbedSettings(dim=16, epochs=3, images_per_class=4)


def test_training_improves_validation_scores(digit_split):
    train, validation = digit_split(slice(0, 600)), digit_split(slice(600, 800))
    settings = EmbedSettings(epochs=15)
    gallery = evenly_spaced_subset(train, 1000)
    knn_before, triplets_before = validate(
        new_network(train, settings), gallery, validation, device=CPU
    )
    logs: list[EpochLog] = []
    trained = train_embedding(train, validation, settings, device=CPU, on_epoch=logs.append)
    knn_after, triplets_after = validate(trained.network, gallery, validation, device=CPU)
    assert triplets_before < 0.93 < 0.97 < triplets_after
    assert knn_after >= max(knn_before, 0.97)
    assert [log.epoch for log in logs] == list(range(1, 16))
    assert tuple(logs) == trained.history
    highest = max(log.val_knn for log in logs)
    kept = [log.epoch for log in logs if is_kept(log.val_knn, highest, 200)]
    assert trained.epoch == kept[-1]
    log = logs[trained.epoch - 1]  # the network has the weights of the kept epoch
    assert (knn_after, triplets_after) == pytest.approx((log.val_knn, log.val_triplet))
    assert logs[-1].active_share < logs[0].active_share


@pytest.mark.slow
def test_conv_deep_learns(digit_split):
    train, validation = digit_split(slice(0, 300)), digit_split(slice(300, 400))
    settings = replace(SHORT, network="conv-deep", epochs=5)
    history = train_embedding(train, validation, settings, device=CPU).history
    assert history[-1].val_triplet > max(0.95, history[0].val_triplet)
    assert history[-1].val_knn > 0.9


def test_weights_depend_on_the_seed_only(digit_split):
    train, validation = digit_split(slice(0, 200)), digit_split(slice(200, 260))

    def digest(seed: int) -> str:
        settings = replace(SHORT, seed=seed)
        network = train_embedding(train, validation, settings, device=CPU).network
        return state_digest(network.state_dict())

    first = digest(0)
    assert digest(0) == first
    assert digest(1) != first


@pytest.mark.parametrize("stop", [1, 5, 7])  # in the first epoch, at its end, in a later epoch
def test_resumed_run_equals_uninterrupted_run(digit_split, stop):
    train, validation = digit_split(slice(0, 200)), digit_split(slice(200, 260))
    whole = train_embedding(train, validation, SHORT, device=CPU)
    states: list[TrainingState] = []

    def stop_at_step(step: Step) -> bool:
        if step.done == stop:
            states.append(copy.deepcopy(step.state()))  # its tensors are the live ones
        return step.done == stop

    train_embedding(train, validation, SHORT, device=CPU, on_step=stop_at_step)
    torch.rand(7)  # draws between the two runs must not matter
    resumed = train_embedding(train, validation, SHORT, device=CPU, state=states[0])
    assert state_digest(resumed.network.state_dict()) == state_digest(whole.network.state_dict())
    assert [vars(log) for log in resumed.history] == [vars(log) for log in whole.history]
    assert resumed.epoch == whole.epoch


@pytest.mark.parametrize("augment", [True, False])
def test_augmentation_decreases_step_by_step(digit_split, monkeypatch, augment):
    strengths = []

    def record(*arguments: object, strength: float, **options: object) -> torch.Tensor:
        strengths.append(strength)
        return training_input(*arguments, strength=strength, **options)

    monkeypatch.setattr("stages.embedding.train.training_input", record)
    settings = replace(SHORT, augment=augment)
    train_embedding(digit_split(slice(0, 500)), None, settings, device=CPU)
    if augment:
        assert strengths == sorted(strengths, reverse=True)
        assert strengths[0] == 1 > strengths[-1] > augmentation_strength(1, 1, 500)
    else:
        assert set(strengths) == {0}


def test_last_epoch_is_kept_without_validation(digit_split):
    trained = train_embedding(digit_split(slice(0, 100)), None, SHORT, device=CPU)
    assert trained.epoch == 3
    assert trained.history[-1].val_knn is None


def test_epochs_without_validation_neither_win_nor_count_for_patience(digit_split):
    train, validation = digit_split(slice(0, 100)), digit_split(slice(200, 260))
    settings = replace(SHORT, epochs=40, patience=3, lr=1e-6)
    trained = train_embedding(train, validation, settings, device=CPU)
    validated = [log.epoch for log in trained.history if log.val_knn is not None]
    assert trained.epoch in validated
    assert validated == list(range(4, len(trained.history) + 1, 4))


def test_loss_that_is_not_finite_raises(digit_split):
    train = digit_split(slice(0, 100))

    def poison(step: Step) -> None:
        step.state().network["project.weight"].fill_(math.nan)

    with pytest.raises(PipelineError, match=r"lr 0\.003: .* nan at step 2") as raised:
        train_embedding(train, None, SHORT, device=CPU, on_step=poison)
    assert raised.value.field == "lr"


def test_impossible_batches_raise(digit_split):
    settings = EmbedSettings(classes_per_batch=11)
    with pytest.raises(SettingsError, match="classes_per_batch 11") as raised:
        train_embedding(digit_split(slice(0, 100)), None, settings, device=CPU)
    assert raised.value.field == "classes_per_batch"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_cuda(digit_split):
    train, validation = digit_split(slice(0, 200)), digit_split(slice(200, 260))
    trained = train_embedding(train, validation, SHORT, device=torch.device("cuda"))
    assert all(math.isfinite(log.loss) for log in trained.history)
    assert next(trained.network.parameters()).is_cuda


def select_classes(split: Split, classes: set[int]) -> Split:
    chosen = [row for row, label in enumerate(split.labels.tolist()) if label in classes]
    return split.select(torch.tensor(chosen))


def is_near(log: EpochLog, recalls: list[float], count: int) -> bool:
    """Return True if a recall is at most one standard error below the highest one."""
    highest = max(recalls)
    return highest - log.val_recall <= math.sqrt(highest * (1 - highest) / count)


def test_epoch_is_chosen_on_held_out_classes(digit_split):
    everything = digit_split(slice(0, 60))
    train, held_out = (select_classes(everything, part) for part in ({0, 1, 3}, {2, 8, 9}))
    settings = replace(SHORT, epochs=3, lr=1e-2)
    inputs = {"device": CPU, "gallery": everything, "held_out": held_out}
    states: list[TrainingState] = []

    def stop_at_step_2(step: Step) -> bool:
        if step.done == 2:
            states.append(copy.deepcopy(step.state()))
        return bool(states)

    validation = digit_split(slice(200, 230))
    trained = train_embedding(train, validation, settings, **inputs)
    recalls = [log.val_recall for log in trained.history]
    assert None not in recalls and len(set(recalls)) > 1
    kept = trained.history[trained.epoch - 1]
    assert kept.val_knn is not None
    allowed = [log.epoch for log in trained.history if is_near(log, recalls, len(held_out))]
    assert trained.epoch == max(allowed)
    assert validate_held_out(trained.network, held_out, device=CPU) == kept.val_recall
    train_embedding(train, validation, settings, **inputs, on_step=stop_at_step_2)
    resumed = train_embedding(train, validation, settings, **inputs, state=states[0])
    assert [vars(log) for log in resumed.history] == [vars(log) for log in trained.history]
    assert resumed.epoch == trained.epoch


def test_held_out_classes_need_no_validation_images(digit_split):
    everything = digit_split(slice(0, 40))
    train, held_out = (select_classes(everything, part) for part in ({0, 1}, {2, 8}))
    settings = replace(SHORT, epochs=20, patience=2, lr=1e-6)
    trained = train_embedding(train, None, settings, device=CPU, held_out=held_out)
    validated = [log.epoch for log in trained.history if log.validated]
    assert trained.epoch in validated and validated == list(range(2, len(trained.history) + 1, 2))
    assert all(log.val_knn is None for log in trained.history)
