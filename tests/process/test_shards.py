"""Ranks: each takes its share in as many steps, chosen and never guessed."""

from __future__ import annotations

import warnings

import pytest

import prefetchd
from tests.images import write_jpeg

QUICK = ("--batch-size", "4", "--image-size", "16", "--num-workers", "1")


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_ranks_take_turns_and_together_see_the_epoch(serve, photographs):
    serve(photographs, *QUICK, "--shuffle", "--memory-budget", "256MiB")
    with prefetchd.batches() as loader:
        whole = [batch.sample_ids.tolist() for batch in loader]
    shares = []
    for rank in range(3):
        with prefetchd.batches(rank=rank, world_size=3) as loader:
            assert len(loader) == 5  # 13 batches among 3
            shares.append([(batch.index, batch.repeated, batch.sample_ids.tolist()) for batch in loader])
    assert [len(share) for share in shares] == [5, 5, 5]
    seen = [share[step] for step in range(5) for share in shares]
    assert [index for index, _, _ in seen] == [*range(13), 0, 1]
    assert [index for index, repeated, _ in seen if repeated] == [0, 1]
    assert [ids for _, repeated, ids in seen if not repeated] == whole


def test_ragged_steps_are_left_out_with_drop_last(serve, photographs):
    serve(photographs, *QUICK, "--drop-last")
    with prefetchd.batches(rank=2, world_size=5) as loader:
        assert len(loader) == 2  # 12 whole batches among 5
        assert [(batch.index, batch.repeated) for batch in loader] == [(2, False), (7, False)]
    with pytest.raises(prefetchd.ConfigError, match="12 batches among 13 ranks"):
        prefetchd.batches(rank=0, world_size=13)


def test_more_ranks_than_batches_all_get_one(photographs):
    with prefetchd.batches(
        photographs, batch_size=25, image_size=16, num_workers=1, rank=3, world_size=5, epochs=2
    ) as loader:
        assert [(batch.epoch, batch.index, batch.repeated) for batch in loader] == [(0, 1, True), (1, 1, True)]


def test_rank_of_torchrun_is_taken_when_asked_for(photographs, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = {"batch_size": 10, "image_size": 16, "num_workers": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with prefetchd.batches(photographs, **options, rank="env") as loader:
            assert "rank 1 of 2" in repr(loader)
            assert [batch.index for batch in loader] == [1, 3, 0]
        with prefetchd.batches(photographs, **options, rank=0, world_size=1) as loader:
            assert len(loader) == 5
    with pytest.warns(RuntimeWarning, match="rank='env'") as caught:
        prefetchd.batches(photographs, **options).close()
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"rank": 0}, "give both"),
        ({"world_size": 4}, "give both"),
        ({"rank": -1, "world_size": 2}, "from 0"),
        ({"rank": "1", "world_size": 2}, "rank='1'"),
        ({"rank": "env"}, "RANK is not set"),
    ],
)
def test_rank_that_makes_no_sense_is_refused(photographs, options, words):
    with pytest.raises(prefetchd.ConfigError, match=words):
        prefetchd.batches(photographs, **options)


def test_skipping_in_one_rank_only_is_warned_of(tmp_path):
    write_jpeg(tmp_path / "a.jpg")
    (tmp_path / "m.txt").write_text("a.jpg 0\n" * 4)
    with pytest.warns(RuntimeWarning, match="substitute"):
        prefetchd.batches(
            tmp_path / "m.txt", batch_size=2, image_size=16, num_workers=1, on_error="skip", rank=0, world_size=2
        ).close()
