"""The features of the frozen backbone: computed once, then cached."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import keras
import numpy as np

from flowers17_tfdata import files, machine, terminal, timings
from flowers17_tfdata.errors import counted
from flowers17_tfdata.input import augmentation, feature_cache, input_pipeline
from flowers17_tfdata.input.examples import Examples
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
    extractor = _Extractor(session, model, stop)
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


class _Extractor:
    """Computes the features of splits, or reads them from the workdir."""

    def __init__(self, session: Session, model: keras.Model, stop: StopRequest):
        self._session = session
        self._stop = stop
        # The size that the head must classify.
        self._options = dataclasses.replace(
            session.config.input, train_scale=1.0
        )
        extractor = classifier.get_feature_extractor(model)
        with session.strategy.scope():
            self._model = folding.fold_batch_norm(extractor)
        self._inference = inference.ImageInference(
            self._model,
            session.strategy,
            self._options,
            backbones.get_preprocess(session.config.model.backbone),
            global_batch_size=session.config.optimization.global_batch_size,
        )
        self._weights_digest = inference.weights_digest(self._model)

    def extract(
        self, name: str, examples: Examples, num_views: int
    ) -> Features:
        """Returns the features of a split, of `num_views` views of an image."""
        session, start = self._session, time.perf_counter()
        file = f"features/{self._cache_key(examples, num_views)}.npz"
        path = session.workdir / file
        arrays = feature_cache.load(path) or {}
        # All workers must take part in computing them.
        found = session.workers.all(bool(arrays))
        if not found:
            views = [
                self._compute(name, examples, view, num_views)
                for view in range(num_views)
            ]
            arrays = {"values": np.stack(views)}
            files.write_arrays(
                session.output / file, arrays, f"the feature cache {path}"
            )
        terminal.say(
            f"features of {name}, {counted(num_views, 'view')}, "
            f"{'from' if found else 'saved to'} {path}, "
            f"{time.perf_counter() - start:.1f} s"
        )
        return Features(arrays["values"], examples.labels)

    def _cache_key(self, examples: Examples, num_views: int) -> str:
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
                "images": examples.images.digest(),
                "image_size": options.image_size,
                "views": views,
                "precision": self._session.precision,
                "versions": machine.versions(),
            }
        )

    def _compute(
        self, name: str, examples: Examples, view: int, num_views: int
    ) -> np.ndarray:
        """Returns the features of one view, float32 `[n, channels]`."""
        config = self._session.config
        outputs = self._inference.outputs(
            examples,
            augmentation.view_transforms(
                self._options, config.runtime.seed, view, examples.num_examples
            ),
        )
        return inference.collect(
            outputs,
            f"features of {name}, view {view + 1}/{num_views}",
            input_pipeline.steps_per_epoch(
                examples.num_examples, config.optimization.global_batch_size
            ),
            self._stop,
        )
