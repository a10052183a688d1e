"""Images for tests, made in code: photographs, odd kinds, and what cannot be read."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

Pixels = NDArray[np.uint8]


def photograph(height: int, width: int, seed: int = 0) -> Pixels:
    """Return (height, width, 3) uint8 pixels (BGR) with a photograph's 1/f spectrum."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1
    channels = []
    for _ in range(3):
        spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency
        plane = np.fft.irfft2(spectrum, s=(height, width))
        plane = (plane - plane.mean()) / (plane.std() or 1)
        channels.append(np.clip(plane * 55 + 120, 0, 255))
    return np.dstack(channels).astype(np.uint8)


def write_jpeg(path: Path, size: tuple[int, int] = (96, 128), seed: int = 0, quality: int = 92) -> Path:
    """Write a baseline JPEG of `size` (height, width) and return its path."""
    ok, encoded = cv2.imencode(".jpg", photograph(*size, seed), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    path.write_bytes(encoded.tobytes())
    return path


def write_two_classes(folder: Path, *sizes: tuple[int, int]) -> list[tuple[str, int]]:
    """Write `cat/0.jpg`, `dog/1.jpg` ... `dog/7.jpg` into `folder`, of `sizes` in turn.

    Return (path, label) of each, the path from the folder above.
    """
    rows = []
    for number in range(8):
        path = f"{folder.name}/{('cat', 'dog')[number % 2]}/{number}.jpg"
        (folder.parent / path).parent.mkdir(parents=True, exist_ok=True)
        write_jpeg(folder.parent / path, sizes[number % len(sizes)], seed=number)
        rows.append((path, number % 2))
    return rows


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x112] = orientation
    return tags


def interlaced_png(pixels: Pixels) -> bytes:
    """Encode (H, W, 3) RGB pixels with Adam7 interlacing, which neither Pillow nor OpenCV writes."""
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    raw = b""
    for left, top, across, down in passes:
        part = pixels[top::down, left::across]
        if part.size:
            raw += b"".join(b"\0" + row.tobytes() for row in part)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = pixels.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def write_kinds(
    folder: Path, size: tuple[int, int] = (60, 83), wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Path]:
    """Write one good image of each kind, all of `size` (height, width), and return name -> path.

    What takes long to encode is left out if its name is not `wanted`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bgr = photograph(*size, 7)
    rgb = np.ascontiguousarray(bgr[..., ::-1])
    image = Image.fromarray(rgb)
    alpha = Image.fromarray(np.dstack([rgb, bgr[..., 0]]))
    paths: dict[str, Path] = {}

    def put(name: str, picture: Image.Image, **options: Any) -> None:
        if not wanted(name):
            return
        paths[name] = folder / name
        if name.endswith(".png"):
            options["compress_level"] = 1  # six times as fast as Pillow's own
        elif name.endswith(".webp"):
            options["method"] = 0  # the fastest
        picture.save(paths[name], **options)

    put("baseline.jpg", image, quality=90)
    put("progressive.jpg", image, progressive=True)
    put("full_chroma.jpg", image, subsampling=0)
    put("grey.jpg", image.convert("L"))
    put("cmyk.jpg", image.convert("CMYK"))
    for orientation in range(1, 9):
        put(f"exif{orientation}.jpg", image, exif=exif(orientation))
    if wanted("baseline.jpg"):
        paths["trailing.jpg"] = folder / "trailing.jpg"
        paths["trailing.jpg"].write_bytes(paths["baseline.jpg"].read_bytes() + bytes(range(256)) * 400)
    put("rgb.png", image)
    put("grey.png", image.convert("L"))
    put("one_bit.png", image.convert("1"))
    few_colours = image.quantize(16, Image.Quantize.FASTOCTREE)
    put("palette.png", few_colours)
    put("alpha.png", alpha)
    put("grey_alpha.png", alpha.convert("LA"))
    put("exif6.png", image, exif=exif(6))
    paths["interlaced.png"] = folder / "interlaced.png"
    paths["interlaced.png"].write_bytes(interlaced_png(rgb))
    for name, pixels in (("deep.png", bgr), ("deep_grey.png", bgr[..., 0]), ("deep.tiff", bgr)):
        paths[name] = folder / name
        assert cv2.imwrite(str(paths[name]), pixels.astype(np.uint16) * 257)
    put("rgb.bmp", image)
    put("palette.bmp", few_colours)
    put("rgb.gif", image)
    put("animated.gif", image, save_all=True, append_images=[image.rotate(90)])
    put("rgb.tiff", image)
    put("lzw.tiff", image, compression="tiff_lzw")
    put("exif6.tiff", image, exif=exif(6))
    if features.check("webp"):
        put("lossy.webp", image)
        put("lossless.webp", image, lossless=True)
        put("alpha.webp", alpha)
        put("exif6.webp", image, exif=exif(6))
    if features.check("avif"):
        put("rgb.avif", image, speed=10)
        put("alpha.avif", alpha, speed=10)
    if features.check("jpg_2000"):
        put("rgb.jp2", image)
        put("grey.jp2", image.convert("L"))
        put("alpha.jp2", alpha)
        put("deep.jp2", Image.fromarray(bgr[..., 0].astype(np.uint16) * 257))
        put("tiles.jp2", image, tile_size=(32, 32))
        put("lossy.jp2", image, irreversible=True, quality_layers=[20])
        put("codestream.j2k", image, no_jp2=True)
    for name, data in write_rasters(bgr).items():
        paths[name] = folder / name
        paths[name].write_bytes(data)
    return paths


def write_rasters(bgr: Pixels) -> dict[str, bytes]:
    """Encode `bgr` in the formats that are rows of numbers behind a short header; return name -> file."""
    gray = np.ascontiguousarray(bgr[..., 0])
    height, width = gray.shape
    floats = bgr.astype(np.float32)

    def encoded(suffix: str, pixels: NDArray[Any], *options: int) -> bytes:
        ok, data = cv2.imencode(suffix, pixels, options)
        assert ok
        return data.tobytes()

    bits = "\n".join("".join(map(str, row)) for row in (gray > 120).astype(int).tolist())
    return {
        "grey.pgm": encoded(".pgm", gray),
        "deep.pgm": encoded(".pgm", gray.astype(np.uint16) * 257),
        "plain.pgm": encoded(".pgm", gray, cv2.IMWRITE_PXM_BINARY, 0),
        "few.pgm": b"P5 # levels from 0 to 77\n# a comment\n%d %d\t77\n" % (width, height) + (gray % 78).tobytes(),
        "rgb.ppm": encoded(".ppm", bgr),
        "deep.ppm": encoded(".ppm", bgr.astype(np.uint16) * 257),
        "plain.ppm": encoded(".ppm", bgr, cv2.IMWRITE_PXM_BINARY, 0),
        "packed.pbm": encoded(".pbm", gray),
        "plain.pbm": f"P1\n{width} {height}\n{bits}\n".encode(),
        "rgb.pam": encoded(".pam", bgr),
        "grey.pam": encoded(".pam", gray),
        "rgb.pfm": encoded(".pfm", floats),
        "grey.pfm": encoded(".pfm", np.ascontiguousarray(floats[..., 0])),
        "rgb.hdr": encoded(".hdr", floats / 255),
        "flat.hdr": encoded(".hdr", floats / 255, cv2.IMWRITE_HDR_COMPRESSION, 0),
        "rgb.ras": encoded(".ras", bgr),
        "grey.ras": encoded(".ras", gray),
        "alpha.ras": encoded(".ras", np.dstack([bgr, gray])),
    }


def write_bad(folder: Path) -> dict[str, Path]:
    """Write what cannot be had as an image, and return name -> path. Root can read `no_permission`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (
        "missing",
        "empty",
        "truncated",
        "truncated_progressive",
        "header_only",
        "text",
        "zeros",
        "directory",
        "fifo",
        "no_permission",
    )
    paths = {name: folder / f"{name}.jpg" for name in names}
    paths["truncated_png"] = folder / "truncated.png"
    paths["empty"].write_bytes(b"")
    whole = write_jpeg(folder / "whole.jpg", (120, 160), 3).read_bytes()
    paths["truncated"].write_bytes(whole[: len(whole) * 2 // 3])
    paths["header_only"].write_bytes(whole[:40])
    Image.fromarray(photograph(120, 160, 4)).save(folder / "whole.png")
    png = (folder / "whole.png").read_bytes()
    paths["truncated_png"].write_bytes(png[: len(png) * 2 // 3])
    Image.fromarray(photograph(120, 160, 5)).save(folder / "progressive.jpg", progressive=True)
    progressive = (folder / "progressive.jpg").read_bytes()
    paths["truncated_progressive"].write_bytes(progressive[: len(progressive) * 4 // 5])
    for left_over in ("whole.jpg", "whole.png", "progressive.jpg"):
        (folder / left_over).unlink()
    paths["text"].write_text("this is not an image, whatever its name says\n")
    paths["zeros"].write_bytes(bytes(5000))
    paths["directory"].mkdir(exist_ok=True)
    if not paths["fifo"].exists():
        os.mkfifo(paths["fifo"])
    paths["no_permission"].write_bytes(whole)
    paths["no_permission"].chmod(0)
    return paths


def claims() -> dict[str, bytes]:
    """Return tiny files, by name, that claim gigabytes of working memory for less than 250 million pixels."""

    def tiff(samples: int, width: int, height: int, tile: int = 0) -> bytes:
        tags = {256: width, 257: height, 258: 8, 259: 5, 262: 2, 273: 8, 277: samples, 278: height, 279: 10}
        tags |= {322: tile, 323: tile, 324: 8, 325: 10} if tile else {}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)

    def box(name: bytes, *bodies: bytes) -> bytes:
        body = b"".join(bodies)
        return struct.pack(">I4s", len(body) + 8, name) + body

    def codestream(width: int, height: int, tile: int, channels: int) -> bytes:
        size = struct.pack(">HIIIIIIIIH", 0, width, height, 0, 0, tile, tile, 0, 0, channels) + b"\7\1\1" * channels
        return b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size + b"\xff\xd9"

    frame = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
    extent = box(b"ispe", bytes(4), struct.pack(">II", 15000, 15000))
    lossless = struct.pack("<BI", 0x2F, 16383 | 14999 << 14) + bytes(9)
    head = struct.pack(">IIBBBBB", 15800, 15800, 16, 6, 0, 0, 1)
    return {
        "samples.tiff": tiff(60000, 9000, 9000),
        "alpha.tiff": tiff(4, 15800, 15800),
        "tile.tiff": tiff(3, 16, 16, 40000),
        "canvas.gif": b"GIF89a" + struct.pack("<HH", 15800, 15800) + b"\x80\0\0" + bytes(6) + frame,
        "lossless.webp": b"RIFF" + struct.pack("<I", 26) + b"WEBPVP8L" + struct.pack("<I", 14) + lossless,
        "extent.avif": box(b"ftyp", b"avif" + bytes(4) + b"avif")
        + box(b"meta", bytes(4), box(b"iprp", box(b"ipco", extent))),
        "interlaced.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + head + bytes(4) + b"\0\0\0\0IEND\xaeB`\x82",
        "wide.j2k": codestream(15000, 15000, 15000, 3),
        "tiles.j2k": codestream(255, 255, 1, 100),
    }  # fmt: skip
