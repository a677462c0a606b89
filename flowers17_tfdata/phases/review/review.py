"""Runs the phase: `review.json`, and a page to correct labels on."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowers17_tfdata import files, terminal, timings
from flowers17_tfdata.data import scan as scans
from flowers17_tfdata.errors import counted
from flowers17_tfdata.input import augmentation
from flowers17_tfdata.phases import frozen_features
from flowers17_tfdata.phases.frozen_features import ImageFeatures
from flowers17_tfdata.phases.report import page
from flowers17_tfdata.phases.review import cards, ranking
from flowers17_tfdata.phases.review.ranking import Ranking
from flowers17_tfdata.scoring import label_errors
from flowers17_tfdata.session import Session

_NEIGHBOURS = 3


def review(session: Session) -> None:
    """Ranks all images of all splits; writes `review.json` and `review.html`.

    `review.json` holds
      `dataset`, `backbone`, `class_names`;
      `num_images`; `num_estimated`, the labels estimated to be wrong;
      `num_reviewed`, the images that `--corrections` names, labels kept
        included: the page doesn't ask for them again;
      `num_shown`, the images on the page;
      `images`: all of them, most suspicious first: `file` (the id), `split`,
        `class`, `suggested_class`, the probabilities of both by heads that
        have not seen the image, `near_duplicate_differs` (whether a
        near-duplicate has the suggested class), `reviewed`, and `neighbours`,
        the most similar images: `file`, `split`, `class`, `similarity` (the
        cosine of the angle between the features).

    Raises:
      UserError: an image can't be decoded, or all are near-duplicates.
    """
    options, source = session.config.input, session.source
    sizes = source.split_sizes
    views = augmentation.num_views(options, max(1, options.feature_views))
    images = frozen_features.read_features(
        session, [split for split in sizes if sizes[split]], views
    )
    with timings.measure(session.output, "review: ranking"):
        ranked = ranking.rank(
            images,
            len(source.class_names),
            _twins(images),
            session.config.runtime.seed,
        )
        result = _make_result(session, images, ranked)
    shown = cards.choose(result["images"])
    result["num_shown"] = len(shown)
    files.write_json(session.output / "review.json", result)
    path = session.output / "review.html"
    with timings.measure(session.output, "review: page"):
        context = cards.make_context(session, result, shown)
        files.write_text(path, page.render(context, "review.html"))
    _say(result)
    size = path.stat().st_size / 1e6
    terminal.say(
        f"review: {path} ({size:.1f} MB) shows the first "
        f"{counted(len(shown), 'image')}, review.json lists all",
        review=str(path),
    )


def _twins(images: ImageFeatures) -> list[tuple[int, int]]:
    """Returns the positions of near-duplicates in `images`."""
    scan = images.scan
    places = zip(images.splits, images.ids, strict=True)
    position = {place: k for k, place in enumerate(places)}
    twins = []
    for first, second, _ in scans.find_pairs(scan.images):
        ends = [(scan.splits[k], scan.ids[k]) for k in (first, second)]
        # Dropped images are in no split.
        if all(place in position for place in ends):
            twins.append((position[ends[0]], position[ends[1]]))
    return twins


def _make_result(
    session: Session, images: ImageFeatures, ranked: Ranking
) -> dict[str, Any]:
    """Returns the contents of `review.json`, except `num_shown`."""
    source, config = session.source, session.config
    names, labels = source.class_names, images.features.labels
    order, suggested, contradicted = ranked.suspicion
    reviewed = {(row.split, row.id) for row in source.corrections}
    count = min(_NEIGHBOURS, len(labels) - 1)
    places, cosines = label_errors.nearest(
        images.features.values[0], order, count
    )

    def name(k: int) -> dict[str, str]:
        return {
            "file": images.ids[k],
            "split": images.splits[k],
            "class": names[labels[k]],
        }

    rows = [
        name(k)
        | {
            "suggested_class": names[suggested[k]],
            "probability": float(ranked.probabilities[k, labels[k]]),
            "suggested_probability": float(
                ranked.probabilities[k, suggested[k]]
            ),
            "near_duplicate_differs": bool(contradicted[k]),
            "reviewed": (images.splits[k], images.ids[k]) in reviewed,
            "neighbours": [
                name(other) | {"similarity": float(cosine)}
                for other, cosine in zip(near, alike, strict=True)
            ],
        }
        for k, near, alike in zip(order, places, cosines, strict=True)
    ]
    return {
        "dataset": source.name,
        "backbone": config.model.backbone,
        "class_names": list(names),
        "num_images": len(rows),
        "num_estimated": ranked.num_estimated,
        "num_reviewed": int(np.sum([row["reviewed"] for row in rows])),
        "images": rows,
    }


def _say(result: dict[str, Any]) -> None:
    estimated, total = result["num_estimated"], result["num_images"]
    terminal.say(
        f"review: about {estimated} of {counted(total, 'label')} "
        f"({estimated / total:.1%}) may be wrong",
        num_estimated=estimated,
        num_images=total,
    )
    for row in result["images"][:5]:
        terminal.say(
            f"  {row['file']}: {row['class']} "
            f"({row['probability']:.0%}), or {row['suggested_class']} "
            f"({row['suggested_probability']:.0%})?"
        )
