"""Parquet files of images, read by row group."""
