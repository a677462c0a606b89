"""Oxford Flowers-17: the TFDS builder folder."""
