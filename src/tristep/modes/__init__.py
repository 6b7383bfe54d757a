"""The three modes: data construction, optimisation target and decoding constraint of each."""
