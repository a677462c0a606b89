"""A trained model that answers: for `--phase=predict` and for `api`."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeGuard

import keras
import numpy as np

from flowers17_tfdata import trained_model
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input.examples import (
    PICTURE_TYPES,
    Examples,
    PictureLike,
    Pictures,
)
from flowers17_tfdata.session import open_devices
from flowers17_tfdata.trained_model import TrainedModel


class Prediction(NamedTuple):
    """The prediction for one picture.

    Attributes:
      file: the path, or '' if the picture was not given as one.
      classes: the most likely classes and their probabilities, the most likely
        first; empty if the picture can't be read.
      error: why the picture can't be read, or '' if it can.
      damage: what is damaged in a picture that was read all the same, or ''.
      unknown: whether the picture seems to show none of the classes. At most
        5 % of pictures like those of the validation split do.
      unknown_score: how unlike the training images it is: about 0 for an
        ordinary picture; see `models.trust.Trust.score`.
      classes_at_95: the classes, the most likely first, that hold the right one
        in at least 95 % of cases.

    The last three are None if the picture can't be read, and for models of
    other programs and earlier versions.
    """

    file: str
    classes: tuple[tuple[str, float], ...]
    error: str = ""
    damage: str = ""
    unknown: bool | None = None
    unknown_score: float | None = None
    classes_at_95: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """The most likely class; '' if the picture can't be read."""
        return self.classes[0][0] if self.classes else ""

    @property
    def probability(self) -> float:
        """The probability of `label`, in [0, 1]; NaN if unreadable."""
        return self.classes[0][1] if self.classes else float("nan")


class Predictor:
    """A trained model that names what is in pictures.

    A picture is a path, the bytes of a file in any format that training reads,
    a `PIL.Image`, or pixels: an array uint8 `[height, width, 3]` in [0, 255],
    RGB. Pictures may have any size. Paths and bytes are turned upright
    according to their EXIF orientation, as the training did.

    For a JPEG, Pillow's pixels differ a little from those that training reads:
    give a path or bytes for the same answer as `--phase=predict`.

    The first call compiles the network, which takes seconds; later ones don't.

    Attributes:
      class_names: the classes, in the order of the model's outputs.
      path: the `.keras` file of the model.
    """

    def __init__(
        self,
        trained: TrainedModel,
        class_names: tuple[str, ...],
        batch_size: int,
    ):
        self.class_names = class_names
        self.path = trained.path
        self._trained = trained
        self._batch_size = batch_size

    def __repr__(self) -> str:
        return f"Predictor({str(self.path)!r}, {len(self.class_names)} classes)"

    def predict(
        self, pictures: PictureLike | Sequence[PictureLike], top_k: int = 5
    ) -> list[Prediction]:
        """Classifies pictures.

        Args:
          pictures: one picture, or several.
          top_k: the number of classes in each prediction, at least 1.

        Returns:
          One prediction for each picture, in order. The prediction for a
          picture that can't be read has an `error` and no classes.

        Raises:
          TypeError: one of them is no picture, or an array of another form.
        """
        return list(self.stream(_as_list(pictures), top_k))

    def stream(
        self, pictures: Sequence[PictureLike], top_k: int = 5
    ) -> Iterator[Prediction]:
        """Yields what `predict` returns, batch by batch."""
        images, examples = self._examples(pictures)
        batches = self._trained.answers(examples, self._batch_size)
        rows = itertools.chain.from_iterable(map(_rows, batches))
        for k, (picture, row) in enumerate(zip(pictures, rows, strict=True)):
            file = os.fspath(picture) if _is_path(picture) else ""
            damage = images.damage.get(k, "")
            if k in images.errors:
                yield Prediction(file, (), images.errors[k], damage)
            else:
                yield self._prediction(row, top_k)._replace(
                    file=file, damage=damage
                )

    def _prediction(self, row: dict[str, Any], top_k: int) -> Prediction:
        """Returns the prediction for one row of the model's answers."""
        probabilities = row["probabilities"]
        order = np.argsort(-probabilities, kind="stable")
        names = self.class_names
        top = tuple((names[c], float(probabilities[c])) for c in order[:top_k])
        if "unknown" not in row:
            return Prediction("", top)
        members = row["classes_at_95"]
        return Prediction(
            "",
            top,
            unknown=bool(row["unknown"]),
            unknown_score=float(row["unknown_score"]),
            classes_at_95=tuple(names[c] for c in order if members[c]),
        )

    def embed(
        self, pictures: PictureLike | Sequence[PictureLike]
    ) -> np.ndarray:
        """Returns the features that the classification is made from.

        They suit nearest-neighbour search, clustering and other classifiers.

        Args:
          pictures: one picture, or several.

        Returns:
          float32 `[n, channels]`: the backbone's outputs, averaged over all
          positions, of each picture.

        Raises:
          UserError: a picture can't be read.
        """
        pictures = _as_list(pictures)
        images, examples = self._examples(pictures)
        rows = list(self._trained.features(examples, self._batch_size))
        for k, error in sorted(images.errors.items()):
            picture = pictures[k]
            name = os.fspath(picture) if _is_path(picture) else f"picture {k}"
            raise UserError(f"{name} can't be read: {error}")
        channels = self._trained.num_features
        return np.concatenate([np.zeros([0, channels], np.float32), *rows])

    def _examples(
        self, pictures: Sequence[PictureLike]
    ) -> tuple[Pictures, Examples]:
        images = Pictures(pictures, self._trained.image_size)
        return images, Examples(images, np.zeros(len(pictures), np.int64))


def open_predictor(config: Config) -> Predictor:
    """Loads `--model`, or the model of the workdir's run, on this process.

    Raises:
      UserError: there is no model, or it has no class names.
    """
    # This process is worker 0. It must not wait for the cluster's other
    # workers, which do nothing.
    runtime = dataclasses.replace(
        config.runtime, strategy="default", num_virtual_devices=0
    )
    strategy, _, _ = open_devices(dataclasses.replace(config, runtime=runtime))
    trained = trained_model.load_model(config, strategy)
    return Predictor(
        trained,
        trained_model.read_class_names(config, trained),
        config.optimization.global_batch_size,
    )


@contextlib.contextmanager
def same_keras_afterwards() -> Iterator[None]:
    """Restores Keras's global settings, which runs and loading change."""
    policy = keras.config.dtype_policy()
    is_interactive = keras.config.is_interactive_logging_enabled()
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        if is_interactive:
            keras.config.enable_interactive_logging()


def _rows(batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Yields the answers of a batch, picture by picture."""
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))


def _is_path(picture: PictureLike) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(picture, (str, os.PathLike))


def _as_list(
    pictures: PictureLike | Sequence[PictureLike],
) -> Sequence[PictureLike]:
    """Returns several pictures as a list, and one as a list of one.

    Raises:
      TypeError: one of them is no picture.
    """
    if isinstance(pictures, np.ndarray) and pictures.ndim == 4:
        pictures = list(pictures)
    if isinstance(pictures, PICTURE_TYPES):
        pictures = [pictures]
    pictures = list(pictures)
    for k, picture in enumerate(pictures):
        if not isinstance(picture, PICTURE_TYPES):
            raise TypeError(
                f"picture {k} must be a path, bytes, an array or a "
                f"PIL.Image; got {type(picture).__name__}"
            )
        if isinstance(picture, np.ndarray) and not (
            picture.dtype == np.uint8
            and picture.shape[2:] == (3,)
            and picture.size
        ):
            raise TypeError(
                f"picture {k} must be uint8 [height, width, 3], RGB; got "
                f"{picture.dtype} {list(picture.shape)}"
            )
    return pictures
