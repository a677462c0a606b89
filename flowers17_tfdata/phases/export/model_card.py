"""The model card: the training, the accuracy and the use of an exported model.

It is Markdown with the front matter of Hugging Face's hub
(https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2

from flowers17_tfdata import files
from flowers17_tfdata.config.config import all_flags
from flowers17_tfdata.config.option import Kind
from flowers17_tfdata.config.recorded import recorded_values
from flowers17_tfdata.models import classifier
from flowers17_tfdata.session import Session
from flowers17_tfdata.trained_model import TrainedModel


def make_card(
    session: Session,
    trained: TrainedModel,
    evaluation: Mapping[str, Any],
    report: Mapping[str, Any],
) -> str:
    """Returns the card as Markdown.

    Args:
      session: holds the data set, and the workdir with its audit and its flags.
      trained: the model that was exported.
      evaluation: the trained model's scores on the split, see
        `scores.summarize`.
      report: the contents of `parity.json`.

    Raises:
      UserError: a file of the workdir is damaged.
    """
    source, audit = session.source, session.workdir / "audit.json"
    near_duplicates = None
    if audit.exists():
        contents = files.read_json(audit)
        # It may be left over from other data.
        if contents["dataset"] == source.name:
            near_duplicates = contents["near_duplicates"]
    return _load_template().render(
        # Not the flag: --model may name another.
        backbone=classifier.get_backbone(trained.model).name,
        source=source,
        trained=trained,
        flags=_training_flags(session, trained),
        near_duplicates=near_duplicates,
        evaluation=evaluation,
        trust=evaluation.get("trust"),
        unknown_above=_unknown_above(trained),
        report=report,
        files=[row["file"] for row in report["formats"][1:]],
    )


def _unknown_above(trained: TrainedModel) -> float | None:
    """Returns the threshold of unknown pictures; None: none is unknown."""
    if trained.trust is None or not math.isfinite(trained.trust.unknown_above):
        return None
    return trained.trust.unknown_above


def _load_template() -> jinja2.Template:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("flowers17_tfdata.phases.export"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    ).get_template("model_card.md.jinja")


def _training_flags(session: Session, trained: TrainedModel) -> dict[str, str]:
    """Returns the flags of the model's training; empty if not recorded."""
    if not trained.was_trained_in(session.workdir):
        return {}
    values = recorded_values(str(session.workdir), with_training=True)
    return {
        # The folders of the machine that trained it are of no use elsewhere.
        flag.name: pathlib.Path(str(values[flag.name])).name
        for flag in all_flags()
        if flag.kind in (Kind.RUN, Kind.TRAINING)
        and values.get(flag.name, "") != ""
        and flag.name != "dataset"
    }
