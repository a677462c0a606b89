"""The pictures of the page: mistakes, heat maps, augmented views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowers17_tfdata.data import decode
from flowers17_tfdata.phases.report import (
    augmented_views,
    grad_cam,
    mistakes,
    pictures,
)
from flowers17_tfdata.phases.report.pictures import Picture
from flowers17_tfdata.scoring.predictions import Predictions
from flowers17_tfdata.session import Session
from flowers17_tfdata.trained_model import TrainedModel

_MOST_MISTAKES = 12
_MISTAKES_EXPLAINED = 6
_HITS_EXPLAINED = 6
_PICTURE_SIDE = 224
_EXEMPLAR_SIDE = 112
_VIEWED_IMAGES = 4
_VIEWS = 6
_VIEW_SIDE = 160


class Mistake(NamedTuple):
    """A picture beside what it was taken for.

    Attributes:
      picture: the original, upright, reduced.
      file_name: the example's id.
      label: name of the true class.
      taken_for: name of the predicted class.
      confidence: of the predicted class, in [0, 1].
      label_probability: of the true class, in [0, 1].
      exemplar: a picture of the predicted class that the model got right.
    """

    picture: Picture
    file_name: str
    label: str
    taken_for: str
    confidence: float
    label_probability: float
    exemplar: Picture | None


class Explanation(NamedTuple):
    """A picture as the model sees it, and what spoke for which class.

    Attributes:
      picture: at the model's input size.
      file_name: the example's id.
      label: name of the true class.
      taken_for: name of the predicted class.
      heats: `(class name, overlay)`: the predicted class, and the true one if
        it is another.
    """

    picture: Picture
    file_name: str
    label: str
    taken_for: str
    heats: list[tuple[str, Picture]]


class Cases(NamedTuple):
    """All pictures of the examples that were evaluated.

    Attributes:
      worst: the most confident mistakes.
      least_certain: the mistakes that were the nearest to another answer.
      explanations: by Grad-CAM, mistakes first.
      not_explained: why there are none; empty: there are.
    """

    worst: list[Mistake]
    least_certain: list[Mistake]
    explanations: list[Explanation]
    not_explained: str


def make_cases(
    session: Session,
    trained: TrainedModel,
    predictions: Predictions,
    split: str,
) -> Cases:
    """Chooses, reads and explains pictures of a split.

    Raises:
      UserError: a picture can't be decoded.
    """
    choice = mistakes.choose(predictions, _MOST_MISTAKES)
    explained = _choose_explained(choice, predictions)
    shown = [*choice.worst, *choice.least_certain]
    taken_for = {int(predictions.predicted[k]) for k in shown}
    exemplars = {
        label: position
        for label, position in choice.exemplars.items()
        if label in taken_for
    }
    encoded = pictures.read_encoded(
        session.source, split, {*shown, *explained, *exemplars.values()}
    )
    exemplar_pictures = {
        label: pictures.from_encoded(encoded[position], _EXEMPLAR_SIDE)
        for label, position in exemplars.items()
    }
    names = session.source.class_names

    def mistake(k: int) -> Mistake:
        label, answer = int(predictions.labels[k]), predictions.predicted[k]
        probabilities = predictions.probabilities[k]
        return Mistake(
            pictures.from_encoded(encoded[k], _PICTURE_SIDE),
            predictions.ids[k],
            names[label],
            names[answer],
            float(probabilities[answer]),
            float(probabilities[label]),
            exemplar_pictures.get(int(answer)),
        )

    explanations, reason = [], ""
    try:
        explanations = _explain(trained, predictions, encoded, explained, names)
    except grad_cam.NotExplainable as error:
        reason = str(error)
    return Cases(
        [mistake(k) for k in choice.worst],
        [mistake(k) for k in choice.least_certain],
        explanations,
        reason,
    )


def _choose_explained(
    choice: mistakes.Choice, predictions: Predictions
) -> list[int]:
    """Returns positions: the worst mistakes, then hits of several classes."""
    hits = list(choice.exemplars.values())
    # From sure to unsure, not the surest alone.
    step = max(1, len(hits) // _HITS_EXPLAINED)
    return choice.worst[:_MISTAKES_EXPLAINED] + hits[::step][:_HITS_EXPLAINED]


def _explain(
    trained: TrainedModel,
    predictions: Predictions,
    encoded: dict[int, bytes],
    positions: Sequence[int],
    names: Sequence[str],
) -> list[Explanation]:
    if not positions:
        return []
    cam = grad_cam.GradCam(trained.model, trained.preprocess)
    images = np.stack(
        [
            decode.decode_and_resize(encoded[k], trained.image_size).numpy()
            for k in positions
        ]
    )
    explanations = []
    for k, image, maps in zip(
        positions, images, cam.feature_maps(images), strict=True
    ):
        label, answer = (
            int(predictions.labels[k]),
            int(predictions.predicted[k]),
        )
        # In this order, and once where they are one.
        classes = dict.fromkeys((answer, label))
        heats = [
            (names[c], grad_cam.overlay(image, cam.heat(maps, c)))
            for c in classes
        ]
        explanations.append(
            Explanation(
                pictures.from_pixels(image, _PICTURE_SIDE),
                predictions.ids[k],
                names[label],
                names[answer],
                [
                    (name, pictures.from_pixels(heat, _PICTURE_SIDE))
                    for name, heat in heats
                ],
            )
        )
    return explanations


def make_view_rows(session: Session, seed: int) -> list[list[Picture]]:
    """Returns a row a picture: as it is, then augmented views of it."""
    if "train" not in session.source.split_sizes:
        return []
    views = augmented_views.make_views(
        session.source,
        "train",
        session.config.input,
        num_images=_VIEWED_IMAGES,
        num_views=_VIEWS,
        seed=seed,
    )
    return [
        [pictures.from_pixels(view, _VIEW_SIDE) for view in row]
        for row in views
    ]
