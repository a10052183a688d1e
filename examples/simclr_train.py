"""SimCLR in PyTorch: learn without labels that two views of one image belong together.

    python examples/simclr_train.py DATA --epochs 10

`views=2` decodes each image once and delivers two crops of it, each with randomness of its own. Labels are not looked
at, so any folder or list of images will do.
"""

from __future__ import annotations

import torch
from example_data import arguments
from torch import nn

import prefetchd.torch

options = arguments(__doc__)
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)

with prefetchd.torch.batches(
    options.data,
    batch_size=options.batch_size,
    image_size=options.image_size,
    shuffle=True,
    drop_last=True,
    views=2,
    augment=[
        "random_resized_crop(scale=(0.3, 1))",
        "hflip",
        "color_jitter(brightness=0.2, contrast=0.2, saturation=0.2)",
    ],
    device=device,
) as loader:
    encoder = nn.Sequential(
        nn.Conv2d(3, 32, 5, stride=4), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 32),
    ).to(device)  # fmt: skip
    optimizer = torch.optim.Adam(encoder.parameters(), 0.003)
    for epoch in range(options.epochs):
        losses = []
        for x, _ in loader:  # x: (rows, 2, 3, height, width) uint8
            codes = nn.functional.normalize(encoder(x.flatten(0, 1).float() / 255 - 0.5))
            alike = codes @ codes.T / 0.2
            alike.fill_diagonal_(float("-inf"))  # no view is compared with itself
            other = torch.arange(len(codes), device=device) ^ 1  # the views of an image are neighbours
            loss = nn.functional.cross_entropy(alike, other)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        print(f"epoch {epoch}: loss {torch.stack(losses).mean().item():.4f}")
