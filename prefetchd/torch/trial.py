"""One file that every library for JPEG decodes: shows whether a library that was found can decode here at all."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from prefetchd.torch.decoding import Decoder

# 32 x 32 pixels in colour, baseline, with the usual tables.
SIDE = 32
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8X"
    "GBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBT/wAAR"
    "CAAgACADASIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEG"
    "E1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWG"
    "h4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEB"
    "AQEBAQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYk"
    "NOEl8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0"
    "tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwDwyiiiv6tPxc+i6KKK/wA3z+4AooooAKKK"
    "KAP/2Q=="
)


def trial_file() -> torch.Tensor:
    """Return the file as decoders take files."""
    return torch.frombuffer(bytearray(JPEG), dtype=torch.uint8)


def try_out(decoder: Decoder) -> None:
    """Decode the file, and wait for its pixels.

    Raises:
        RuntimeError: if it does not become pixels; or what the library raises.
    """
    image = decoder.decode([trial_file()])[0]
    if image is None or image.cpu().shape != (SIDE, SIDE, 3):
        raise RuntimeError("it does not decode a JPEG that is good")
