"""Decoding on the device: encoded images from a slot become pixels there, in batches, by NVIDIA's library or PyTorch's.

`prefetchd.torch.batches(..., decode="device")` makes a `Decoding` where `find_decoder` finds a library. The readers
then deliver files as they are (`encoded_bytes`), and the slot stays leased until the device has decoded it. Both
libraries take files from the processor's memory, and parse them there. What they decode has other pixels than OpenCV's,
and is resized by PyTorch. So it is another content: the digest of the options, and the library's name in the state, say
so.

Not yet run on a GPU. Tests run it with a stand-in that decodes on the processor, and nvImageCodec's own processor path.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from prefetchd.client.sharing import choose_rank
from prefetchd.client.user_warnings import warn_user
from prefetchd.config.encoded import refuse_beside_encoded
from prefetchd.config.options import OPTIONS
from prefetchd.config.validate import check_options
from prefetchd.errors import ConfigError, SampleError
from prefetchd.ring.layout import BatchLayout, FieldLayout
from prefetchd.torch.options import VALUE_OPTIONS
from prefetchd.torch.trial import trial_file, try_out

if TYPE_CHECKING:
    from prefetchd.batch_options import BatchOptions
    from prefetchd.client.loader import Loader

N_HOST_ARRAYS = 2  # the files and their lengths stay in the processor's memory


class Decoder(Protocol):
    """A library that decodes on a device.

    Attributes:
        name: of it, with the version, for the state.
    """

    name: str

    def decode(self, files: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Return the pixels of each file, (height, width, 3) uint8 on the device; `None` for one that it cannot decode.

        `files` are (bytes,) uint8 in the processor's memory, and stay as they are until the present stream is done.
        """


class NvImageCodec:
    """NVIDIA's nvImageCodec: JPEG by the device's own decoder where it has one, other formats by the processor.

    Args:
        device: a CUDA device; with the processor it decodes there.
    """

    def __init__(self, device: torch.device) -> None:
        from nvidia import nvimgcodec

        self._codec: Any = nvimgcodec
        self._device = device
        self.name = f"nvimgcodec {nvimgcodec.__version__}"
        on_gpu = device.type == "cuda"
        number = (device.index or 0) if on_gpu else nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY
        backends = None if on_gpu else [nvimgcodec.Backend(nvimgcodec.CPU_ONLY)]
        self._decoder = nvimgcodec.Decoder(device_id=number, backends=backends)

    def decode(self, files: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """See `Decoder`."""
        streams = []
        for file in files:
            try:
                streams.append(self._codec.CodeStream(file.numpy()))
            except RuntimeError:  # it has no header that it knows
                streams.append(None)
        stream = torch.cuda.current_stream(self._device).cuda_stream if self._device.type == "cuda" else 0
        known = iter(self._decoder.decode([each for each in streams if each is not None], cuda_stream=stream))
        return [self._tensor(next(known)) if each is not None else None for each in streams]

    def _tensor(self, image: Any) -> torch.Tensor | None:
        if image is None:
            return None
        if image.buffer_kind == self._codec.ImageBufferKind.STRIDED_HOST:
            return torch.from_numpy(np.array(image)).to(self._device)
        return torch.as_tensor(image, device=self._device)  # shares the memory, by __cuda_array_interface__


class TorchvisionJpeg:
    """torchvision's `decode_jpeg` on the device: nvJPEG, for JPEG alone."""

    def __init__(self, device: torch.device) -> None:
        from torchvision.io import ImageReadMode, decode_jpeg

        self._decode_jpeg: Any = decode_jpeg
        self._mode = ImageReadMode.RGB
        self._device = device
        self.name = f"torchvision {importlib.metadata.version('torchvision')}"

    def decode(self, files: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """See `Decoder`."""
        try:
            return self._pixels(files)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:  # it names none of them
            images = [self._alone(file) for file in files]
            if any(image is not None for image in images) or self._alone(trial_file()) is not None:
                return images
            raise  # no file is at fault where a good one fails too

    def _pixels(self, files: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        images = self._decode_jpeg(list(files), mode=self._mode, device=self._device)
        return [image.permute(1, 2, 0) for image in images]

    def _alone(self, file: torch.Tensor) -> torch.Tensor | None:
        try:
            return self._pixels([file])[0]
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:
            return None


_LIBRARIES = (("nvidia.nvimgcodec", NvImageCodec), ("torchvision", TorchvisionJpeg))


def find_decoder(device: torch.device) -> Decoder | str:
    """Return what decodes on `device`, once it has decoded one file there; why there is nothing, if there is not.

    Raises:
        torch.cuda.OutOfMemoryError: where the device has no memory left, which says nothing of a library.
    """
    if device.type != "cuda":
        return "it needs device='cuda', and the device here is the processor"
    why = []
    for module, library in _LIBRARIES:
        package = module.partition(".")[0]
        try:
            if importlib.util.find_spec(package) is None or importlib.util.find_spec(module) is None:
                continue
            decoder = library(device)
            try_out(decoder)
            return decoder
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # what it lacks shows by the first file, such as nvJPEG in torchvision
            said = str(error).splitlines()
            why.append(f"{module} cannot be used ({said[0] if said else repr(error)})")
    return "; ".join(why) or "neither nvImageCodec (pip install nvidia-nvimgcodec-cu12) nor torchvision is installed"


def choose_decoder(decode: str, device: torch.device, options: BatchOptions, *, has_source: bool) -> Decoder | None:
    """Return what decodes on the device; `None` where the readers do, as asked for or for want of it.

    Takes `encoded_bytes` out of `options` where the readers do for want of it. `options` have the share of this rank.

    Raises:
        ConfigError: for options that contradict it, also where nothing is installed; where nothing decodes on the
            device, if there are other ranks, which might train on other pixels.
    """
    if decode not in ("readers", "device"):
        raise ConfigError(f"cannot use decode={decode!r}: it must be 'readers' or 'device'")
    if decode == "readers":
        return None
    if options.get("config") is not None:
        raise ConfigError(
            "cannot use decode='device' with config: what the file says of pixels would stay in force where readers "
            "decode; give its options as keywords, or leave decode out"
        )
    has_mix = bool(options.get("mix")) and options.get("daemon") is None and options.get("dataset") is None
    attaches = not has_source and not has_mix
    given = {name: value for name, value in options.items() if name in OPTIONS and name not in VALUE_OPTIONS}
    refuse_beside_encoded(check_options({name: value for name, value in given.items() if value is not None}))
    if not attaches and options.get("encoded_bytes") is None:
        raise ConfigError(
            "cannot decode on the device without encoded_bytes: files go into slots as they are; give encoded_bytes, "
            "the most bytes of one"
        )
    found = find_decoder(device)
    if not isinstance(found, str):
        return found
    if attaches:
        raise ConfigError(f"cannot decode on the device: {found}; attach to a daemon whose readers decode")
    if _n_ranks(options) > 1:
        raise ConfigError(
            f"cannot decode on the device of this rank: {found}; mend that, or leave decode and encoded_bytes out on "
            "every rank, whose pixels are the same then"
        )
    warn_user(f"decode='device' is left to the readers, whose pixels are others: {found}")
    options.pop("encoded_bytes", None)
    return None


def _n_ranks(options: BatchOptions) -> int:
    rank, world_size = options.get("rank"), options.get("world_size")
    return 1 if rank is None and world_size is None else choose_rank(rank, world_size)[1]


def check_decoder(state: object, decoding: Decoding | None) -> None:
    """Raise `ConfigError` if the images of a saved `state` were decoded by another library."""
    then = state.get("decoder") if isinstance(state, Mapping) else None
    now = None if decoding is None else decoding.name
    if then != now and isinstance(state, Mapping):
        raise ConfigError(
            f"cannot resume: images were decoded by {then or 'the readers'} when the state was saved, and by "
            f"{now or 'the readers'} here, with other pixels; resume with the same"
        )


class Decoding:
    """Makes a batch of pixels from the arrays of a batch of encoded images.

    Args:
        decoder: the library.
        loader: of encoded images; for its options.

    Raises:
        ConfigError: if the loader's images are decoded already.
    """

    def __init__(self, decoder: Decoder, loader: Loader) -> None:
        if loader.config.get("encoded_bytes") is None:  # a field of bytes has the same arrays, of what may be no image
            names = ", ".join(loader.layout.names)
            raise ConfigError(
                f"cannot decode on the device: the daemon delivers {names}, and no encoded images; start it with "
                "--encoded-bytes, or leave decode out"
            )
        self.name = decoder.name
        self._decoder = decoder
        height, width = loader.config["image_size"]
        self._size = int(height), int(width)
        self._channels_first = loader.config["layout"] == "nchw"

    def layout(self, encoded: BatchLayout) -> BatchLayout:
        """Return the layout of the batches that are made of batches of `encoded`."""
        shape = (3, *self._size) if self._channels_first else (*self._size, 3)
        fields = (FieldLayout("x", shape, "uint8"), *encoded.fields[N_HOST_ARRAYS:])
        return BatchLayout(encoded.batch_size, fields, encoded.sources)

    def decode(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the arrays of a batch with pixels in place of the first two, which are files and their lengths.

        Raises:
            SampleError: if the library cannot decode a file.
        """
        content, lengths, *others = tensors
        files = [row[:length] for row, length in zip(content, lengths.tolist(), strict=True)]
        images = self._decoder.decode(files)
        for row, image in enumerate(images):
            if image is None:
                raise SampleError(
                    f"cannot decode row {row} of a batch on the device: {self.name} does not decode its "
                    f"{len(files[row])} bytes; find it with `prefetchd verify`, or let readers decode"
                )
        x = torch.stack([self._placed(image) for image in images if image is not None])
        return [x if self._channels_first else x.permute(0, 2, 3, 1).contiguous(), *others]

    def _placed(self, image: torch.Tensor) -> torch.Tensor:
        """Return an image stretched to the delivered size, (3, height, width) uint8."""
        pixels = image.permute(2, 0, 1)
        if pixels.shape[1:] == self._size:
            return pixels
        values = functional.interpolate(pixels[None].float(), self._size, mode="bilinear", antialias=True)
        return values[0].round_().clamp_(0, 255).to(torch.uint8)
