"""Tells which images TFDS could store but not read back."""

from __future__ import annotations

import io
from collections.abc import Mapping

import tensorflow as tf
from PIL import Image

from .errors import one_line

# What TensorFlow decodes, whatever a file is called.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP")


def find_undecodable(images: Mapping[str, bytes]) -> dict[str, str]:
    """Decodes every image as reading the data set will.

    Args:
      images: `{file name: JPEG bytes}`.

    Returns:
      `{file name: one line that says why}` of those that can't be decoded.
    """
    errors = {}
    for name, data in images.items():
        try:
            # Looks at the header alone and refuses a size that TensorFlow's
            # decoder would allocate, whatever it is.
            Image.open(io.BytesIO(data), formats=_FORMATS).close()
            tf.io.decode_image(data, channels=3, expand_animations=False)
        except OSError:
            errors[name] = "no header of a JPEG, PNG, GIF or BMP"
        except (
            Image.DecompressionBombError,
            tf.errors.InvalidArgumentError,
        ) as error:
            # Between the op's name and its suffix, which say nothing.
            message = str(error).rpartition("}} ")[2].split(" [Op:")[0]
            errors[name] = one_line(message, 160)
    return errors
