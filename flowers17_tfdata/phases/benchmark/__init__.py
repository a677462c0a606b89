"""`--phase=benchmark`: how fast each part is, beside its ceiling."""
