"""Samples with fields that are inspected and not delivered: every field is loaded, the facts are of the first image."""

from __future__ import annotations

from prefetchd.data.fields.source import FieldsSource
from prefetchd.data.images.inspection import InspectedImages


class InspectedFields(InspectedImages, FieldsSource):
    """The samples of a `FieldsSource`, whose records it borrows; a row is the `FACTS` of the first image."""
