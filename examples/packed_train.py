"""PyTorch: train a small language model on packed documents, of any length, in rows of 128 tokens.

    python examples/packed_train.py [--epochs N]

Attention is masked by document and the loss stops at its end, so each document is trained on as if it were alone. The
documents are made up: each counts up from a random token by a step of its own.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import prefetchd.torch

LENGTH, VOCABULARY, WIDTH, PAD = 128, 32, 64, 0


def write_documents(folder: Path, count: int = 600) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 60, count)
    steps, firsts = rng.integers(1, 4, count), rng.integers(0, VOCABULARY - 1, count)
    documents = [
        (first + step * np.arange(n)) % (VOCABULARY - 1) + 1
        for n, step, first in zip(lengths, steps, firsts, strict=True)
    ]
    np.save(folder / "tokens.npy", np.concatenate(documents).astype(np.int32))
    np.save(folder / "offsets.npy", np.concatenate(([0], np.cumsum(lengths))))


class Model(nn.Module):
    """One layer of attention over the tokens of the same document."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.attention = nn.Linear(WIDTH, 3 * WIDTH)
        self.last = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, VOCABULARY))
        self.register_buffer("past", torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())

    def forward(self, tokens: torch.Tensor, documents: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        mask = (documents[:, :, None] == documents[:, None, :]) & self.past
        x = self.tokens(tokens) + self.places(positions)
        q, k, v = self.attention(x).chunk(3, -1)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.last(x)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=5)
epochs = parser.parse_args().epochs
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
model = Model().to(device)
optimizer = torch.optim.Adam(model.parameters(), 0.005)
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    write_documents(folder)
    with prefetchd.torch.batches(
        folder / "tokens.npy", offsets=folder / "offsets.npy", pack="first_fit", max_length=LENGTH, pad_value=PAD,
        batch_size=8, shuffle=True, device=device,
    ) as loader:  # fmt: skip
        for epoch in range(epochs):
            losses = []
            for tokens, documents, positions in loader:
                ends = documents[:, 1:] != documents[:, :-1]
                targets = tokens[:, 1:].long().masked_fill(ends | (documents[:, 1:] < 0), -100)
                scores = model(tokens, documents, positions)[:, :-1]
                loss = nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            print(f"epoch {epoch}: loss {torch.stack(losses).mean().item():.4f}")
