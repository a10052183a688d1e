"""Samples with fields: what each field delivers, and how its value gets into a row.

Kinds without pixels are in `values`; images and masks are in `pixels`. To add a kind, give `config.fields` its
parameters, `layouts.LEAVES` its arrays, and `sample.PARTS` the class that loads it.
"""
