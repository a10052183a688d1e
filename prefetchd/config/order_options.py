"""`OrderOptions`: the options that choose samples and their order. `Config` has them beside its own. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefetchd.config.option import option

BALANCED = "balanced"
BLOCKS = "blocks"  # of `shuffle`
USUAL_BLOCK = 1024  # samples
Stop = Literal["first", "last"]


def is_weight_file(weights: str) -> bool:
    """Return whether the option `weights` names a file, and not a column."""
    return weights.lower().endswith(".npy")


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderOptions:
    """Which samples an epoch has; see `docs/order.md`.

    `subset`, `order` and `weights` name files, which are no content: what stands in them goes into the digest instead.
    """

    shuffle_block: int | None = option(
        None,
        "shuffle blocks of so many samples, then within windows of 16 blocks: long runs of reads; Python's "
        "shuffle='blocks' takes 1024 (a full shuffle)",
        metavar="N",
        later=True,
        limits=(2, 1 << 40),
    )
    subset: str | None = option(
        None,
        "serve these samples alone: an .npy file of their numbers, from 0, or of a true or false for each (all)",
        metavar="IDS.npy",
        content=False,
        later=True,
    )
    where: tuple[str, ...] = option(
        (), "serve samples with one of these values in a column alone: label=1,3 (all)", metavar="COLUMN=VALUE[,...]",
        later=True, flag="where",
    )  # fmt: skip
    split: str | None = option(
        None,
        "serve the samples whose path, hashed, is in this part: 0-90%, and 90-100% for the others; a sample never "
        "changes sides as the set grows (all)",
        metavar="A-B%",
        later=True,
    )
    order: str | None = option(
        None,
        "serve these samples in this order: an .npy file of their numbers, from 0, of any length, repeats allowed",
        metavar="IDS.npy",
        content=False,
        later=True,
    )
    limit: int | None = option(
        None, "serve this many samples at most, the first ones (all)", metavar="N", later=True, limits=(1, 1 << 53)
    )
    weights: str | None = option(
        None,
        "draw samples by weight: balanced (each class as often), a column, or an .npy file with a "
        "weight for each sample (none)",
        metavar="balanced|COLUMN|W.npy",
        content=False,
        later=True,
    )
    bucket_sizes: tuple[tuple[int, int], ...] = option(
        (),
        "deliver images in several sizes, each in that of the nearest aspect; a batch has one size. Also: image_size "
        "with several sizes (none)",
        metavar="HxW,HxW[,...]",
        later=True,
    )
    bucket_file: str | None = option(
        None,
        "bucket_sizes: file that the sizes of images are kept in, so that their headers are read once (in the cache's "
        "folder, or beside the index of tar shards)",
        metavar="FILE",
        content=False,
        later=True,
    )
    length_buckets: tuple[int, ...] = option(
        (),
        "sequences: pad to the first of these lengths that a sequence fits in; a batch has one length, and longer "
        "sequences are cut to the last (none)",
        metavar="N[,N...]",
        later=True,
    )
    replace: bool = option(
        True,
        "weights: draw with replacement; without it (--no-replace) a sample comes once an epoch at most, those of "
        "large weights sooner (with)",
        later=True,
    )
    epoch_samples: int | None = option(
        None, "weights, mix: how many samples an epoch has (as many as there are; with mix as stop says)", metavar="N",
        later=True, limits=(1, 1 << 53),
    )  # fmt: skip
    mix: tuple[str, ...] = option(
        (),
        "serve several sources mixed, in place of one, each with its share: train.txt=0.7; a share for each epoch is "
        "a.txt=0.9,0.5, whose last holds on; without shares sizes decide (none)",
        metavar="SOURCE[=SHARE]",
        content=False,
        later=True,
        flag="mix",
    )
    mix_temperature: float | None = option(
        None,
        "mix without shares: shares are sizes to the power of 1 over this; 1 as the sizes are, more evens them out (1)",
        metavar="T",
        later=True,
        limits=(0.01, 1e6),
    )
    stop: Stop = option(
        "first", "mix: an epoch ends as the first source, or the last, was served whole (first)", later=True
    )
