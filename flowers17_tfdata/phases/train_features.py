"""The features of the frozen backbone: computed once, then cached."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata import files, machine, terminal, timings
from flowers17_tfdata.errors import counted
from flowers17_tfdata.input import augmentation, feature_cache, input_pipeline
from flowers17_tfdata.input.examples import Examples, choose_examples
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.models import backbones, batch_norm, classifier, folding
from flowers17_tfdata.phases.train_data import Splits
from flowers17_tfdata.session import Session
from flowers17_tfdata.training import inference
from flowers17_tfdata.training.preemption import StopRequest
from flowers17_tfdata.training.stage import StageData


def extract_features(
    session: Session,
    splits: Splits,
    images: StageData,
    model: keras.Model,
    stop: StopRequest,
) -> tuple[Features, Features | None]:
    """Returns the features of the frozen backbone, computed or cached.

    Args:
      session: the open run.
      splits: the splits to train and validate on.
      images: the images of these splits.
      model: the classifier. If its batch-norm has no statistics, they are
        measured first.
      stop: the request to stop.

    Returns:
      The features to train on, and those to validate on, if any.

    Raises:
      Preempted: the process was asked to stop.
    """
    config = session.config
    if images.statistics is not None:
        batch_norm.measure_statistics(model, images.statistics_batches())
    extractor = FeatureExtractor(session, model, stop)
    views = augmentation.num_views(config.input, config.input.feature_views)
    with timings.measure(session.output, "transfer: features"):
        parts = [
            extractor.extract(name, examples, views)
            for name, examples in splits.trained.items()
        ]
        train = Features(
            np.concatenate([part.values for part in parts], axis=1),
            np.concatenate([part.labels for part in parts]),
        )
        if splits.validation is None:
            return train, None
        # A refit trains on all views of these images.
        count = views if config.optimization.refit else 1
        return train, extractor.extract("validation", splits.validation, count)


class FeatureExtractor:
    """Computes the features of splits, or reads them from the workdir.

    Args:
      session: the open run.
      model: the classifier whose backbone is used.
      stop: the request to stop.
    """

    def __init__(self, session: Session, model: keras.Model, stop: StopRequest):
        self._session = session
        self._stop = stop
        # The size that the head must classify.
        self._options = dataclasses.replace(
            session.config.input, train_scale=1.0
        )
        extractor = classifier.get_feature_extractor(model)
        with session.strategy.scope():
            model = folding.fold_batch_norm(extractor)
        self._weights_digest = inference.weights_digest(model)
        self._inference = inference.ImageInference(
            model,
            session.strategy,
            self._options,
            backbones.get_preprocess(session.config.model.backbone),
        )

    def extract(
        self, name: str, examples: Examples, num_views: int
    ) -> Features:
        """Returns the features of a split, of `num_views` views of an image."""
        session, start = self._session, time.perf_counter()
        digests, recipe = examples.images.digests(), self._recipe(num_views)
        images = feature_cache.cache_key({"images": digests})
        file = f"features/{recipe}-{images}.npz"
        path = session.workdir / file
        arrays = feature_cache.load(path) or {}
        # All workers must take part in computing them.
        found = session.workers.all(bool(arrays))
        where = f"from {path.parent}"
        if not found:
            known = self._known(recipe)
            rows = [known.get(digest) for digest in digests]
            num_known = sum(row is not None for row in rows)
            values = self._complete(name, examples, num_views, rows)
            arrays = {"values": values, "images": np.array(digests)}
            files.write_arrays(
                session.output / file, arrays, f"the feature cache {path}"
            )
            where = f"saved to {path.parent}"
            if num_known:
                where += (
                    f", {num_known} of {len(digests)} images known from "
                    f"{session.config.data.extends}"
                )
        terminal.say(
            f"features of {name}, {counted(num_views, 'view')}, {where}, "
            f"{time.perf_counter() - start:.1f} s"
        )
        return Features(arrays["values"], examples.labels)

    def _complete(
        self,
        name: str,
        examples: Examples,
        num_views: int,
        rows: Sequence[np.ndarray | None],
    ) -> np.ndarray:
        """Computes the features that are not known.

        Args:
          name: the name of the split.
          examples: the examples of the split.
          num_views: the number of views of each.
          rows: the features of each example, float32 `[views, channels]`; None
            if they are not known.

        Returns:
          The features of all examples, float32 `[views, n, channels]`.
        """
        missing = [k for k, row in enumerate(rows) if row is None]
        computed = self._compute(name, examples, np.array(missing), num_views)
        found = dict(zip(missing, computed, strict=True))
        return np.stack(
            [found[k] if row is None else row for k, row in enumerate(rows)],
            axis=1,
        )

    def _known(self, recipe: str) -> dict[str, np.ndarray]:
        """Returns the features that the run has that this one extends.

        Returns:
          `{hash of an image: float32 [views, channels]}`. The random views of
          an image are those that were drawn in that run.
        """
        earlier = self._session.config.data.extends
        known: dict[str, np.ndarray] = {}
        if not earlier:
            return known
        folder = pathlib.Path(earlier).expanduser() / "features"
        for path in sorted(folder.glob(f"{recipe}-*.npz")):
            arrays = feature_cache.load(path) or {}
            for k, digest in enumerate(arrays.get("images", ())):
                known[str(digest)] = arrays["values"][:, k]
        # All workers must compute the same images together.
        if not self._session.workers.agree([len(known)]):
            return {}
        return known

    def _recipe(self, num_views: int) -> str:
        """Returns a hash of all that features depend on but the images."""
        config, options = self._session.config, self._options
        views: dict[str, Any] = {"count": num_views}
        if num_views > augmentation.num_fixed_views(options):
            views |= dataclasses.asdict(options)
            views |= {"seed": config.runtime.seed}
            # Where images are kept changes no view.
            del views["cache"]
        elif num_views > 1:
            views |= {"augment_on": options.augment_on}
        return feature_cache.cache_key(
            {
                "weights": self._weights_digest,
                "backbone": config.model.backbone,
                "image_size": options.image_size,
                "views": views,
                "precision": self._session.precision,
                "versions": machine.versions(),
            }
        )

    def _compute(
        self, name: str, examples: Examples, chosen: np.ndarray, num_views: int
    ) -> np.ndarray:
        """Returns the features of some examples.

        Args:
          name: the name of the split.
          examples: all examples of the split.
          chosen: int64 `[n]`, the positions of these examples.
          num_views: the number of views of each.

        Returns:
          float32 `[n, views, channels]`.
        """
        if not len(chosen):
            return np.zeros([0, num_views, 0], np.float32)
        options, seed = self._options, self._session.config.runtime.seed
        some, views = choose_examples(examples, chosen), []
        for view in range(num_views):
            transforms = augmentation.view_transforms(
                options, seed, view, examples.num_examples
            )
            if transforms is not None:
                transforms = tf.gather(transforms, chosen)
            title = f"features of {name}, view {view + 1}/{num_views}"
            views.append(self._compute_view(title, some, transforms))
        return np.stack(views, axis=1)

    def _compute_view(
        self,
        title: str,
        examples: Examples,
        transforms: tf.Tensor | None,
    ) -> np.ndarray:
        """Returns the features of one view, float32 `[n, channels]`."""
        size = self._session.config.optimization.global_batch_size
        return inference.collect(
            self._inference.outputs(examples, size, transforms),
            title,
            input_pipeline.steps_per_epoch(examples.num_examples, size),
            self._stop,
        )
