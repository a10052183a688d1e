"""What other loaders call an option, and what does its job here: for the message about an unknown one. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What to write in place of an option that does not exist.
_TORCH = "prefetchd.torch.batches(device='cuda'), whose slots are page-locked"
_SAMPLER = "subset=, order= or weights=, for which samples and in which order"
_SPLITS = "split=: '0-90%' for training and '90-100%' for validation"
_SIZES = "image_size="
_LABELS = "the labels of the manifest, or the class folders"

# Names of other loaders, and what does their job here. A test holds them to docs/coming-from/.
ELSEWHERE = {
    # PyTorch's DataLoader
    "dataset": "a source: a list of (path, label) pairs, a table, a manifest, a directory, shards or arrays",
    "sampler": _SAMPLER,
    "batch_sampler": _SAMPLER,
    "collate_fn": "image_size= or max_length=, which give all samples one shape",
    "pin_memory": _TORCH,
    "decode": "encoded_bytes=, for images as their files are, which prefetchd.torch.batches decodes on a device",
    "worker_init_fn": "seed=: randomness depends on the seed, the epoch and the sample",
    "generator": "seed=: randomness depends on the seed, the epoch and the sample",
    "prefetch_factor": "memory_budget=, from which it follows how far ahead is decoded",
    "persistent_workers": "nothing: readers always persist",
    "multiprocessing_context": "nothing: your process is never forked",
    "num_replicas": "world_size=",
    # tf.data
    "num_parallel_calls": "num_workers=",
    "buffer_size": "shuffle=True, which shuffles the whole set without a buffer",
    "drop_remainder": "drop_last=",
    "repeat": "epochs=",
    "prefetch": "memory_budget=, from which it follows how far ahead is decoded",
    # Keras
    "workers": "num_workers=",
    "use_multiprocessing": "num_workers=",
    "max_queue_size": "memory_budget=, from which it follows how far ahead is decoded",
    "validation_split": _SPLITS,
    "target_size": _SIZES,
    "class_mode": _LABELS,
    "label_mode": _LABELS,
    "class_names": "nothing: classes are numbered by their sorted names, which loader.classes has",
    "classes": "nothing: classes are numbered by their sorted names, which loader.classes has",
    "color_mode": "color=",
    "size": _SIZES,
    "height": _SIZES,
    "width": _SIZES,
    "rescale": "scale=1 / 255 and dtype='float32'",
    "horizontal_flip": "augment='hflip'",
    "rotation_range": "augment='rotate(degrees=10)'",
    "zoom_range": "augment='affine(scale=(0.9, 1.1))'",
    "preprocessing_function": "transform=",
    "maxlen": "max_length=",
    # WebDataset
    "shardshuffle": "shuffle=True, which shuffles all samples, or shuffle='blocks'",
    "nodesplitter": "rank='env', or rank= and world_size=",
    "resampled": "epochs=None, and weights= where samples are drawn",
    "handler": "on_error='skip' or 'substitute'",
    "cache_dir": "keep= for downloaded bytes, or cache= for decoded pixels",
    # FFCV, DALI, Grain
    "os_cache": "the page cache, and cache= for decoded pixels",
    "batches_ahead": "memory_budget=, from which it follows how far ahead is decoded",
    "file_root": "a source: a manifest, a directory, shards or arrays",
    "file_list": "a source: a manifest, a directory, shards or arrays",
    "shard_id": "rank=",
    "num_shards": "world_size=",
    "prefetch_queue_depth": "memory_budget=, from which it follows how far ahead is decoded",
    "num_records": "the whole source: every record of it is served",
    "worker_count": "num_workers=",
    "worker_buffer_size": "memory_budget=, from which it follows how far ahead is decoded",
}


def explain_unknown(name: str, known: Iterable[str]) -> str:
    """Return the message for an option that does not exist, where the options are `known`."""
    if name in ELSEWHERE:
        return f"cannot use the option {name!r}: it is another loader's; here use {ELSEWHERE[name]}"
    near = difflib.get_close_matches(name.lower(), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else "see help(prefetchd.batches)"
    return f"cannot use the option {name!r}: there is no such option; {hint}"
