"""Oxford Flowers-17: a TFDS builder folder that stands on its own.

Importing it registers `oxford_flowers17` with TFDS. Nothing in it imports from
outside but installed packages, so the folder can be copied into any project.
"""

from . import oxford_flowers17_dataset_builder  # noqa: F401
