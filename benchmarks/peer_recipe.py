"""The peer's recipe of stage one, with the layers of our network.

torchvision's `ImageFolder` on PNG files and a `DataLoader` with 2 workers, random affine
augmentation of the same strength as ours, pytorch-metric-learning's sampler, semi-hard miner and
triplet loss with margin 0.2, AdamW with learning rate 1e-3, float32 and torch's default settings.
The network is in torch's default memory layout. Batches have 10 classes with 16 images each.

`python -m benchmarks.peer_recipe ROOT --seed 0 --mean 33 --std 79 --out FILE` trains five epochs in
a new process and saves the weights.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stages.network.embedding_net import EmbeddingNet, to_device

P, K = 10, 16
EPOCHS = 5
CPU = torch.device("cpu")
OnStep = Callable[[Any], bool | None]


def new_network(mean: float, std: float) -> EmbeddingNet:
    """Return our network for grey images of 28 x 28; mean and std are of its pixels."""
    statistics = (torch.tensor([mean]), torch.tensor([std]))
    return to_device(EmbeddingNet(1, 28, 128, mean=statistics[0], std=statistics[1]), CPU)


class PlainNet(nn.Module):
    """Peer's network: our layers in torch's default memory layout, without pixel scaling."""

    def __init__(self, network: EmbeddingNet):
        super().__init__()
        self.inner = network.to(memory_format=torch.contiguous_format)

    def forward(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.inner.project(self.inner.trunk(pixels)), dim=1)


def peer_loader(root: Path, network: EmbeddingNet, *, channels_last: bool) -> DataLoader[Any]:
    """Return the batches. channels_last: keep pixels unscaled, because our network scales them."""
    from pytorch_metric_learning.samplers import MPerClassSampler
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.Grayscale(), transforms.RandomAffine(12, (0.08, 0.08), (0.88, 1.12))]
    if channels_last:
        steps += [transforms.PILToTensor()]
    else:
        mean, std = [float(network.mean)], [float(network.std)]
        steps += [transforms.ToTensor(), transforms.Normalize(mean, std)]
    images = ImageFolder(str(root / "train"), transform=transforms.Compose(steps))
    sampler = MPerClassSampler(
        images.targets, K, batch_size=P * K, length_before_new_iter=len(images)
    )
    return DataLoader(
        images, batch_size=P * K, sampler=sampler, num_workers=2, persistent_workers=True
    )


def train_peer(
    root: Path,
    network: EmbeddingNet,
    *,
    epochs: int = EPOCHS,
    channels_last: bool = False,
    on_step: OnStep | None = None,
) -> EmbeddingNet:
    """Train with the peer's recipe; an epoch contains each training image once.

    channels_last: use our network's memory layout.
    """
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import TripletMarginMiner

    torch.use_deterministic_algorithms(False)
    network.train()
    loader = peer_loader(root, network, channels_last=channels_last)
    miner = TripletMarginMiner(margin=0.2, type_of_triplets="semihard")
    criterion = TripletMarginLoss(margin=0.2)
    embedder = network if channels_last else PlainNet(network)
    optimiser = torch.optim.AdamW(embedder.parameters(), lr=1e-3)
    for _ in range(epochs):
        for pixels, labels in loader:
            vectors = embedder(pixels)
            loss = criterion(vectors, labels, miner(vectors, labels))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if on_step and on_step(loss.item()):
                return network
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mean", type=float, required=True)
    parser.add_argument("--std", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    network = train_peer(options.root, new_network(options.mean, options.std))
    torch.save(network.state_dict(), options.out)


if __name__ == "__main__":
    main()
