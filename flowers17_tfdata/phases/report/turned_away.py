"""The pictures that the model turns away as unknown, and what that brings."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from flowers17_tfdata.data import decode
from flowers17_tfdata.phases.report import pictures, result_charts
from flowers17_tfdata.phases.report.charts import Chart
from flowers17_tfdata.scoring import trust_scores
from flowers17_tfdata.scoring.predictions import Predictions
from flowers17_tfdata.session import Session
from flowers17_tfdata.trained_model import TrainedModel

_MOST_PICTURES = 12
_PICTURE_SIDE = 160


class Unknown(NamedTuple):
    """A picture that was turned away.

    Attributes:
      picture: the data URI of the image, upright and reduced.
      file_name: the example's id.
      label: the name of its class.
      answer: the class that the model would have answered.
      score: the unknown score.
    """

    picture: str
    file_name: str
    label: str
    answer: str
    score: float


class TurnedAway(NamedTuple):
    """What the report shows about unknown pictures.

    Attributes:
      chart: accuracy by the share that is turned away.
      threshold: the score above which a picture is unknown; None: none is.
      shown: the pictures with the largest scores of those that are unknown.
      num_more: the number of the others.
    """

    chart: Chart
    threshold: float | None
    shown: list[Unknown]
    num_more: int


def make(
    session: Session,
    trained: TrainedModel,
    predictions: Predictions,
    split: str,
) -> TurnedAway:
    """Chooses the pictures and reads them.

    Args:
      session: the open run.
      trained: the model, which has a `trust`.
      predictions: what it predicts on the split.
      split: the name of the split.
    """
    assert trained.trust is not None
    scores = predictions.unknown_scores
    assert scores is not None
    threshold = trained.trust.unknown_above
    order = np.argsort(-scores, kind="stable")
    unknown = [int(k) for k in order if scores[k] > threshold]
    shown = unknown[:_MOST_PICTURES]
    encoded = pictures.read_encoded(session.source, split, set(shown))
    names = session.source.class_names
    curve = trust_scores.risk_coverage(
        scores, predictions.predicted == predictions.labels
    )
    return TurnedAway(
        result_charts.risk_coverage_chart(curve),
        threshold if math.isfinite(threshold) else None,
        [
            Unknown(
                pictures.to_data_uri(
                    decode.decode_reduced(encoded[k], 1), _PICTURE_SIDE
                ),
                predictions.ids[k],
                names[predictions.labels[k]],
                names[predictions.predicted[k]],
                float(scores[k]),
            )
            for k in shown
        ],
        len(unknown) - len(shown),
    )
