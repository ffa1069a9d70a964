"""Optimisers train without loading torch's compiler."""

import subprocess
import sys

PROGRAM = """
import sys, torch
from stages.classifier.head_loss import LBFGS
from stages.embedding.muon import Muon
weights = torch.nn.Parameter(torch.ones(2, 3))
others = torch.nn.Parameter(torch.ones(3))
groups = [{"params": [weights], "lr": 0.1, "orthogonal": True}, {"params": [others], "lr": 0.1}]
muon = Muon(groups, weight_decay=0.0)
(weights * torch.arange(3.0) * others).sum().backward()
muon.step()
muon.zero_grad()
muon.load_state_dict(muon.state_dict())

def loss():
    return weights.square().sum()

LBFGS([weights]).step(loss)
assert not weights.equal(torch.ones(2, 3)) and not others.equal(torch.ones(3))
print("torch._dynamo" in sys.modules)
"""


def test_training_does_not_load_the_compiler():
    command = [sys.executable, "-c", PROGRAM]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"
