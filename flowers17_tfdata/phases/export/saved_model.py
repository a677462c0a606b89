"""The SavedModel, which maps image files to class names and probabilities."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import tensorflow as tf

from flowers17_tfdata.data import decode
from flowers17_tfdata.phases.export import pictures_in_graph
from flowers17_tfdata.phases.export.network import (
    Answers,
    Network,
    to_numpy,
)

# The number of images of a request that are decoded at the same time.
_PARALLEL = 32
_MAX_LABELS = 5


class _Server(tf.Module):
    """The SavedModel's functions.

    Args:
      network: the classifier.
      class_names: the class names in the order of the network's outputs.
    """

    def __init__(self, network: Network, class_names: Sequence[str]):
        super().__init__(name="server")
        self._network = network
        self._class_names = tuple(class_names)

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")]
    )
    def serve(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decodes, turns upright, resizes and classifies.

        Args:
          image_bytes: string `[batch]`: files of any sizes; see
            `pictures_in_graph`. If one can't be decoded, the whole request
            fails.

        Returns:
          What `trust.answer` returns, classes in the order of their ids;
          `labels`, string `[batch, k]`, and `scores`, float32 `[batch, k]`: the
          k most likely classes and their probabilities, the most likely first.
        """
        size = self._network.image_size

        def pixels(encoded):
            image = pictures_in_graph.decode_upright(encoded)
            return decode.resize(image, size)

        # The accelerator has no decoder.
        with tf.device("CPU:0"):
            images = tf.map_fn(
                pixels,
                image_bytes,
                fn_output_signature=tf.TensorSpec([size, size, 3], tf.uint8),
                parallel_iterations=_PARALLEL,
            )
        answer = self._network.answer(tf.cast(images, tf.float32))
        k = min(_MAX_LABELS, len(self._class_names))
        scores, ids = tf.math.top_k(answer["probabilities"], k)
        labels = tf.gather(self.class_names(), ids)
        return answer | {"labels": labels, "scores": scores}

    @tf.function(input_signature=[])
    def class_names(self) -> tf.Tensor:
        """Returns string `[num_classes]`, in the order of the class ids."""
        return tf.constant(self._class_names)


def save(
    network: Network, class_names: Sequence[str], folder: pathlib.Path
) -> None:
    """Writes the SavedModel; its one signature is `_Server.serve`."""
    server = _Server(network, class_names)
    tf.saved_model.save(server, str(folder), signatures=server.serve)


def load(folder: pathlib.Path) -> Callable[[Sequence[bytes]], Answers]:
    """Returns a function from image files to answers."""
    serve = tf.saved_model.load(str(folder)).signatures["serving_default"]

    def classify(encoded: Sequence[bytes]) -> Answers:
        return to_numpy(
            serve(image_bytes=tf.constant(list(encoded), tf.string))
        )

    return classify
