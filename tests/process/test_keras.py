"""Keras: `fit` on an endless, shuffled loader in one line, and sequences padded as `pad_sequences` does.

Each runs in an interpreter of its own: the backend is chosen when Keras is imported, once a process.
"""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests.process.commands import finish, start_script

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("keras") and importlib.util.find_spec("torch")),
    reason="needs prefetchd[keras,torch]",
)

_HEAD = """
import os
os.environ["KERAS_BACKEND"] = "<backend>"
import keras, numpy as np, prefetchd
keras.utils.set_random_seed(1)
"""
_DEADLINE_S = 110


def run_with_keras(folder: Path, code: str, backend: str = "torch") -> str:
    head = _HEAD.replace("<backend>", backend)
    result = finish(start_script(folder / "script.py", head + textwrap.dedent(code)), _DEADLINE_S)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_fit_on_endless_random_rows_of_tokens(tmp_path):
    """The generator that people write by hand, in one line: the loss falls."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 2000)
    lengths = rng.integers(1, 120, 2000)
    tokens = np.concatenate([rng.integers(1 + 50 * y, 50 + 50 * y, n) for y, n in zip(labels, lengths, strict=True)])
    np.save(tmp_path / "tokens.npy", tokens.astype(np.int32))
    np.save(tmp_path / "offsets.npy", np.concatenate(([0], np.cumsum(lengths))))
    np.save(tmp_path / "y.npy", labels)
    run_with_keras(
        tmp_path,
        f"""
        folder = {str(tmp_path)!r}
        model = keras.Sequential(
            [
                keras.layers.Embedding(100, 8),
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Dense(1, activation="sigmoid"),
            ]
        )
        model.compile("adam", "binary_crossentropy")
        loader = prefetchd.batches(
            folder + "/tokens.npy", offsets=folder + "/offsets.npy", labels=folder + "/y.npy", max_length=80,
            batch_size=64, shuffle=True, epochs=None, on_hold="copy", num_workers=1,
        )
        history = model.fit(iter(loader), steps_per_epoch=40, epochs=3, shuffle=False, verbose=0)
        losses = history.history["loss"]
        assert losses[0] > losses[1] > losses[2], losses
        loader.close()
        """,
    )


def test_fit_on_images(tmp_path):
    """Dark images and light ones, with some noise: a convolution tells them apart."""
    import cv2

    rng = np.random.default_rng(0)
    with (tmp_path / "train.txt").open("w") as manifest:
        for number in range(96):
            label = number % 2
            image = rng.integers(60 * label, 180 + 60 * label, (24, 24, 3)).astype(np.uint8)
            assert cv2.imwrite(str(tmp_path / f"{number}.png"), image)
            manifest.write(f"{number}.png {label}\n")
    run_with_keras(
        tmp_path,
        f"""
        model = keras.Sequential(
            [
                keras.layers.Conv2D(4, 3),  # nothing that can die, whatever the order
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(1, activation="sigmoid"),
            ]
        )
        model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy")
        loader = prefetchd.batches(
            {str(tmp_path / "train.txt")!r}, batch_size=16, image_size=16, dtype="float32", scale=1 / 255, shuffle=True,
            epochs=None, on_hold="copy", num_workers=1,
        )
        history = model.fit(
            iter(loader), steps_per_epoch=len(loader), epochs=5, shuffle=False, verbose=0
        )
        losses = history.history["loss"]
        assert losses[-1] < 0.9 * losses[0], losses
        loader.close()

        # As a dataset: Keras shuffles its numbers of batches, and sees each sample once an epoch all the same.
        import prefetchd.keras

        class Recorded(prefetchd.keras.Dataset):
            seen, passes = [], []

            def __getitem__(self, index):
                x, y = super().__getitem__(index)
                self.seen.extend(np.ravel(x[:, 0, 0, 0]).tolist())
                return x, y

            def on_epoch_end(self):
                super().on_epoch_end()
                self.passes.append(sorted(self.seen))
                self.seen.clear()

        options = dict(batch_size=16, image_size=16, dtype="float32", scale=1 / 255, num_workers=1)
        with prefetchd.batches({str(tmp_path / "train.txt")!r}, **options) as loader:
            everything = sorted(value for x, _ in loader for value in np.ravel(x[:, 0, 0, 0]).tolist())
        train = Recorded(prefetchd.batches({str(tmp_path / "train.txt")!r}, shuffle=True, on_hold="copy", **options))
        validation = prefetchd.keras.dataset({str(tmp_path / "train.txt")!r}, **options)
        history = model.fit(train, epochs=3, verbose=0, validation_data=validation)
        assert [len(values) for values in Recorded.passes[1:]] == [96, 96, 96]  # before them Keras may take a look
        assert all(values == everything for values in Recorded.passes[1:])
        assert history.history["val_loss"][-1] == model.evaluate(validation, verbose=0)
        train.close()
        validation.close()
        """,
    )


def test_sequences_are_padded_as_keras_pads_them(tmp_path):
    """All four combinations of the ends, lengths from 0 to three times the maximum, other dtypes and values."""
    rng = np.random.default_rng(2)
    lengths = np.concatenate(([0, 1, 7, 8, 9, 24], rng.integers(0, 24, 200)))
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    np.save(tmp_path / "offsets.npy", offsets)
    np.save(tmp_path / "int32.npy", rng.integers(1, 1000, offsets[-1], np.int32))
    np.save(tmp_path / "float32.npy", rng.random((offsets[-1], 2), np.float32))
    out = run_with_keras(
        tmp_path,
        f"""
        folder = {str(tmp_path)!r}
        offsets = np.load(folder + "/offsets.npy")
        compared = 0
        for dtype, value in (("int32", 0.0), ("float32", -1.5)):
            tokens = np.load(f"{{folder}}/{{dtype}}.npy")
            sequences = [tokens[start:end] for start, end in zip(offsets, offsets[1:])]
            for padding in ("pre", "post"):
                for truncating in ("pre", "post"):
                    how = dict(padding=padding, truncating=truncating)
                    wanted = keras.utils.pad_sequences(sequences, 8, dtype=dtype, value=value, **how)
                    with prefetchd.batches(
                        f"{{folder}}/{{dtype}}.npy", offsets=folder + "/offsets.npy", max_length=8, pad_value=value,
                        batch_size=50, num_workers=1, **how,
                    ) as loader:
                        for x, ids in loader:
                            np.testing.assert_array_equal(x, wanted[ids])
                            compared += len(ids)
        print(compared)
        """,
        backend="numpy",  # is loaded sooner
    )
    assert int(out) == 8 * len(lengths)
