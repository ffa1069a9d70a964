"""Training steps on a GPU: data on the device, and no step that waits for it.

`FakeTensorMode` of torch computes shapes and devices only, so it needs no GPU. It raises an error
if an operation mixes devices, or if the program reads a value, for which it would have to wait.
"""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from stages.embedding import inputs
from stages.embedding import loss as loss_module
from stages.embedding.inputs import resident_split, training_input
from stages.embedding.mining import columns_by_class
from stages.embedding.train import Step, _start, train_embedding
from stages.network.embedding_net import EmbeddingNet
from stages.records import TrunkFeatures
from stages.settings import EmbedSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BATCH = torch.arange(40)


@pytest.mark.parametrize("mining", ["batch-all", "batch-hard", "semi-hard", "random"])
def test_a_step_does_not_wait_for_the_gpu(digit_split, monkeypatch, mining):
    settings = EmbedSettings(dim=16, epochs=2, images_per_class=4, mining=mining)
    run = _start(digit_split(slice(0, 100)), settings, None, CPU, torch.float32)
    run.device = GPU
    table = columns_by_class(run.train.labels[BATCH])  # of labels on the CPU; no value is fake
    monkeypatch.setattr(loss_module, "columns_by_class", lambda _: table)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = training_input(
            run.network, run.train, BATCH, slice(None), strength=1.0, device=GPU
        )
        vectors = run.network.to(GPU)(images)
        result = loss_module.triplet_loss(vectors, BATCH, mining=mining, margin=0.2, ids=BATCH)
        run.add(result)
        for weights in run.network.parameters():  # the backward pass would need a GPU
            weights.grad = torch.zeros_like(weights)
        run.optimiser.step()
        assert {value.device.type for value in (*result, *run.sums, vectors)} == {"cuda"}
        with pytest.raises(DataDependentOutputException):
            result.loss.item()


@pytest.mark.parametrize("cached", [False, True])
def test_images_or_features_are_copied_if_they_fit(digit_split, monkeypatch, cached):
    train, network = digit_split(slice(20, 60)), EmbeddingNet(channels=1, size=8, dim=4)
    if cached:
        network.trunk_digest = lambda: "d"
        features = TrunkFeatures(torch.rand(len(train.store), 1, 6), "d")
        train = replace(train, features=features)
    assert resident_split(train, network, CPU) is train
    monkeypatch.setattr(inputs, "free_memory", lambda _: 10**9)
    resident = resident_split(train, network, CPU)
    assert resident is not train
    assert len(resident.store) == (len(train.store) if cached else len(train))
    arguments = {"strength": 0.0, "device": CPU}
    expected = training_input(network, train, BATCH[:9], slice(2, 7), **arguments)
    copied = training_input(network, resident, BATCH[:9], slice(2, 7), **arguments)
    assert torch.equal(copied, expected)
    assert torch.equal(resident.labels, train.labels)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_on_a_gpu_equal_those_on_the_cpu(digit_split):
    train = digit_split(slice(0, 200))
    settings = EmbedSettings(dim=16, epochs=1, images_per_class=4)
    on_cpu = train_embedding(train, None, settings, device=CPU)
    on_gpu = train_embedding(train, None, settings, device=GPU)
    assert on_gpu.history[0].loss == pytest.approx(on_cpu.history[0].loss, rel=1e-2)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_the_gpu(digit_split):
    train = digit_split(slice(0, 200))
    settings = EmbedSettings(dim=16, epochs=1, images_per_class=4)

    def set_mode(step: Step) -> bool:
        torch.cuda.set_sync_debug_mode("error" if step.done == 2 else "default")
        return step.done == 4

    try:
        train_embedding(train, None, settings, device=GPU, on_step=set_mode)
    finally:
        torch.cuda.set_sync_debug_mode("default")
