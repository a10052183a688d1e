"""What a notebook shows of a loader: its facts, and pictures of the batch that comes next.

The batch is read by a cursor of its own, so the loop and its position stay as they are. It is waited for
`PATIENCE_S` at most, and any failure leaves the facts alone: showing a loader never raises. Everything that comes from
the data is escaped.
"""

from __future__ import annotations

import base64
import html
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from prefetchd.errors import one_line

if TYPE_CHECKING:
    from prefetchd.client.batch import Batch
    from prefetchd.client.loader import Loader

PATIENCE_S = 3.0
_SHOWN = 8
_TILE_PX = 112
_QUALITY = 85
_SHOWN_CHARACTERS = 40


def loader_html(title: str, facts: Mapping[str, str], loader: Loader, peek: Callable[[], Batch]) -> str:
    """Return the facts of a loader as a table, with the pictures of its next batch above it if they come in time.

    Args:
        title: what it is.
        facts: by the word for each.
        loader: whose batches they are.
        peek: returns the next batch, in memory of its own.
    """
    pictures = _in_time(lambda: _pictures(loader, peek()))
    rows = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(text)}</td></tr>'
        for name, text in facts.items()
    )
    return f"<div><b>{html.escape(title)}</b>{pictures}<table>{rows}</table></div>"


def _in_time(make: Callable[[], str]) -> str:
    """Return what `make` returns, or a sentence in its place: it failed, or it takes longer than `PATIENCE_S`."""
    made: list[str] = []

    def run() -> None:
        try:
            made.append(make())
        except Exception as error:  # of any kind: a notebook shows the rest
            made.append(_sentence(f"no pictures of the next batch: {one_line(str(error))}"))

    thread = threading.Thread(target=run, name="prefetchd-notebook", daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return made[0] if made else _sentence(f"the next batch was not here within {PATIENCE_S:g} s")


def _sentence(text: str) -> str:
    return f'<div style="opacity:.7">{html.escape(text)}</div>'


def _pictures(loader: Loader, batch: Batch) -> str:
    from prefetchd.config.fields import image_config, parse_fields
    from prefetchd.config.validate import make_config

    given = {name: value for name, value in loader.config.items() if value is not None}
    config = make_config(**given)
    fields = parse_fields(config.fields)
    image = (
        next((name for name, field in fields.items() if field.kind == "image"), None) if fields else batch._fields[0]
    )
    if not loader.serves_images or image is None:
        return _sentence(f"first samples: {_values(batch)}")
    own = image_config(config, fields[image]) if fields else config
    label = (
        next((name for name, field in fields.items() if field.kind == "label"), None) if fields else batch._fields[-1]
    )
    # Names are those of the first field that has some, and of labels before `target_transform`.
    n_named = sum(field.kind in ("label", "boxes", "keypoints") for field in fields.values())
    classes = loader.classes if n_named <= 1 and config.target_transform is None else None
    tiles = []
    for row in range(min(_SHOWN, len(batch[image]))):
        pixels = batch[image][row]
        while pixels.ndim > 3:  # the first of several views
            pixels = pixels[0]
        caption = _caption(batch[label][row], classes) if label is not None else ""
        tiles.append(_tile(pixels, own, caption))
    where = _sentence(f"the next batch: number {batch.index} of epoch {batch.epoch}")
    return f'{where}<div style="display:flex;flex-wrap:wrap;gap:4px">{"".join(tiles)}</div>'


def _tile(pixels: Any, config: Any, caption: str) -> str:
    """Return one picture as HTML that has its bytes in it."""
    import cv2

    from prefetchd.client.pictures import to_display

    picture = to_display(pixels, config)
    factor = min(1.0, _TILE_PX / max(picture.shape[:2]))
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    shown_pixels = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", shown_pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    source = f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"
    shown = html.escape(caption)
    return (
        f'<figure style="margin:0;width:{_TILE_PX}px;font-size:11px;text-align:center">'
        f'<img src="{source}" alt="{shown}" style="max-width:100%"/>'
        f'<figcaption style="overflow-wrap:anywhere">{shown}</figcaption></figure>'
    )


def _caption(label: Any, classes: tuple[str, ...] | None) -> str:
    """Return a label in words: the name of its class, its numbers, or how many objects it has."""
    import numpy as np

    values = np.asarray(label)
    if values.ndim > 1:
        return ""
    if values.ndim == 0 and classes is not None and values.dtype.kind in "iu" and 0 <= int(values) < len(classes):
        return _cut(one_line(classes[int(values)]))
    return _cut(" ".join(f"{value:.4g}" for value in values.ravel()[:4].tolist()))


def _values(batch: Batch) -> str:
    first = {name: repr(value[:1].tolist()) if hasattr(value, "tolist") else "..." for name, value in batch.items()}
    return ", ".join(f"{name} {_cut(text)}" for name, text in first.items())


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
