"""What training sees of a picture, made by the training pipeline itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from flowers17_tfdata.config.config import InputConfig
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.input.examples import load_examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sample(Source):
    """Some examples of a source's split, each a class of its own."""

    _examples: tf.data.Dataset

    def read(self, split):
        self.check_split(split)
        return self._examples


def make_views(
    source: Source,
    split: str,
    config: InputConfig,
    *,
    num_images: int,
    num_views: int,
    seed: int,
) -> np.ndarray:
    """Draws augmented views of a few pictures of different classes.

    Args:
      source: the data set.
      split: to take the pictures from.
      config: image size, augmentation, and where it runs.
      num_images: pictures at most; fewer where there are fewer classes.
      num_views: of each picture, one an epoch.
      seed: of the augmentation.

    Returns:
      uint8 `[images, 1 + views, image_size, image_size, 3]`; the first of each
      row is the picture as evaluation sees it.
    """
    # To be looked at beside the picture: of its size, whatever training's is.
    config = dataclasses.replace(config, train_scale=1.0)
    sample = _first_of_classes(source, split, num_images)
    examples = load_examples(sample, split, config)
    num_images = examples.num_examples

    def identity(images):
        return images

    finish = input_pipeline.make_device_stage(config, identity)
    batches = input_pipeline.make_train_dataset(
        examples, config, identity, global_batch_size=num_images, seed=seed
    )
    clean = input_pipeline.make_eval_dataset(
        examples, config, identity, global_batch_size=num_images
    )
    size = config.image_size
    views = np.empty([num_images, 1 + num_views, size, size, 3], np.uint8)
    # An epoch is one batch, shuffled: the label tells which picture it is of.
    for view, batch in enumerate([*clean, *batches.take(num_views)]):
        pixels = np.clip(np.rint(finish(batch)), 0, 255)
        views[batch.labels.numpy(), view] = pixels
    return views


def _first_of_classes(source: Source, split: str, num_images: int) -> _Sample:
    """Takes the first picture of each of the first classes that come up."""
    images, ids, seen = [], [], set()
    for example in source.read(split).as_numpy_iterator():
        label = int(example["label"])
        if label in seen:
            continue
        seen.add(label)
        images.append(example["image"])
        ids.append(example["id"])
        if len(images) == num_images:
            break
    examples = tf.data.Dataset.from_tensor_slices(
        {
            "image": images,
            "label": np.arange(len(images)),
            "id": ids,
        }
    )
    return _Sample(
        name=source.name,
        class_names=tuple(map(str, range(len(images)))),
        split_sizes={split: len(images)},
        _examples=examples,
    )
