"""scikit-learn: `partial_fit`, batch by batch, on a data set that does not fit in memory.

python examples/sklearn_partial_fit.py DATA --epochs 10
"""

from __future__ import annotations

import numpy as np
from example_data import arguments
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

import prefetchd

options = arguments(__doc__)
classes = np.arange(options.classes)
model = SGDClassifier(loss="log_loss", random_state=0)
images = {
    "batch_size": options.batch_size, "image_size": 8, "interpolation": "area", "dtype": "float32", "scale": 1 / 255,
}  # fmt: skip
with (
    prefetchd.batches(options.data, split="0-90%", shuffle=True, **images) as train,
    prefetchd.batches(options.data, split="90-100%", **images) as validation,
):
    for epoch in range(options.epochs):
        losses = []
        for x, y in train:
            rows = x.reshape(len(x), -1)  # a view: nothing is copied
            model.partial_fit(rows, y, classes)
            losses.append(log_loss(y, model.predict_proba(rows), labels=classes))
        hits = sum(int((model.predict(x.reshape(len(x), -1)) == y).sum()) for x, y in validation)
        print(f"epoch {epoch}: loss {np.mean(losses):.4f}, accuracy {hits / validation.n_samples:.3f}")
