"""The choice of the training precision."""

import pytest
import torch

from pipeline.device import choose_precision
from stages.network.embedding_net import EmbeddingNet

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mobilenet_v3_small", "fp32"), ("resnet18", "bf16"), ("convnext_tiny", "bf16")],
)
def test_depthwise_networks_with_batchnorm_train_in_float32_on_a_cpu(monkeypatch, name, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": True}, raising=False)
    network = EmbeddingNet(3, 64, 8, name=f"torchvision:{name}")
    assert choose_precision("auto", CPU, network) == choose_precision(expected, CPU)
    assert choose_precision("bf16", CPU, network) == torch.bfloat16
