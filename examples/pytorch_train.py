"""PyTorch: train a small network on a manifest of images, on the processor or a CUDA device.

    python examples/pytorch_train.py [MANIFEST] [--epochs N]
    torchrun --nproc-per-node 2 examples/pytorch_train.py

Readers decode and augment; uint8 batches go to the device, which normalises them, as channels_last without a copy.
A checkpoint holds the loader's state beside the model's, and training goes on with exactly the next batch.
"""

from __future__ import annotations

import os

import torch
from example_data import arguments
from torch import nn

import prefetchd.torch

options = arguments(__doc__)
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")

with prefetchd.torch.batches(
    options.manifest,
    batch_size=16,
    image_size=64,
    shuffle=True,
    augment=["hflip"],
    dtype="float32",
    scale=1 / 255,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    normalize="device",
    device=device,
    rank="env" if "RANK" in os.environ else None,
) as loader:
    network: nn.Module = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8)
    ).to(device, memory_format=torch.channels_last)
    if "RANK" in os.environ:
        network = nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    checkpoint = {}
    for epoch in range(options.epochs):
        total = torch.zeros((), device=device)
        for x, y in loader:
            loss = nn.functional.cross_entropy(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        checkpoint = {"network": network.state_dict(), "data": loader.state_dict()}
        print(f"epoch {epoch}: loss {total.item() / len(loader):.4f}")
    assert checkpoint["data"]["epoch"] == options.epochs  # the state goes on with the next epoch

if "RANK" in os.environ:
    torch.distributed.destroy_process_group()
