"""The mathematics that modes choose their targets from: pure functions of tensors."""
