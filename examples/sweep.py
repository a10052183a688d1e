"""A sweep: four trainers with other learning rates on one daemon, which decodes each image once for all of them.

    python examples/sweep.py DATA --epochs 10

Each trainer is a process that asks for the same data with `share=True`: the first one starts the daemon, which ends by
itself after the last. `start_together` has all of them begin at the same batch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys

import torch
from example_data import arguments, parser
from torch import nn

import prefetchd.torch

RATES = (0.03, 0.01, 0.003, 0.001)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")  # in one piece, since four processes write
    sys.stdout.flush()


def train(rate: float, options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with prefetchd.torch.batches(
        options.data,
        batch_size=options.batch_size,
        image_size=options.image_size,
        shuffle=True,
        augment="hflip",
        share=True,
        start_together=len(RATES),
        name=f"rate {rate:g}",  # in `prefetchd top`
    ) as loader:
        network = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=4), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, options.classes),
        )  # fmt: skip
        optimizer = torch.optim.Adam(network.parameters(), rate)
        for epoch in range(options.epochs):
            total = 0.0
            for x, y in loader:
                loss = nn.functional.cross_entropy(network(x.float() / 255), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
            say(f"rate {rate:g}, epoch {epoch}: loss {total / len(loader):.4f}")
        if rate == RATES[0]:
            status = loader.status()  # made: some of them ahead, for an epoch that does not come
            say(f"{status['batches_made']} batches were made, {status['delivered']} were delivered so far")


if __name__ == "__main__":
    options = arguments(__doc__, parser(__doc__))
    spawn = multiprocessing.get_context("spawn")
    trainers = [spawn.Process(target=train, args=(rate, options)) for rate in RATES]
    for trainer in trainers:
        trainer.start()
    for trainer in trainers:
        trainer.join()
    raise SystemExit(max(abs(trainer.exitcode or 0) for trainer in trainers))
