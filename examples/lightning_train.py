"""Lightning: a LightningModule whose loaders are prefetchd's.

    python examples/lightning_train.py DATA --epochs 10

Lightning saves and restores the state of a loader that has `state_dict`, so its checkpoints go on with the next batch.
With several devices, give the loaders `rank="env"`; `use_distributed_sampler=False` leaves them as they are.
"""

from __future__ import annotations

import lightning
import torch
from example_data import arguments
from torch import nn

import prefetchd.torch

options = arguments(__doc__)


class Classifier(lightning.LightningModule):
    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, n_classes)
        )
        self.losses: list[torch.Tensor] = []
        self.hits = self.rows = 0

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.layers(x), y)
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> None:
        x, y = batch
        self.hits += int((self.layers(x).argmax(1) == y).sum())
        self.rows += len(y)

    def on_train_epoch_end(self) -> None:
        loss, accuracy = torch.stack(self.losses).mean().item(), self.hits / max(self.rows, 1)
        print(f"epoch {self.current_epoch}: loss {loss:.4f}, accuracy {accuracy:.3f}", flush=True)
        self.losses.clear()
        self.hits = self.rows = 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.02)


lightning.seed_everything(0, verbose=False)
images = {
    "batch_size": options.batch_size, "image_size": options.image_size, "dtype": "float32", "scale": 1 / 255,
}  # fmt: skip
with (
    prefetchd.torch.batches(options.data, split="0-90%", shuffle=True, augment="hflip", **images) as train,
    prefetchd.torch.batches(options.data, split="90-100%", **images) as validation,
):
    trainer = lightning.Trainer(
        max_epochs=options.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Classifier(options.classes), train, validation)
