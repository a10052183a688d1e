"""Accelerate: the loader has its share of the ranks by itself, and only model and optimizer are prepared.

python examples/accelerate_train.py DATA --epochs 10
accelerate launch --num_processes 2 examples/accelerate_train.py DATA
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from example_data import arguments
from torch import nn

import prefetchd.torch

options = arguments(__doc__)
accelerator = Accelerator()
torch.manual_seed(0)
with prefetchd.torch.batches(
    options.data,
    batch_size=options.batch_size,
    image_size=options.image_size,
    shuffle=True,
    augment="hflip",
    dtype="float32",
    scale=1 / 255,
    normalize="device",
    device=accelerator.device,
    rank=accelerator.process_index,
    world_size=accelerator.num_processes,
) as loader:
    network = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, options.classes),
    )  # fmt: skip
    network, optimizer = accelerator.prepare(network, torch.optim.Adam(network.parameters(), 0.02))
    for epoch in range(options.epochs):
        losses = []
        for x, y in loader:
            loss = nn.functional.cross_entropy(network(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
        loss = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
        accelerator.print(f"epoch {epoch}: loss {loss:.4f}")
