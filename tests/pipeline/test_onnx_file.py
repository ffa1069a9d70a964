"""Translation into ONNX: what cannot be translated ends in one clear error."""

import pytest
import torch
from torch import nn

from pipeline.onnx_file import MAX_BYTES, to_onnx
from stages.errors import PipelineError


class Untranslatable(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(images.float()).real


class DataDependent(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() if images.sum() > 3 else -images.float()


class Huge(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weights", torch.empty(MAX_BYTES // 4 + 1, device="meta"))


@pytest.mark.parametrize("module", [Untranslatable(), DataDependent()], ids=["operator", "flow"])
def test_untranslatable_networks_are_errors(module, capfd):
    with pytest.raises(PipelineError, match=r"cannot be translated into ONNX .*; use another"):
        to_onnx(
            module.eval(),
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            dynamic={0: "batch"},
            names=("images", ["y"]),
            metadata={},
        )
    assert capfd.readouterr() == ("", "")


def test_a_file_above_two_gigabytes_is_an_error():
    with pytest.raises(PipelineError, match=r"2\.1 GB"):
        to_onnx(Huge(), torch.zeros(1), dynamic={}, names=("x", ["y"]), metadata={})
