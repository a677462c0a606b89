"""The data sets.

Importing this registers `oxford_flowers17` with TFDS; then
`tfds.load("oxford_flowers17", split="train")` finds it.
"""

from flowers17_tfdata.data import oxford_flowers17  # noqa: F401
