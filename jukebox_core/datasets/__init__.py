"""Prepared data sets: their manifest, training crops, batches."""
