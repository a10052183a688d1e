"""PyTorch: batches as tensors, on the processor or on their way to a CUDA device.

    import prefetchd.torch

    for x, y in prefetchd.torch.batches("train.txt", batch_size=64, shuffle=True, device="cuda"):
        ...

On the processor a tensor shares the slot's memory, and the slot is held as long as the tensor or any view of it lives.
The memory is mapped copy-on-write, so in-place operations are safe: what they write stays in this process. To a CUDA
device the next batch is copied while the present step runs (`device_copies`). Its slot goes back as soon as the copy is
done, however many tensors the loop keeps.

The loader is an iterable with a length, a state and `set_epoch`, as Lightning, Accelerate and torchdata's stateful
loaders expect. It is made of a `prefetchd.Loader`, and behaves as that does when a daemon dies.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

try:
    import torch
    from torch.utils.data import IterableDataset
except ImportError as error:
    raise ImportError(
        f"cannot import prefetchd.torch: PyTorch cannot be imported ({error}); pip install 'prefetchd[torch]'"
    ) from error

from prefetchd.client import description
from prefetchd.client.api import batches as numpy_batches
from prefetchd.client.batch import Batch, leaves_of
from prefetchd.client.iteration import BaseLoader
from prefetchd.errors import ConfigError, PrefetchdError
from prefetchd.ring.layout import FieldLayout
from prefetchd.torch.batch import TensorBatch
from prefetchd.torch.decoding import N_HOST_ARRAYS, Decoding, check_decoder, choose_decoder
from prefetchd.torch.device_copies import Arriving, Cuda, DeviceCopies
from prefetchd.torch.options import VALUE_OPTIONS, choose_share, conversion, find_device

if TYPE_CHECKING:
    from typing import Unpack

    from numpy.typing import NDArray

    from prefetchd.batch_options import BatchOptions
    from prefetchd.client.connection import Connection
    from prefetchd.client.loader import Loader
    from prefetchd.client.meter import LoaderStats
    from prefetchd.client.state import Position

__all__ = ["TensorBatch", "TensorLoader", "batches"]


class _Ahead(NamedTuple):
    """A batch whose copy was started, and the position of the user's loop once it is delivered."""

    tensors: TensorBatch
    arriving: Arriving
    after: Position


def batches(
    source: str | bytes | os.PathLike[str] | Any | None = None,
    *,
    device: str | int | torch.device | None = None,
    normalize: Literal["readers", "device"] = "readers",
    decode: Literal["readers", "device"] = "readers",
    **options: Unpack[BatchOptions],
) -> TensorLoader:
    """Return a re-iterable loader of batches `x, y` of tensors, or of `fields`.

    Images are (rows, channels, height, width), with views (rows, views, channels, ...). From the default layout,
    `nhwc`, they get this shape without a copy, in the memory format `torch.channels_last`, which convolutions like
    best. `layout="nchw"` makes them contiguous, and an explicit `layout="nhwc"` leaves the channels last in the shape
    too. Arrays keep their shape.

    Args:
        source: as for `prefetchd.batches`: a private daemon's data, or nothing to attach to a daemon.
        device: where the tensors are; the processor if not given. For a CUDA device the next batch is copied while
            the present step runs (not yet run on a GPU: tests run it against a model of one).
        normalize: where `dtype`, `scale`, `mean` and `std` are applied: by the readers, or by the device, to uint8
            batches, which take a quarter of the ring and of the copy that float32 does. The device also makes
            `dtype="bfloat16"`, which readers do not.
        decode: where images are decoded: by the readers, or by the device, from files that `encoded_bytes` bounds. Its
            pixels are others than those of the readers. Where nothing decodes on the device the readers do, with a
            warning; with several ranks that is an error, since other ranks might decode on theirs.
        options: every option of `prefetchd.batches`. Tensors on the processor can always be written (`writable`).
            Without `rank`, this process takes the share of its rank in torch.distributed's process group, or in
            torchrun's variables, if there is one, and a warning says so. `rank="env"` asks for that share without a
            warning; `rank=0, world_size=1` gives every process everything.

    Raises:
        ConfigError: for a device that does not exist, and as `prefetchd.batches`.
        PrefetchdError: as `prefetchd.batches`.

    Example:
        >>> loader = prefetchd.torch.batches("train.txt", batch_size=64, device="cuda", dtype="float32", scale=1 / 255,
        ...                                  normalize="device")  # doctest: +SKIP
        >>> for x, y in loader:  # doctest: +SKIP
        ...     loss = criterion(model(x), y)
    """
    to = find_device(device)
    if normalize not in ("readers", "device"):
        raise ConfigError(f"cannot use normalize={normalize!r}: it must be 'readers' or 'device'")
    choose_share(options)
    decoder = choose_decoder(decode, to, options, has_source=source is not None)
    on_device = normalize == "device" or decode == "device"  # wherever it decodes, to the same values
    values = {name: options.pop(name, None) for name in VALUE_OPTIONS} if on_device else {}  # type: ignore[misc]  # the names are keys
    options["writable"] = to.type != "cuda"
    loader = numpy_batches(source, **options)
    try:
        decoding = None if decoder is None else Decoding(decoder, loader)
        permute = options.get("layout") is None
        convert = conversion(loader, to, values, permute=permute, decodes=decoding is not None)
        return TensorLoader(loader, to, convert, Cuda(to) if to.type == "cuda" else None, decoding)
    except BaseException:
        loader.close()
        raise


class TensorLoader(BaseLoader[TensorBatch], IterableDataset[TensorBatch]):
    """A re-iterable source of batches of tensors, made by `batches`. Close it with `close()` or `with`, or drop it.

    It is a `torch.utils.data.IterableDataset` of whole batches, for libraries that ask for one. A `DataLoader` around
    it gains nothing; one with workers is refused, since a loader belongs to the process that made it.
    """

    def __init__(
        self,
        loader: Loader,
        device: torch.device,
        on_device: Callable[[list[torch.Tensor]], list[torch.Tensor]],
        cuda: Cuda | None,
        decoding: Decoding | None = None,
    ) -> None:
        self._loader = loader
        self._device = device
        self._decoding = decoding
        self._n_host_arrays = 0 if decoding is None else N_HOST_ARRAYS
        self._convert = on_device
        self._on_device = on_device if decoding is None else lambda tensors: on_device(decoding.decode(tensors))
        self._copies = None
        if cuda is not None:
            self._copies = DeviceCopies(cuda, lambda: loader.maps, self._on_device, self._n_host_arrays)
        self._end = weakref.finalize(self, self._copies.close) if self._copies is not None else None
        # The position of the user's loop, while that of the copies is ahead of it.
        self._delivered: Position | None = None

    def __len__(self) -> int:
        """Batches in an epoch, as this rank sees it."""
        return len(self._loader)

    def __repr__(self) -> str:
        facts = "; ".join(f"{name}: {text}" for name, text in self._facts().items())
        return f"<prefetchd.torch.TensorLoader {facts}>"

    def _repr_html_(self) -> str:
        """Return the facts as a table, and pictures of the next batch; the loop stays as it is."""
        from prefetchd.client.notebook import loader_html

        return loader_html("prefetchd.torch.TensorLoader", self._facts(), self._loader, self._peek_arrays)

    def _facts(self) -> dict[str, str]:
        facts = self._loader._facts()
        if (at := self._delivered) is not None and self._running is not None:
            facts["next"] = f"epoch {at.epoch}, batch {at.batch}"
        facts["arrays"] = description.arrays(self._connection.info, self._loader.layout.batch_size, self._fields())
        return {**facts, "device": str(self._device)}

    def _fields(self) -> list[FieldLayout]:
        """Return shape and dtype of each tensor of a row, as the conversion makes them: by that of no rows."""
        layout = self._loader.layout if self._decoding is None else self._decoding.layout(self._loader.layout)
        none = [torch.from_numpy(np.empty((0, *each.shape), each.dtype)).to(self._device) for each in layout.fields]
        return [
            FieldLayout(each.name, tuple(made.shape[1:]), str(made.dtype).removeprefix("torch."))
            for each, made in zip(layout.fields, self._convert(none), strict=True)
        ]

    def stats(self) -> LoaderStats:
        """Return what was delivered and how long the loops waited; batches on their way to the device count too."""
        return self._loader.stats()

    @property
    def _connection(self) -> Connection:
        return self._loader._connection

    @property
    def epochs(self) -> int | None:
        """Epochs that one iteration runs over; `None` for ever."""
        return self._loader.epochs

    def status(self) -> dict[str, Any]:
        """Return what the daemon says of itself; see `prefetchd.Loader.status`."""
        return self._loader.status()

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._device

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration begin with `epoch`; see `prefetchd.Loader.set_epoch`."""
        self._loader.set_epoch(epoch)
        if self._running is None:
            self._delivered = None

    def state_dict(self) -> dict[str, Any]:
        """Return where the user's loop is, as plain JSON values; batches on their way to the device do not count."""
        at = self._delivered
        state = self._loader.state_dict() if at is None else self._loader.state_at(at)
        return state if self._decoding is None else {**state, "decoder": self._decoding.name}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on from `state`; see `prefetchd.Loader.load_state_dict`."""
        check_decoder(state, self._decoding)
        self._loader.load_state_dict(state)
        self._supersede()

    def peek(self) -> TensorBatch:
        """Return the batch that the user's loop gets next, in memory of its own; see `prefetchd.Loader.peek`."""
        return self._tensors(self._peek_arrays())

    def _peek_arrays(self) -> Batch:
        ahead = self._delivered if self._running is not None else None
        return self._loader.peek() if ahead is None else self._loader.peek_at(ahead)

    def batch_at(self, epoch: int, index: int) -> TensorBatch:
        """Return batch number `index` of `epoch`, in memory of its own; see `prefetchd.Loader.batch_at`."""
        return self._tensors(self._loader.batch_at(epoch, index))

    def __iter__(self) -> Generator[TensorBatch, None, None]:
        """Return a generator over the next `epochs` epochs. An earlier one ends, and raises if it is asked again."""
        arrays = iter(self._loader)
        self._supersede()
        run = self._run(arrays) if self._copies is None else self._run_ahead(arrays, self._copies)
        return self._begin(run)

    def _supersede(self) -> None:
        if (running := self._running) is not None:
            running.supersede()
        self._delivered = None

    # Neither generator may hold a batch while the user's loop has it: the slot must go back when the user's tensors do.

    def _run(self, arrays: Generator[Batch, None, None]) -> Generator[TensorBatch, None, None]:
        try:
            yield from map(self._tensors, arrays)
        finally:
            arrays.close()

    def _tensors(self, batch: Batch) -> TensorBatch:
        arrays = [torch.from_numpy(array) for array in leaves_of(batch)]
        n_host = self._n_host_arrays
        convert = self._on_device if self._copies is None else self._copies.convert_now
        tensors = convert([*arrays[:n_host], *(array.to(self._device) for array in arrays[n_host:])])
        return self._made(batch, tensors, batch.sample_ids)

    def _made(self, batch: Batch, tensors: Sequence[torch.Tensor], sample_ids: NDArray[np.int64]) -> TensorBatch:
        layout = batch._layout if self._decoding is None else self._decoding.layout(batch._layout)
        return TensorBatch.of(batch, layout, tensors, sample_ids)

    def _run_ahead(
        self, arrays: Generator[Batch, None, None], copies: DeviceCopies
    ) -> Generator[TensorBatch, None, None]:
        """Start the copy of a batch before its predecessor is delivered, if it is here and of the same epoch."""
        ahead: deque[_Ahead] = deque()
        try:
            while True:
                if ahead and (ahead[0].after.batch == 0 or not self._loader.is_ready):
                    yield self._deliver(ahead.popleft(), copies)
                copies.make_room()
                batch, before = None, self._loader.position
                try:
                    batch = next(arrays, None)
                    if batch is not None:
                        arriving = copies.start(batch.root, batch.place.rows, batch._layout)
                except PrefetchdError:
                    if batch is not None and self._delivered is None:
                        self._delivered = before  # the device could not decode the first one: it was not delivered
                    del batch
                    if ahead:
                        yield self._deliver(ahead.popleft(), copies)
                    raise
                if batch is None:
                    if ahead:
                        yield self._deliver(ahead.popleft(), copies)
                    return
                rows = (
                    [tensor[batch.first_row :] for tensor in arriving.tensors] if batch.first_row else arriving.tensors
                )
                tensors = self._made(batch, rows, batch.sample_ids.copy())
                ahead.append(_Ahead(tensors, arriving, self._loader.position))
                del batch, tensors, arriving, rows
                if len(ahead) > 1:
                    yield self._deliver(ahead.popleft(), copies)
        finally:
            arrays.close()
            copies.make_room(0)

    def _deliver(self, ahead: _Ahead, copies: DeviceCopies) -> TensorBatch:
        copies.hand_over(ahead.arriving)
        self._delivered = ahead.after
        return ahead.tensors

    def _end_session(self) -> None:
        if self._end is not None:
            self._end()
        self._loader.close()
