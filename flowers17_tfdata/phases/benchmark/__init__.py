"""The phase `benchmark`: throughput beside its ceilings and stock Keras."""
