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


def describe(config: InputConfig) -> str:
    """Says what training does to an image, for the sentence on the page."""
    parts = {
        f"rotated by up to {config.rotation:g}°": config.rotation > 0,
        f"shifted by up to {config.shift:.0%} of its size": config.shift > 0,
        f"stretched to {1 - config.zoom:.0%} to {1 + config.zoom:.0%}": (
            config.zoom > 0
        ),
        f"cropped to {config.crop:.0%} to 100% of its area": config.crop < 1,
        "mirrored half of the time": config.horizontal_flip,
    }
    used = [text for text, is_used in parts.items() if is_used]
    if config.augmentation == "none" or not used:
        return "nothing is changed"
    return f"each image is {', '.join(used)}"


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
