"""Several data sets in one daemon: one pool, one ring, one budget, and no doubt about which is meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import prefetchd
from tests.faults.conftest import content_of
from tests.process.commands import refused_here, run_command

QUICK = ("--image-size", "16", "--num-workers", "1", "--memory-budget", "192MiB")


@pytest.fixture
def val(photographs: Path, tmp_path: Path) -> Path:
    manifest = tmp_path / "val.txt"
    lines = photographs.read_text().splitlines()[:9]
    manifest.write_text("".join(f"{photographs.parent}/{line}\n" for line in lines))
    return manifest


def test_training_and_validation_share_one_daemon(serve, photographs, val):
    daemon = serve(
        f"train={photographs}", f"val={val}", "--batch-size", 4, *QUICK, "--shuffle", "--no-val.shuffle",
        "--val.batch-size", 5, "--val.layout", "nchw",
    )  # fmt: skip
    with prefetchd.batches(dataset="train", epochs=2) as train, prefetchd.batches(dataset="val") as test:
        assert (len(train), len(test)) == (13, 2)
        ids = []
        for number, batch in enumerate(train):
            assert batch.x.shape[1:] == (16, 16, 3)
            ids += batch.sample_ids.tolist()
            if number % 13 == 12:  # validate in the midst of it, as a training loop does
                shapes = [(x.shape, y.tolist()) for x, y in test]
                assert shapes == [((5, 3, 16, 16), [0, 1, 2, 3, 4]), ((4, 3, 16, 16), [5, 6, 7, 8])]
        assert sorted(ids[:50]) == sorted(ids[50:]) == list(range(50))
        assert ids[:50] != ids[50:] != list(range(50))
        status = daemon.status()
    assert [(data["name"], data["n_samples"]) for data in status["datasets"]] == [("train", 50), ("val", 9)]
    assert {consumer["dataset"] for consumer in status["consumers"]} == {"train", "val"}
    assert status["memory"]["max_footprint_bytes"] <= status["memory"]["budget_bytes"]
    words = run_command("status").stdout
    assert "val: " in words
    assert "train epoch" in words
    assert "dataset=..." in daemon.log


def test_an_option_for_one_kind_of_data_set_is_given_to_those_of_that_kind(photographs, tmp_path):
    """One that holds for all is refused for arrays, with the words that give it to the images alone."""
    np.save(tmp_path / "a.npy", np.zeros((4, 2)))
    arrays, images = f"train={tmp_path}/a.npy", f"val={photographs}"
    message = refused_here("serve", arrays, images, f"test={photographs}", "--image-size", 16, "--num-workers", 1)
    assert "a.npy: it concerns images only; " in message
    assert message.endswith("give an option of some data sets to each of them: --val.image-size --test.image-size")
    assert refused_here("serve", arrays, images, "--no-shrink-on-load").endswith(": --no-val.shrink-on-load")
    np.save(tmp_path / "y.npy", np.zeros(4))
    assert refused_here("serve", images, arrays, "--labels", tmp_path / "y.npy").endswith(": --train.labels")
    assert refused_here("serve", arrays, images, "--train.image-size", 16).endswith("; leave it out")


def test_what_was_told_works(serve, photographs, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 2)))
    serve(f"train={tmp_path}/a.npy", f"val={photographs}", "--val.image-size", 16, "--num-workers", 1)
    with prefetchd.batches(dataset="val") as loader:
        assert next(iter(loader)).x.shape[1:] == (16, 16, 3)


def test_batches_are_those_of_a_daemon_of_its_own(serve, photographs, val):
    serve(f"train={photographs}", f"val={val}", "--batch-size", 4, *QUICK, "--val.image-size", "20x24")
    with prefetchd.batches(dataset="val") as shared:
        served = content_of(shared)
        state = shared.state_dict()
    with prefetchd.batches(val, batch_size=4, image_size=(20, 24), num_workers=1) as private:
        assert content_of(private) == served
        private.load_state_dict(state)


def test_copies_of_a_small_batch_do_not_take_the_whole_slot(serve, photographs, val):
    serve(f"train={photographs}", f"val={val}", "--batch-size", 32, *QUICK, "--val.batch-size", 1)
    with prefetchd.batches(dataset="val", on_hold="copy") as loader:
        held = list(loader)
    assert [batch.y.tolist() for batch in held] == [[number] for number in range(9)]
    assert held[-1].x.base is not None
    owner = held[-1].x
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert owner.nbytes < 3 * 4096


def test_table_of_the_file_is_a_data_set_in_the_daemon_and_in_the_loader(serve, photographs, val, tmp_path):
    config = tmp_path / "both.toml"
    config.write_text(
        f'batch-size = 4\nimage-size = 16\nnum-workers = 1\nname = "both"\n'
        f'[train]\nsource = "{photographs}"\nshuffle = true\n[val]\nsource = "val.txt"\nbatch-size = 3\n'
    )
    daemon = serve("--config", config, name="both")
    assert [data["batch_shape"][0] for data in daemon.status()["datasets"]] == [4, 3]
    with prefetchd.batches(config=config, daemon="both", dataset="val") as attached:
        assert len(attached) == 3
        served = content_of(attached)
    with prefetchd.batches(config=config, dataset="val") as private:
        assert content_of(private) == served
    with pytest.raises(prefetchd.ConfigError, match="'train', 'val'"):
        prefetchd.batches(config=config)


def test_data_set_must_be_named_and_known(serve, photographs, val):
    serve(f"train={photographs}", f"val={val}", *QUICK)
    with pytest.raises(prefetchd.ConfigError, match="serves 'train', 'val'; say which with dataset="):
        prefetchd.batches()
    with pytest.raises(prefetchd.ConfigError, match="'test': the daemon 'default' serves 'train', 'val'"):
        prefetchd.batches(dataset="test")
    with pytest.raises(prefetchd.ConfigError, match="one or the other"):
        prefetchd.batches("val", dataset="val")


def test_data_set_of_a_daemon_that_serves_one_without_a_name(serve, photographs):
    serve(photographs, *QUICK)
    with pytest.raises(prefetchd.ConfigError, match="no name"):
        prefetchd.batches(dataset="train")
    with prefetchd.batches(dataset="") as loader:
        assert loader.n_samples == 50


def test_what_cannot_be_served_together_is_refused_in_one_line(photographs, val):
    assert "has no name" in refused_here("serve", photographs, f"val={val}")
    assert "no source" in refused_here("serve", f"train={photographs}", "--val.batch-size", 3)
    assert "missing.txt" in refused_here("serve", f"train={photographs}", "val=missing.txt")
    assert "it is the daemon's" in refused_here("serve", f"val={val}", "--val.num-workers", 3)
