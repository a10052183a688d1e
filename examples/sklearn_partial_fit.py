"""scikit-learn: `partial_fit`, batch by batch, on a data set that does not fit in memory.

python examples/sklearn_partial_fit.py [MANIFEST] [--epochs N]
"""

from __future__ import annotations

import numpy as np
from example_data import arguments
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

import prefetchd

options = arguments(__doc__)
classes = np.arange(8)
model = SGDClassifier(loss="log_loss", random_state=0)
with prefetchd.batches(
    options.manifest, batch_size=16, image_size=8, interpolation="area", dtype="float32", scale=1 / 255, shuffle=True
) as loader:
    for epoch in range(options.epochs):
        losses = []
        for x, y in loader:
            rows = x.reshape(len(x), -1)  # a view: nothing is copied
            model.partial_fit(rows, y, classes)
            losses.append(log_loss(y, model.predict_proba(rows), labels=classes))
        print(f"epoch {epoch}: loss {np.mean(losses):.4f}")
