"""Lightning and Accelerate take the loader as it is: length, epochs, ranks, and a state that their checkpoints keep."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.process.commands import finish, start_script


def run(folder: Path, manifest: Path, code: str) -> None:
    script = start_script(folder / "script.py", code.replace("MANIFEST", repr(str(manifest))))
    result = finish(script, 110)
    assert result.returncode == 0, result.stdout + result.stderr


LIGHTNING = """
import logging, warnings
import lightning.pytorch as lightning, torch, prefetchd.torch
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.simplefilter("ignore")

class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 50)
        self.seen = []

    def training_step(self, batch, number):
        self.seen.append((batch.index if hasattr(batch, "index") else None, batch.y.tolist()))
        return torch.nn.functional.cross_entropy(self.layer(batch.x.mean((2, 3))), batch.y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

def fit(max_steps, checkpoint=None):
    options = dict(batch_size=4, image_size=16, dtype="float32", shuffle=True, num_workers=1)
    with prefetchd.torch.batches(MANIFEST, **options) as loader:
        model = Model()
        trainer = lightning.Trainer(
            max_steps=max_steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
            enable_model_summary=False, default_root_dir="FOLDER",
        )
        trainer.fit(model, loader, ckpt_path=checkpoint)
        assert trainer.num_training_batches == len(loader) == 13
        trainer.save_checkpoint("FOLDER/last.ckpt")
    return [labels for _, labels in model.seen]

whole = fit(30)
assert len(whole) == 30 and sorted(sum(whole[:13], [])) == list(range(50)) == sorted(sum(whole[13:26], []))
first = fit(17)  # in the midst of the second epoch
assert first + fit(30, "FOLDER/last.ckpt") == whole
"""


@pytest.mark.skipif(not importlib.util.find_spec("lightning"), reason="needs lightning")
def test_lightning_trains_and_goes_on_from_its_checkpoint(photographs, tmp_path):
    run(tmp_path, photographs, LIGHTNING.replace("FOLDER", str(tmp_path)))


ACCELERATE = """
import accelerate, torch, prefetchd.torch
accelerator = accelerate.Accelerator(cpu=True)
model = torch.nn.Linear(3, 50)
loader = prefetchd.torch.batches(
    MANIFEST, batch_size=4, image_size=16, dtype="float32", num_workers=1, device=accelerator.device, shuffle=True
)
model, optimizer, prepared = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1), loader)
assert prepared is loader and len(prepared) == 13
seen = []
for epoch in range(2):
    for x, y in prepared:
        seen.append(y)
        accelerator.backward(torch.nn.functional.cross_entropy(model(x.mean((2, 3))), y))
        optimizer.step()
        optimizer.zero_grad()
assert torch.equal(torch.cat(seen[:13]).sort().values, torch.arange(50))
assert not torch.equal(torch.cat(seen[:13]), torch.cat(seen[13:]))
moved = accelerate.utils.send_to_device(next(iter(loader)), "cpu")
assert moved.x.shape == (4, 3, 16, 16)
accelerator.register_for_checkpointing(loader)  # anything with state_dict and load_state_dict
accelerator.save_state("FOLDER/state")
state = loader.state_dict()
for _ in zip(range(3), loader):
    pass
accelerator.load_state("FOLDER/state")
assert loader.state_dict() == state
loader.close()
"""


@pytest.mark.skipif(not importlib.util.find_spec("accelerate"), reason="needs accelerate")
def test_accelerate_passes_the_loader_through_and_saves_its_state(photographs, tmp_path):
    run(tmp_path, photographs, ACCELERATE.replace("FOLDER", str(tmp_path)))


WORKERS = """
import prefetchd.torch, torch
if __name__ == "__main__":
    with prefetchd.torch.batches(MANIFEST, batch_size=4, image_size=16, num_workers=1) as loader:
        wrapped = torch.utils.data.DataLoader(loader, batch_size=None, num_workers=1)
        try:
            next(iter(wrapped))
        except prefetchd.PrefetchdError as error:
            assert "forked child" in str(error), error
        else:
            raise AssertionError
        assert len(list(loader)) == 13
"""


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs prefetchd[torch]")
def test_dataloader_with_workers_is_refused_and_the_loader_goes_on(photographs, tmp_path):
    run(tmp_path, photographs, WORKERS)
