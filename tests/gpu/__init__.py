"""Tests on a CUDA device. All are skipped, with the reason, where there is none; `scripts/bench/gpu.py` runs them."""
