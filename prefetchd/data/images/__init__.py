"""Encoded images to rows of a batch: header, decode, augment, resample, normalize."""
