"""Sparse encoders and the batches that feed them."""
