"""The frozen backbone's features of whole splits, for the solved head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowers17_tfdata.data.scan import Scan
from flowers17_tfdata.input import examples as examples_lib
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.models import batch_norm
from flowers17_tfdata.phases import train_data, train_models
from flowers17_tfdata.phases.train_data import Splits
from flowers17_tfdata.phases.train_features import FeatureExtractor
from flowers17_tfdata.session import Session
from flowers17_tfdata.training.preemption import StopRequest


class ImageFeatures(NamedTuple):
    """The features of n images.

    Attributes:
      ids: `[n]`; they may repeat in different splits.
      splits: the split of each image, `[n]`.
      groups: int64 `[n]`. Near-duplicates share a group, and so do images that
        the user keeps together.
      features: the features and the labels.
      scan: what was found by decoding all images of the data set.
    """

    ids: tuple[str, ...]
    splits: tuple[str, ...]
    groups: np.ndarray
    features: Features
    scan: Scan


def read_features(
    session: Session, splits: Sequence[str], num_views: int
) -> ImageFeatures:
    """Returns the features of splits, computed or from the workdir's cache.

    Args:
      session: the open run.
      splits: the names of the splits, train among them, in the order to return
        them.
      num_views: the views of each image: the image, its mirror image, then
        random ones.

    Raises:
      UserError: an image can't be decoded.
    """
    stop = StopRequest()
    options = session.config.input
    decoded = {
        split: examples_lib.load_examples(session.source, split, options)
        for split in splits
    }
    model = train_models.build_stage_model(session, "transfer").model
    images = train_data.image_data(
        session, Splits(decoded, decoded["train"], None), "transfer"
    )
    if images.statistics is not None:
        batch_norm.measure_statistics(model, images.statistics_batches())
    extractor = FeatureExtractor(session, model, stop)
    parts = [
        extractor.extract(split, examples, num_views)
        for split, examples in decoded.items()
    ]
    scan = session.source.scan()
    places = [(split, i) for split, e in decoded.items() for i in e.ids]
    return ImageFeatures(
        tuple(image_id for _, image_id in places),
        tuple(split for split, _ in places),
        session.source.groups_at(places, scan),
        Features(
            np.concatenate([part.values for part in parts], axis=1),
            np.concatenate([part.labels for part in parts]),
        ),
        scan,
    )
