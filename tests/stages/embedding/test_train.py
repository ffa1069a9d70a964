"""Stage one: it learns, it repeats, it goes on from a state, and it says when it has collapsed."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from stages.embedding.augment import random_affine
from stages.embedding.schedule import is_validated, learning_rate_factor, plan_training
from stages.embedding.train import Step, train_embedding
from stages.embedding.validation import evenly_spaced_subset, validate
from stages.errors import PipelineError, SettingsError
from stages.network.digest import state_digest
from stages.network.initialization import new_network
from stages.records import EpochLog, TrainingState
from stages.settings import EmbedSettings

CPU = torch.device("cpu")
SHORT = EmbedSettings(dim=16, epochs=3, images_per_class=4)


def test_it_learns(digit_split):
    train, validation = digit_split(slice(0, 600)), digit_split(slice(600, 800))
    settings = EmbedSettings(epochs=15)
    gallery = evenly_spaced_subset(train, 1000)
    before = validate(new_network(train, settings), gallery, validation, device=CPU)
    logs: list[EpochLog] = []
    trained = train_embedding(train, validation, settings, device=CPU, on_epoch=logs.append)
    after = validate(trained.network, gallery, validation, device=CPU)
    assert before[1] < 0.93 < 0.97 < after[1]  # share of validation triplets
    assert after[0] >= max(before[0], 0.97)  # kNN
    assert [log.epoch for log in logs] == list(range(1, 16)) and tuple(logs) == trained.history
    best = logs[trained.epoch - 1]
    assert (best.val_knn, best.val_triplet) == max((log.val_knn, log.val_triplet) for log in logs)
    assert after == pytest.approx(
        (best.val_knn, best.val_triplet)
    )  # the kept weights are that epoch's
    assert logs[-1].active_share < logs[0].active_share


def test_conv_deep_learns(digit_split):
    train, validation = digit_split(slice(0, 300)), digit_split(slice(300, 400))
    trained = train_embedding(
        train, validation, replace(SHORT, network="conv-deep", epochs=5), device=CPU
    )
    before, after = trained.history[0], trained.history[-1]
    assert after.val_triplet > max(0.95, before.val_triplet) and after.val_knn > 0.9


def test_the_same_seed_gives_the_same_weights(digit_split):
    train, validation = digit_split(slice(0, 200)), digit_split(slice(200, 260))
    digests = {
        (
            seed,
            state_digest(
                train_embedding(
                    train, validation, replace(SHORT, seed=seed), device=CPU
                ).network.state_dict()
            ),
        )
        for seed in (0, 0, 1)
    }
    assert len(digests) == 2 and len({digest for _, digest in digests}) == 2


@pytest.mark.parametrize("stop", [1, 5, 7])  # in the first epoch; at the end of one; in a later one
def test_going_on_from_a_state_is_going_on_as_if_nothing_had_happened(digit_split, stop):
    train, validation = digit_split(slice(0, 200)), digit_split(slice(200, 260))
    whole = train_embedding(train, validation, SHORT, device=CPU)
    states: list[TrainingState] = []

    def stop_there(step: Step) -> bool:
        if step.done == stop:
            states.append(
                copy.deepcopy(step.state())
            )  # it refers to live tensors: keep it as a file would
        return step.done == stop

    train_embedding(train, validation, SHORT, device=CPU, on_step=stop_there)
    torch.rand(7)  # whatever else draws meanwhile must not matter
    resumed = train_embedding(train, validation, SHORT, device=CPU, state=states[0])
    assert state_digest(resumed.network.state_dict()) == state_digest(whole.network.state_dict())
    assert [vars(log) for log in resumed.history] == [vars(log) for log in whole.history]
    assert resumed.epoch == whole.epoch


def test_without_validation_the_last_epoch_is_kept(digit_split):
    trained = train_embedding(digit_split(slice(0, 100)), None, SHORT, device=CPU)
    assert trained.epoch == 3 and trained.history[-1].val_knn is None


def test_a_rate_that_explodes_is_named(digit_split):
    train = digit_split(slice(0, 100))
    broken = replace(train, store=train.store.clone())

    def poison(step: Step) -> None:
        step.state().network["project.weight"].fill_(math.nan)

    with pytest.raises(PipelineError, match="use a lower rate"):
        train_embedding(broken, None, SHORT, device=CPU, on_step=poison)


def test_batches_that_can_not_be_formed_are_named(digit_split):
    with pytest.raises(SettingsError, match="--classes-per-batch 11"):
        train_embedding(
            digit_split(slice(0, 100)), None, EmbedSettings(classes_per_batch=11), device=CPU
        )


def test_the_rate_warms_up_and_decays_to_nothing():
    for steps in (1, 2, 4, 5, 7, 100):  # the shortest runs too
        factors = [learning_rate_factor(done, steps) for done in range(steps + 1)]
        peak = factors.index(max(factors))
        assert (
            max(factors) == 1
            and factors[:peak] == sorted(factors[:peak])
            and factors[peak:] == sorted(factors[peak:], reverse=True)
        )
    assert learning_rate_factor(100, 100) == 0 and learning_rate_factor(0, 100) == 0.05


def test_small_data_gets_more_epochs():
    def epochs(images: int, **options: Any) -> tuple[int, int, int]:
        plan, count = plan_training(
            torch.arange(10).repeat_interleave(images), EmbedSettings(**options)
        )
        return plan.classes_per_batch, plan.images_per_class, count

    assert [epochs(16), epochs(160), epochs(16_000)] == [(10, 16, 400), (10, 16, 40), (10, 16, 20)]
    assert epochs(160, network="conv-deep") == (10, 16, 120) and epochs(
        160, network="conv-deep", epochs=7
    ) == (10, 16, 7)
    photos = {"network": "torchvision:resnet18", "weights": "default"}
    assert epochs(16, **photos) == (4, 8, 10) and epochs(16, **photos, trunk="frozen") == (
        10,
        16,
        400,
    )


def test_what_validation_sees_is_bounded_and_keeps_every_class(digit_split):
    train = digit_split(slice(0, 1700))
    many = replace(
        train,
        rows=train.rows.repeat(3),
        labels=torch.cat([train.labels] * 3),
        ids=tuple(map(str, range(5100))),
    )
    chosen = evenly_spaced_subset(many, 2000)
    assert len(chosen) == 2000 and len(set(chosen.ids)) == 2000
    share = torch.bincount(chosen.labels) / torch.bincount(many.labels)
    assert float(share.max() - share.min()) < 0.02
    assert evenly_spaced_subset(train, 2000) is train


@pytest.mark.parametrize("epochs", [1, 3, 19, 20, 63, 200])
def test_a_run_is_validated_about_ten_times_and_at_its_end(epochs):
    validated = [epoch for epoch in range(1, epochs + 1) if is_validated(epoch, epochs)]
    assert validated[-1] == epochs and min(epochs, 10) <= len(validated) <= 20
    gaps = [b - a for a, b in zip([0, *validated[:-1]], validated, strict=True)]
    assert max(gaps) == gaps[0]


def test_epochs_without_validation_neither_win_nor_cost_patience(digit_split):
    train, validation = digit_split(slice(0, 100)), digit_split(slice(200, 260))
    trained = train_embedding(
        train, validation, replace(SHORT, epochs=40, patience=3, lr=1e-6), device=CPU
    )
    seen = [log.epoch for log in trained.history if log.val_knn is not None]
    assert trained.epoch in seen and seen == list(range(4, len(trained.history) + 1, 4))


def test_augmentation_changes_each_image_differently_and_keeps_the_range():
    image = torch.zeros(1, 1, 28, 28)
    image[..., 8:20, 12:16] = 255
    torch.manual_seed(0)
    changed = random_affine(image.repeat(8, 1, 1, 1))
    assert (
        changed.shape == (8, 1, 28, 28)
        and 0 <= float(changed.min())
        and float(changed.max()) <= 255.01
    )
    assert all(float((a - b).abs().mean()) > 1 for i, a in enumerate(changed) for b in changed[:i])
    # A small change: most of the bar stays where it was.
    assert float((changed * image).sum() / image.square().sum() / 8) > 0.5


@pytest.mark.cuda
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="trains on a CUDA device, of which this machine has none"
)
def test_it_trains_on_cuda(digit_split):
    train, validation = digit_split(slice(0, 200)), digit_split(slice(200, 260))
    trained = train_embedding(train, validation, SHORT, device=torch.device("cuda"))
    assert all(math.isfinite(log.loss) for log in trained.history)
    assert next(trained.network.parameters()).is_cuda
