"""Copies to a device, and the free memory of a GPU."""

import pytest
import torch

from stages.gpu import copy_to, free_memory


@pytest.mark.parametrize(("name", "waits"), [("cpu", True), ("mps", True), ("cuda:1", False)])
def test_only_cuda_is_copied_to_without_waiting(name, waits):
    class Recorder:
        def to(self, device: torch.device, *, non_blocking: bool) -> tuple[torch.device, bool]:
            return device, non_blocking

    device = torch.device(name)
    assert copy_to(Recorder(), device) == (device, not waits)


def test_free_memory_includes_what_torch_keeps_for_reuse(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 20)
    assert free_memory(torch.device("cuda")) == 150
    assert free_memory(torch.device("cpu")) == free_memory(torch.device("mps")) == 0
