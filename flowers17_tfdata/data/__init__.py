"""The data sets.

Importing this registers `oxford_flowers17` with TFDS; then
`tfds.load("oxford_flowers17", split="train")` finds it.
"""

from flowers17_tfdata.data.oxford_flowers17 import (  # noqa: F401
    oxford_flowers17_dataset_builder,
)
