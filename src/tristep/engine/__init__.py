"""Inference: sounds are cut into segments, segments into batches, and one backbone answers them."""
