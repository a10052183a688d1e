"""PyTorch: train and validate a network on images, on one device or several, with checkpoints to go on from.

    python examples/pytorch_train.py DATA --epochs 10 --balanced --amp
    python examples/pytorch_train.py DATA --resume checkpoint.pt --checkpoint checkpoint.pt
    torchrun --nproc-per-node 2 examples/pytorch_train.py DATA

Nine tenths of DATA train and the rest validates, chosen by a hash of each path. Readers decode and augment. uint8
batches go to the device, which normalises them. A checkpoint holds the loader's state beside the model's, and training
goes on with exactly the next batch, also in the middle of an epoch.
"""

from __future__ import annotations

import os

import torch
from example_data import arguments, parser
from torch import distributed, nn

import prefetchd.torch

made = parser(__doc__)
made.add_argument("--balanced", action="store_true", help="draw samples so that all classes are as frequent")
made.add_argument("--amp", action="store_true", help="compute in bfloat16 where that is safe")
made.add_argument("--checkpoint", metavar="FILE", help="save the training here after each epoch")
made.add_argument("--resume", metavar="FILE", help="go on from this checkpoint")
options = arguments(__doc__, made)

device = "cuda" if torch.cuda.is_available() else "cpu"
in_parallel = "RANK" in os.environ  # under torchrun
if in_parallel:
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
torch.manual_seed(0)

images = {
    "batch_size": options.batch_size,
    "image_size": options.image_size,
    "dtype": "float32",
    "scale": 1 / 255,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "normalize": "device",
    "device": device,
    "rank": "env" if in_parallel else None,
}
train = prefetchd.torch.batches(
    options.data,
    split="0-90%",
    shuffle=True,
    drop_last=True,
    augment=["random_resized_crop(scale=(0.5, 1))", "hflip"],
    weights="balanced" if options.balanced else None,
    **images,
)
validation = prefetchd.torch.batches(options.data, split="90-100%", resize="crop", **images)

network = nn.Sequential(
    nn.Conv2d(3, 32, 5, stride=4), nn.ReLU(),
    nn.Conv2d(32, 32, 3, stride=2), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, options.classes),
).to(device, memory_format=torch.channels_last)  # fmt: skip
optimizer = torch.optim.Adam(network.parameters(), 0.01)
if options.resume:
    saved = torch.load(options.resume, map_location=device)
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["optimizer"])
    train.load_state_dict(saved["data"])
model = nn.parallel.DistributedDataParallel(network) if in_parallel else network


def loss_of(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.autocast(device, torch.bfloat16, enabled=options.amp):
        scores = model(x)
        return nn.functional.cross_entropy(scores, y), (scores.argmax(1) == y).sum()


def mean_over_ranks(values: torch.Tensor) -> list[float]:
    if in_parallel:
        distributed.all_reduce(values)
    total, hits, rows, n_batches = values.tolist()
    return [total / max(n_batches, 1), hits / max(rows, 1)]


with train, validation:
    while (epoch := train.state_dict()["epoch"]) < options.epochs:
        model.train()
        sums = torch.zeros(4, device=device)
        for x, y in train:
            loss, hits = loss_of(x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sums += torch.stack([loss.detach(), hits, torch.tensor(len(y)), torch.tensor(1)]).to(device)
        train_loss, _ = mean_over_ranks(sums)

        model.eval()
        sums = torch.zeros(4, device=device)
        with torch.no_grad():
            for batch in validation:
                loss, hits = loss_of(*batch)
                if not batch.repeated:  # with several ranks the last batches are wrapped round, to be even
                    sums += torch.stack([loss, hits, torch.tensor(len(batch.y)), torch.tensor(1)]).to(device)
        _, accuracy = mean_over_ranks(sums)

        if not in_parallel or distributed.get_rank() == 0:
            print(f"epoch {epoch}: loss {train_loss:.4f}, accuracy {accuracy:.3f}", flush=True)
            if options.checkpoint:
                parts = {"network": network, "optimizer": optimizer, "data": train}
                torch.save({name: part.state_dict() for name, part in parts.items()}, options.checkpoint)

if in_parallel:
    distributed.destroy_process_group()
