"""What the page of the review shows: the images to look at, with pictures."""

from __future__ import annotations

import collections
import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowers17_tfdata.data import corrections, decode
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.phases.report import pictures, reproduce
from flowers17_tfdata.session import Session
from flowers17_tfdata.training import resume

# A tenth of the images, within bounds: a person looks at all of them, and the
# page stays below 10 MB.
_SHARE = 0.1
_FEWEST, _MOST = 20, 150

_PICTURE_SIDE = 256
_NEIGHBOUR_SIDE = 96

# An image as review.json names it; its split and its id.
_Image = Mapping[str, Any]
_Place = tuple[str, str]


def choose(images: Sequence[_Image]) -> list[_Image]:
    """Returns the most suspicious images that nobody has reviewed."""
    wanted = math.ceil(_SHARE * len(images))
    wanted = min(max(wanted, _FEWEST), _MOST)
    return [row for row in images if not row["reviewed"]][:wanted]


def make_context(
    session: Session, result: Mapping[str, Any], shown: Sequence[_Image]
) -> dict[str, Any]:
    """Returns the variables of `templates/review.html`.

    Args:
      session: the open run.
      result: the contents of `review.json`.
      shown: the images on the page.
    """
    source = session.source
    large = _read_pictures(source, shown, _PICTURE_SIDE)
    near = [other for row in shown for other in row["neighbours"]]
    small = _read_pictures(source, near, _NEIGHBOUR_SIDE)
    return {
        **result,
        "command": _command(session),
        "corrections": session.config.data.corrections,
        "drop": corrections.DROP,
        "cards": [
            {
                **row,
                "picture": large.get(_place(row), ""),
                "alike": [
                    {**other, "picture": small.get(_place(other), "")}
                    for other in row["neighbours"]
                ],
            }
            for row in shown
        ],
        "data": _script_data(source, result, shown),
    }


def _command(session: Session) -> str:
    """Returns the command that trains with the table; '' if it's unknown.

    A run that was never trained has no flags to take over, and no run can
    extend a fold of a cross-validation.
    """
    workdir = session.workdir
    if session.config.data.folds or not resume.started_with(workdir):
        return ""
    return reproduce.command(
        {
            "extends": workdir,
            "corrections": "corrections.csv",
            "workdir": f"{workdir}_corrected",
        }
    )


def _script_data(
    source: Source, result: Mapping[str, Any], shown: Sequence[_Image]
) -> dict[str, Any]:
    """Returns what the page's script needs to write the table."""
    ids = collections.Counter(row["file"] for row in result["images"])
    return {
        # Decisions for other labels or splits must not be taken over.
        "key": f"flowers17_tfdata_review:{source.name}",
        "classes": result["class_names"],
        "drop": corrections.DROP,
        "with_split": max(ids.values()) > 1,
        "images": [
            {key: row[key] for key in ("file", "split", "class")}
            | {"suggested": row["suggested_class"]}
            for row in shown
        ],
        # The table replaces the one that this review has read.
        "earlier": [
            {
                "file": row.id,
                "split": row.split,
                "class": row.label,
                "new_class": row.new_label or corrections.DROP,
            }
            for row in source.corrections
        ],
    }


def _place(image: _Image) -> _Place:
    return image["split"], image["file"]


def _read_pictures(
    source: Source, images: Iterable[_Image], side: int
) -> dict[_Place, str]:
    """Returns the data URIs of the images that can be read."""
    ids = collections.defaultdict[str, set[str]](set)
    for split, image_id in map(_place, images):
        ids[split].add(image_id)
    found = {}
    for split, wanted in ids.items():
        for name, encoded in source.read_images(split, wanted).items():
            # It may have been damaged since the features were computed.
            with contextlib.suppress(ValueError):
                pixels = decode.read(encoded, side).pixels
                found[split, name] = pictures.to_data_uri(pixels, side)
    return found
