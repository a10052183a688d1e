"""Buckets: which batch holds which samples, the nearest aspect, and options in every spelling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetchd.config.options import Config
from prefetchd.config.validate import check_agrees, check_options, make_config
from prefetchd.data.images.aspects import bucket_numbers, lost_share
from prefetchd.errors import ConfigError
from prefetchd.ring.layout import BatchLayout, FieldLayout, open_shapes
from prefetchd.sampling.buckets import Buckets, places_in_order, sorted_by_bucket
from prefetchd.sampling.order import Order
from prefetchd.sampling.sharding import Shard

NUMBERS = st.lists(st.integers(0, 4), min_size=1, max_size=300)


def order_of(numbers: list[int], batch_size: int, *, shuffle: bool, drop_last: bool = False, seed: int = 7) -> Order:
    """Return the order of samples whose buckets are `numbers`, of five buckets."""
    positions, counts = sorted_by_bucket(np.array(numbers), 5)
    in_order = None if shuffle else places_in_order(positions, counts, batch_size, drop_last=drop_last)
    buckets = Buckets(
        positions.astype(np.uint32), counts, batch_size, drop_last=drop_last, seed=seed if shuffle else None,
        in_order=in_order,
    )  # fmt: skip
    return Order(len(numbers), batch_size, drop_last, shuffle, seed, buckets=buckets)


def batches_of(order: Order, epoch: int) -> list[list[int]]:
    """Return the samples of each batch of an epoch."""
    return [
        order.sample_ids(epoch, batch, 0, order.rows(epoch, batch)).tolist() for batch in range(order.batches_per_epoch)
    ]


@given(NUMBERS, st.integers(1, 40), st.booleans(), st.integers(0, 3))
def test_an_epoch_has_each_sample_once_and_each_batch_one_bucket(numbers, batch_size, shuffle, epoch):
    order = order_of(numbers, batch_size, shuffle=shuffle)
    batches = batches_of(order, epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(numbers)))
    for index, batch in enumerate(batches):
        assert 1 <= len(batch) <= batch_size
        assert {numbers[i] for i in batch} == {order.bucket(epoch, index)}
    short = [order.bucket(epoch, index) for index, batch in enumerate(batches) if len(batch) < batch_size]
    assert len(short) == len(set(short)), "a bucket has one short batch at most"


@given(NUMBERS, st.integers(1, 40), st.booleans())
def test_drop_last_leaves_out_less_than_a_batch_of_each_bucket(numbers, batch_size, shuffle):
    order = order_of(numbers, batch_size, shuffle=shuffle, drop_last=True)
    batches = batches_of(order, 1)
    assert all(len(batch) == batch_size for batch in batches)
    seen = [i for batch in batches for i in batch]
    assert len(seen) == len(set(seen))
    for number in range(5):
        n = numbers.count(number)
        assert sum(numbers[i] == number for i in seen) == n - n % batch_size


@given(NUMBERS, st.integers(1, 40), st.integers(0, 3))
def test_any_part_of_a_batch_is_that_part_of_the_whole(numbers, batch_size, epoch):
    whole = batches_of(order_of(numbers, batch_size, shuffle=True), epoch)
    other = order_of(numbers, batch_size, shuffle=True)  # another process
    for index in reversed(range(len(whole))):
        for row in range(len(whole[index])):
            assert other.sample_ids(epoch, index, row, 1).tolist() == whole[index][row : row + 1]


@given(NUMBERS, st.integers(1, 40), st.integers(1, 5))
def test_ranks_are_disjoint_and_together_everything(numbers, batch_size, world_size):
    order = order_of(numbers, batch_size, shuffle=True)
    seen = []
    for rank in range(world_size):
        shard = Shard(order.batches_per_epoch, rank, world_size)
        for step in range(shard.steps()):
            batch, repeated = shard.batch(step)
            seen += [] if repeated else order.sample_ids(2, batch, 0, order.rows(2, batch)).tolist()
    assert sorted(seen) == list(range(len(numbers)))


def test_epochs_and_seeds_mix_batches_and_the_samples_within_a_bucket():
    numbers = np.random.default_rng(0).integers(0, 3, 9000).tolist()  # more in a bucket than are sorted by hash
    order = order_of(numbers, 16, shuffle=True)
    first, second = batches_of(order, 0), batches_of(order, 1)
    buckets = [order.bucket(0, batch) for batch in range(order.batches_per_epoch)]
    assert buckets != sorted(buckets)
    assert sorted(map(sorted, first)) != sorted(map(sorted, second)), "epochs have other batches, not only their order"
    assert batches_of(order_of(numbers, 16, shuffle=True, seed=8), 0) != first
    assert batches_of(order_of(numbers, 16, shuffle=True), 1) == second


def test_buckets_of_one_size_have_orders_of_their_own():
    order = order_of([0] * 64 + [1] * 64, 64, shuffle=True)
    one, other = sorted(batches_of(order, 0), key=min)
    assert [i + 64 for i in one] != other


def test_without_shuffle_batches_follow_their_first_samples():
    order = order_of([2, 0, 2, 1, 2, 0, 0], 2, shuffle=False)
    assert batches_of(order, 0) == [[0, 2], [1, 5], [3], [4], [6]]
    assert batches_of(order, 9) == batches_of(order, 0)


@pytest.mark.parametrize(
    ("numbers", "batch_size"),
    [([0] * 10 + [4], 4), ([3] * 3, 8), ([0], 1)],
    ids=["a bucket of one", "one bucket, smaller than a batch", "one sample"],
)
def test_empty_and_small_buckets(numbers, batch_size):
    for shuffle in (False, True):
        batches = batches_of(order_of(numbers, batch_size, shuffle=shuffle), 0)
        assert sorted(i for batch in batches for i in batch) == list(range(len(numbers)))
    dropped = order_of(numbers, batch_size, shuffle=True, drop_last=True)
    assert dropped.batches_per_epoch == sum(numbers.count(number) // batch_size for number in set(numbers))


def test_a_substitute_is_of_the_same_bucket_and_each_comes_once():
    numbers = [0, 1, 0, 1, 0, 2]
    order = order_of(numbers, 2, shuffle=True)
    assert list(order.following(2)) == [4, 0]
    assert list(order.following(3)) == [1]
    assert list(order.following(5)) == []


SIZES = ((224, 224), (192, 256), (256, 192), (150, 300))


@pytest.mark.parametrize(
    ("height", "width", "bucket"),
    [
        (100, 100, 0), (480, 640, 1), (640, 480, 2), (500, 1000, 3), (1, 30000, 3), (30000, 1, 2),
        (4000, 4001, 0), (0, 0, 0),
    ],
)  # fmt: skip
def test_an_image_goes_to_the_nearest_aspect(height, width, bucket):
    assert bucket_numbers(np.array([height], np.uint32), np.array([width], np.uint32), SIZES).tolist() == [bucket]


def test_of_two_as_near_the_first_is_taken():
    square = np.array([77], np.uint32)
    assert bucket_numbers(square, square, ((192, 256), (256, 192))).tolist() == [0]
    assert bucket_numbers(square, square, ((256, 192), (192, 256))).tolist() == [0]


@given(st.lists(st.tuples(st.integers(1, 40000), st.integers(1, 40000)), min_size=1, max_size=20))
def test_no_other_bucket_loses_less(sizes):
    heights, widths = (np.array(each, np.float64) for each in zip(*sizes, strict=True))
    numbers = bucket_numbers(heights, widths, SIZES)
    for at in range(len(sizes)):
        one = slice(at, at + 1)
        lost = [lost_share(heights[one], widths[one], np.array([number]), SIZES) for number in range(len(SIZES))]
        assert lost[numbers[at]] == min(each for each in lost if each is not None)


def test_what_is_lost_is_the_cropped_part():
    # 100 x 300 in a square: a third is kept; in 150 x 300: 100 x 200 of it.
    args = np.array([100.0]), np.array([300.0])
    assert lost_share(*args, np.array([0]), SIZES) == pytest.approx(2 / 3)
    assert lost_share(*args, np.array([3]), SIZES) == pytest.approx(1 / 3)
    assert lost_share(np.zeros(1), np.zeros(1), np.array([0]), SIZES) is None


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": ["224x224", "192x256"]},
        {"image_size": "224x224,192x256"},
        {"image_size": [(224, 224), (192, 256)]},
        {"image_size": np.array([[224, 224], [192, 256]])},
        {"bucket_sizes": "224x224, 192x256"},
        {"image_size": (224, 224), "bucket_sizes": [[224, 224], [192, 256]]},
    ],
    ids=str,
)
def test_sizes_are_written_in_several_ways(options: dict[str, Any]):
    config = make_config(source="x", **options)
    assert (config.image_size, config.bucket_sizes) == ((224, 224), ((224, 224), (192, 256)))
    assert make_config(**config.to_wire()) == config
    check_agrees(config, options)


@pytest.mark.parametrize("size", [224, "224", "224x256", (224, 256), ["224", "256"], [224]])
def test_one_size_stays_one(size):
    config = make_config(source="x", image_size=size)
    assert config.bucket_sizes == ()
    assert config.digest() == make_config(source="x", image_size=size, bucket_sizes=()).digest()


def test_one_size_replaces_several_of_a_file():
    merged = {**check_options({"image_size": "224x224,192x256"}), **check_options({"image_size": 128})}
    assert make_config(source="x", **merged) == make_config(source="x", image_size=128)
    served = make_config(source="x", image_size="224x224,192x256")
    with pytest.raises(
        ConfigError,
        match=r"attach with image_size=\(224, 224\): .* serves image_size=\(\(224, 224\)",
    ):
        check_agrees(served, {"image_size": 224})


def test_lengths_are_sorted():
    config = make_config(source="x.npy", offsets="o.npy", length_buckets="512,128,256")
    assert config.length_buckets == (128, 256, 512)
    assert make_config(**config.to_wire()) == config


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": ["224x224", "448x448"]}, "same aspect"),
        ({"image_size": ["224x224"]}, "2 to 64 sizes"),
        ({"image_size": [f"{side}x100" for side in range(1, 66)]}, "2 to 64 sizes"),
        ({"image_size": "224x224,0x3"}, "cannot use image_size='0x3'"),
        ({"image_size": "100x100,200x100", "bucket_sizes": "1x2,3x4"}, "say the same"),
        ({"image_size": "100x100,200x100", "views": 2}, "cannot use views together with several sizes"),
        ({"image_size": "100x100,200x100", "weights": "balanced"}, "cannot use weights together with"),
        ({"image_size": "100x100,200x100", "shuffle": "blocks"}, "cannot use shuffle_block together with"),
        ({"image_size": "100x100,200x100", "mix": {"a": 1, "b": 1}}, "cannot use mix together with"),
        (
            {"image_size": "100x100,200x100", "target": "mask", "target_transform": "a:b"},
            "cannot use target_transform with masks",
        ),
        ({"bucket_file": "sizes"}, "cannot use bucket_file without"),
        ({"length_buckets": [1, 2]}, "without offsets"),
        ({"length_buckets": [1, 1], "offsets": "o.npy"}, "different lengths"),
        ({"length_buckets": ["a"], "offsets": "o.npy"}, "different lengths"),
        ({"length_buckets": [8, 16], "offsets": "o.npy", "max_length": 8}, "leave max_length out"),
        ({"length_buckets": [8, 16], "offsets": "o.npy", "pack": "concat", "max_length": 16}, "pack"),
        ({"image_size": "100x100,200x100", "fields": {"a": "image(column=a, size=9)"}}, "the first image decides"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], words: str):
    given = options if "mix" in options else {"source": "x", **options}
    with pytest.raises(ConfigError, match=words):
        make_config(**given)


def test_sides_that_differ_are_open():
    layouts = [
        BatchLayout(2, (FieldLayout("x", (height, width, 3), "uint8"), FieldLayout("y", (), "int64")))
        for height, width in ((8, 8), (8, 4))
    ]
    assert open_shapes(layouts) == [(8, None, 3), ()]
    assert open_shapes(layouts[:1]) == [(8, 8, 3), ()]


def test_a_configuration_without_buckets_has_the_digest_it_had():
    assert {"bucket_sizes", "length_buckets"} <= set(Config.__dataclass_fields__)
    config = make_config(source="x")
    assert config.digest() == make_config(source="x", image_size=224).digest()
