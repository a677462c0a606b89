"""The examples that the report shows, with pictures and heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flowers17_tfdata.data import decode
from flowers17_tfdata.phases.report import grad_cam, mistakes, pictures
from flowers17_tfdata.scoring.predictions import Predictions
from flowers17_tfdata.session import Session
from flowers17_tfdata.trained_model import TrainedModel

_MOST_MISTAKES = 12
_MISTAKES_EXPLAINED = 6
_HITS_EXPLAINED = 6
_PICTURE_SIDE = 224
_EXEMPLAR_SIDE = 112

# `(caption, data URI)` of each picture.
_Heats = list[tuple[str, str]]


class Case(NamedTuple):
    """An example and the model's prediction.

    Attributes:
      picture: the data URI of the image, upright and reduced.
      file_name: the example's id.
      label: the name of the true class.
      answer: the name of the predicted class.
      confidence: the probability of the predicted class, in [0, 1].
      label_probability: the probability of the true class, in [0, 1].
      exemplar: the data URI of an image of the predicted class that the model
        classifies correctly; None if there is none, or for a correct
        prediction.
      heats: the captions and data URIs of the model's input and of the heat
        maps; empty if the example isn't explained.
    """

    picture: str
    file_name: str
    label: str
    answer: str
    confidence: float
    label_probability: float
    exemplar: str | None
    heats: _Heats


class Cases(NamedTuple):
    """All examples that the report shows.

    Attributes:
      worst: the most confident mistakes, see `mistakes.Choice`.
      sure_from: the confidence that all of `worst` reach, if the model was sure
        of them; None: it was not.
      least_certain: other mistakes, with the smallest margin.
      explained: the examples with heat maps, mistakes first.
      not_explained: why there are no heat maps, or an empty string.
    """

    worst: list[Case]
    sure_from: float | None
    least_certain: list[Case]
    explained: list[Case]
    not_explained: str


def make_cases(
    session: Session,
    trained: TrainedModel,
    predictions: Predictions,
    split: str,
) -> Cases:
    """Chooses, reads and explains examples of a split."""
    choice = mistakes.choose(predictions, _MOST_MISTAKES)
    correct = list(choice.exemplars.values())
    # From certain to uncertain, not only the most certain ones.
    correct = correct[:: max(1, len(correct) // _HITS_EXPLAINED)]
    wrong = choice.worst + choice.least_certain
    explained = wrong[:_MISTAKES_EXPLAINED] + correct[:_HITS_EXPLAINED]
    labels, answers = predictions.labels, predictions.predicted
    probabilities = predictions.probabilities
    exemplars = {
        k: choice.exemplars[answers[k]]
        for k in wrong
        if answers[k] in choice.exemplars
    }
    encoded = pictures.read_encoded(
        session.source, split, {*wrong, *explained, *exemplars.values()}
    )
    names = session.source.class_names
    heats, not_explained = {}, ""
    try:
        heats = _explain(trained, predictions, encoded, explained, names)
    except grad_cam.NotExplainable as error:
        not_explained = str(error)

    def picture(k: int, side: int) -> str:
        return pictures.to_data_uri(decode.decode_reduced(encoded[k], 1), side)

    def case(k: int) -> Case:
        exemplar = exemplars.get(k)
        return Case(
            picture(k, _PICTURE_SIDE),
            predictions.ids[k],
            names[labels[k]],
            names[answers[k]],
            float(probabilities[k, answers[k]]),
            float(probabilities[k, labels[k]]),
            None if exemplar is None else picture(exemplar, _EXEMPLAR_SIDE),
            heats.get(k, []),
        )

    worst = [case(k) for k in choice.worst]
    is_sure = bool(worst) and worst[-1].confidence >= mistakes.SURE
    return Cases(
        worst,
        mistakes.SURE if is_sure else None,
        [case(k) for k in choice.least_certain],
        [case(k) for k in heats],
        not_explained,
    )


def _explain(
    trained: TrainedModel,
    predictions: Predictions,
    encoded: Mapping[int, bytes],
    positions: Sequence[int],
    names: Sequence[str],
) -> dict[int, _Heats]:
    cam = grad_cam.GradCam(trained.model, trained.preprocess)
    size = trained.image_size
    images = np.stack(
        [decode.decode_and_resize(encoded[k], size) for k in positions]
    )
    heats = {}
    for k, image, maps in zip(
        positions, images, cam.feature_maps(images), strict=True
    ):
        shown = {"input": image}
        # The predicted class, and the true class if it is another.
        for c in (predictions.predicted[k], predictions.labels[k]):
            heat = grad_cam.overlay(image, cam.heat(maps, c))
            shown[f"for {names[c]}"] = heat
        heats[k] = [
            (caption, pictures.to_data_uri(pixels, _PICTURE_SIDE))
            for caption, pixels in shown.items()
        ]
    return heats
