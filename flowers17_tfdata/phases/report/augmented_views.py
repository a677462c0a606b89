"""Augmented views of a few images, made by the training pipeline itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.input.examples import load_examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sample(Source):
    """A few examples of another source, each in a class of its own."""

    _examples: tf.data.Dataset

    def read(self, split):
        return self._examples


def make_views(
    source: Source,
    config: InputConfig,
    *,
    num_images: int,
    num_views: int,
    seed: int,
) -> np.ndarray:
    """Returns augmented views of a few train images of different classes.

    Args:
      source: the data set.
      config: the image size, the augmentation, and the device that augments.
      num_images: the maximum number of images; fewer if there are fewer
        classes.
      num_views: the number of views of each image, one per epoch.
      seed: the seed of the augmentation.

    Returns:
      uint8 `[images, 1 + views, image_size, image_size, 3]`. The first of each
      row is the image as evaluation sees it.
    """
    # All views have the size of the clean image beside them, even if training
    # uses a smaller one.
    config = dataclasses.replace(config, train_scale=1.0)
    examples = load_examples(
        _first_of_classes(source, num_images), "train", config
    )
    num_images = examples.num_examples
    finish = input_pipeline.make_device_stage(config, tf.identity)
    augmented = input_pipeline.make_train_dataset(
        examples, config, tf.identity, global_batch_size=num_images, seed=seed
    )
    clean = input_pipeline.make_eval_dataset(
        examples, config, tf.identity, global_batch_size=num_images
    )
    size = config.image_size
    views = np.empty([num_images, 1 + num_views, size, size, 3], np.uint8)
    # An epoch is one batch, shuffled: the label identifies the image.
    for view, batch in enumerate([*clean, *augmented.take(num_views)]):
        pixels = np.clip(np.rint(finish(batch)), 0, 255)
        views[batch.labels.numpy(), view] = pixels
    return views


def _first_of_classes(source: Source, num_images: int) -> _Sample:
    """Returns the first train image of each of the first classes."""
    first: dict[int, dict] = {}
    for example in source.read("train").as_numpy_iterator():
        first.setdefault(int(example["label"]), example)
        if len(first) == num_images:
            break
    examples = {
        "image": [example["image"] for example in first.values()],
        "label": np.arange(len(first)),
        "id": [example["id"] for example in first.values()],
    }
    return _Sample(
        name=source.name,
        class_names=tuple(map(str, range(len(first)))),
        split_sizes={"train": len(first)},
        _examples=tf.data.Dataset.from_tensor_slices(examples),
    )
