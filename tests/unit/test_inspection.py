"""Facts of images: each goes with its own sample, whichever thread reads it, and in whatever order."""

from __future__ import annotations

import os

import numpy as np

from prefetchd.config.validate import make_config
from prefetchd.data.images.inspection import FACTS, InspectedImages
from prefetchd.data.images.source import ImageSource
from prefetchd.data.registry import attach_source, open_source


def test_facts_are_of_the_sample_also_where_reads_run_ahead(photographs):
    config = make_config(source=photographs, batch_size=50, image_size=32)
    images = open_source(config)
    assert isinstance(images, ImageSource)
    handle, fds = InspectedImages.of(images).handle()
    source = attach_source(config, handle, [os.dup(fd) for fd in fds])
    assert isinstance(source, InspectedImages)
    source._ahead._is_on = True  # as if storage were slow
    ids = np.arange(50)
    source.expect(ids.tolist())
    facts = np.zeros((50, len(FACTS)), np.int64)
    assert source.fill(0, ids, range(50), [facts], lambda n_bytes: None) == []
    found = dict(zip(FACTS, facts.T.tolist(), strict=True))
    assert found["height_px"] == [90 + number % 7 for number in range(50)]
    assert found["width_px"] == [120 + number % 5 for number in range(50)]
    assert found["label"] == list(range(50))
    assert len(set(found["digest"])) == 50
    images.records.close()  # type: ignore[attr-defined]
    source.records.close()  # type: ignore[attr-defined]
