"""What the audit found in the images, with pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flowers17_tfdata.data import decode
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.phases.report import pictures

# The most pairs or images of each kind whose pictures are shown.
_MOST_SHOWN = 6
_PICTURE_SIDE = 160

# A pair as audit.json holds it, or a single image in the same form; the split
# and the id of an image.
_Pair = Mapping[str, Any]
_Place = tuple[str, str]


class Shown(NamedTuple):
    """An image in which the audit found something.

    Attributes:
      picture: the data URI of the image, upright and reduced; '' if it can't be
        read any more.
      file_name: the image's id.
      label: the name of its class; '' if audit.json doesn't hold it.
      split: the split that holds the image.
    """

    picture: str
    file_name: str
    label: str
    split: str


class Cards(NamedTuple):
    """Pairs of nearly identical images, or single images with a fault.

    Attributes:
      shown: up to `_MOST_SHOWN` of them.
      num_more: how many others there are.
    """

    shown: list[list[Shown]]
    num_more: int


class Findings(NamedTuple):
    """The near-duplicates and the faults of an audit.

    Attributes:
      across_classes: the pairs whose images have different labels.
      others: the pairs within one class and one split.
      faults: the images of each kind of fault, the worst first.
    """

    across_classes: Cards
    others: Cards
    faults: dict[str, Cards]


def show(audit: Mapping[str, Any], source: Source) -> Findings:
    """Reads the pictures of the first findings of an audit.

    Args:
      audit: the contents of `audit.json`.
      source: the data set. No pictures are shown if the audit is of another.
    """
    across: list[_Pair] = []
    others: list[_Pair] = []
    for pair in audit["near_duplicates"]["pairs"]:
        if len(set(pair["classes"])) > 1:
            across.append(pair)
        elif len(set(pair["splits"])) == 1:
            others.append(pair)
    faults: dict[str, list[_Pair]] = {}
    # Audits of earlier versions hold none.
    for fault in audit.get("faults", []):
        image = {"ids": [fault["id"]], "splits": [fault["split"]]}
        faults.setdefault(fault["kind"], []).append(image | {"classes": [""]})
    images: dict[_Place, str] = {}
    if audit["dataset"] == source.name:
        kinds = [across, others, *faults.values()]
        shown = [pair for pairs in kinds for pair in pairs[:_MOST_SHOWN]]
        images = _read_pictures(source, shown)
    return Findings(
        _show(across, images),
        _show(others, images),
        {kind: _show(found, images) for kind, found in faults.items()},
    )


def _show(pairs: Sequence[_Pair], images: Mapping[_Place, str]) -> Cards:
    shown = [
        [
            Shown(images.get((split, image_id), ""), image_id, label, split)
            for image_id, label, split in zip(
                pair["ids"], pair["classes"], pair["splits"], strict=True
            )
        ]
        for pair in pairs[:_MOST_SHOWN]
    ]
    return Cards(shown, len(pairs) - len(shown))


def _read_pictures(source: Source, pairs: Sequence[_Pair]) -> dict[_Place, str]:
    """Returns the data URIs of the images that can be read."""
    ids: dict[str, set[str]] = {}
    for pair in pairs:
        for split, image_id in zip(pair["splits"], pair["ids"], strict=True):
            ids.setdefault(split, set()).add(image_id)
    found = {}
    for split, names in ids.items():
        for name, encoded in source.read_images(split, names).items():
            # It may have been damaged since the audit.
            with contextlib.suppress(ValueError):
                pixels = decode.read(encoded).pixels
                uri = pictures.to_data_uri(pixels, _PICTURE_SIDE)
                found[split, name] = uri
    return found
