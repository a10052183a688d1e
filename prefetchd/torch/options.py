"""The options of `prefetchd.torch.batches`: a device, a share of the ranks, the conversion of x on the device.

`prefetchd.torch` calls them once for each loader.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from prefetchd.client.user_warnings import warn_user
from prefetchd.config.contradictions import doubts
from prefetchd.config.convert import dtype_name
from prefetchd.config.fields import parse_fields
from prefetchd.config.validate import make_config
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from prefetchd.batch_options import BatchOptions
    from prefetchd.client.loader import Loader

VALUE_OPTIONS = ("dtype", "scale", "mean", "std")


def find_device(device: str | int | torch.device | None) -> torch.device:
    """Return the device called `device`; the processor for `None`.

    Raises:
        ConfigError: if there is none of that name.
    """
    try:
        wanted = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"cannot use device={device!r}: {str(error).splitlines()[0]}; give 'cuda' or 'cpu'") from None
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"cannot deliver to {wanted}: PyTorch {torch.__version__} finds no CUDA device here; "
            "leave device out, or install a build of PyTorch for CUDA and its driver"
        )
    if wanted.type == "cuda" and wanted.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if wanted.type not in ("cpu", "cuda"):
        try:
            torch.empty(1, device=wanted)
        except Exception as error:  # of any type, by the kind of device
            raise ConfigError(
                f"cannot deliver to {wanted}: PyTorch {torch.__version__} cannot use such a device here "
                f"({str(error).splitlines()[0].partition('. ')[0]}); give 'cuda', or leave device out"
            ) from None
    return wanted


def choose_share(options: BatchOptions) -> None:
    """Fill in `rank` and `world_size` from the process group or torchrun's variables, where they are not numbers."""
    if options.get("rank") not in (None, "env") or options.get("world_size") is not None:
        return
    share: tuple[int, int] | None = None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        share = torch.distributed.get_rank(), torch.distributed.get_world_size()
        where = "the process group"
    elif os.environ.get("RANK", "").isdecimal() and os.environ.get("WORLD_SIZE", "").isdecimal():
        share = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        where = "RANK and WORLD_SIZE"
    if share is None:
        return  # and with rank="env" the error says what is missing
    if options.get("rank") is None and share[1] > 1:
        warn_user(
            f"this loader delivers the share of rank {share[0]} of {share[1]}, found in {where}; pass rank='env' if "
            "that is meant, or rank=0, world_size=1 for every rank to see everything, as for validation"
        )
    options["rank"], options["world_size"] = share


def conversion(
    loader: Loader, device: torch.device, values: Mapping[str, Any], *, permute: bool, decodes: bool = False
) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
    """Return the function that converts a batch's tensors on the device.

    Images get their channels second, and are normalised by `values`. With `decodes`, x is images by then.
    """
    config = loader.config
    if config["fields"] and any(value is not None for value in values.values()):
        raise ConfigError("cannot normalize fields on the device: each has values of its own; leave normalize out")
    images = _images(loader)
    is_images = loader.serves_images or decodes
    channels_second = config["layout"] == "nchw" or permute
    moves = is_images and config["layout"] == "nhwc" and permute
    given = {name: value for name, value in values.items() if value is not None}
    if given and not (is_images and config["dtype"] == "uint8"):
        what = f"{config['dtype']} images" if is_images else "arrays"
        raise ConfigError(
            f"cannot normalize on the device: the daemon serves {what}, and this is for uint8 images; "
            "leave normalize out, or serve dtype=uint8"
        )
    factors: tuple[torch.Tensor, torch.Tensor] | None = None
    dtype = None
    if given:
        name = dtype_name(given.get("dtype"))
        if name == "bfloat16":  # which numpy does not have, so no reader makes it
            given["dtype"] = "float32"
        checked = make_config(source=".", color=config["color"], channels=config["channels"], **given)
        if doubt := doubts(checked):
            warn_user(doubt)
        dtype = torch.bfloat16 if name == "bfloat16" else getattr(torch, checked.dtype)
        if len(given) > 1:
            shape = (-1, 1, 1) if channels_second else (-1,)
            scale, mean, std = (
                torch.tensor(value if value is not None else default, dtype=torch.float64).reshape(shape)
                for value, default in ((checked.scale, 1.0), (checked.mean, 0.0), (checked.std, 1.0))
            )
            factors = (scale / std).float().to(device), (-mean / std).float().to(device)

    def convert(x: torch.Tensor) -> torch.Tensor:
        if moves:
            x = x.movedim(-1, -3)
        if factors is not None:
            x = x.float().mul_(factors[0]).add_(factors[1])
        return x if dtype is None else x.to(dtype)

    def convert_images(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [convert(tensor) if place in images else tensor for place, tensor in enumerate(tensors)]

    return convert_images


def _images(loader: Loader) -> frozenset[int]:
    """Return which arrays of a batch are images: x, all but y of a list of views, or the fields of that kind."""
    fields = parse_fields(tuple(loader.config["fields"]))
    if loader.config["views"]:
        return frozenset(range(len(loader.layout.fields) - 1))
    names = {name for name, field in fields.items() if field.kind == "image"}
    arrays = loader.layout.fields
    return frozenset(place for place, each in enumerate(arrays) if each.name in names or not (fields or place))
