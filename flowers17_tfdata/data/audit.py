"""Summarises a prepared data set and what is wrong with it."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowers17_tfdata.data import faults, series
from flowers17_tfdata.data import scan as scans
from flowers17_tfdata.data.oxford_flowers17 import splits
from flowers17_tfdata.data.scan import Scan
from flowers17_tfdata.data.source import Source


def audit(source: Source, scan: Scan) -> dict[str, Any]:
    """Counts images, sizes, bad files, faults, near-duplicates and series.

    Args:
      source: the data set.
      scan: the result of `source.scan()`.

    Returns:
      A JSON-serializable summary:
        `dataset`; `num_examples`, without those that can't be decoded or are
        dropped;
        `notes`: what to show the user about how it was read;
        `splits`: `{split: {"num_examples", "per_class": {name: count}}}`;
        `imbalance`: the number of train's images in its largest class over
        that in its smallest class that has any;
        `image_sizes`: minimum, median and maximum height and width, pixels;
        `undecodable`: `[{"split", "id", "error"}]`, split '' if the image is
        left out of all splits;
        `damaged`: the same of files that are decoded and used all the same;
        `faults`: `[{"kind", "split", "id", "value"}]`, the worst of each kind
        first, see `faults.find`;
        `series`: `num_series`, `num_series_across_splits`,
        `num_images_across_splits`, and the `series` across splits with their
        `ids` and `splits`, in the order of taking, see `series.find`;
        `near_duplicates`: `num_pairs`, `num_pairs_across_splits`,
        `num_pairs_across_classes`, `num_groups`, and the `pairs` with their
        ids, splits, classes and dHash distance (None for a published pair that
        hashing doesn't find);
        `corrections`: what `--corrections` says: `num_relabelled`,
        `num_dropped`, `num_kept`, and the `rows` with split, id, class and new
        class (None for an image that is dropped).
    """
    pairs = zip(scan.splits, scan.labels.tolist(), strict=True)
    counts = collections.Counter(pairs)
    train = [n for (split, _), n in counts.items() if split == "train"]
    # Without those that are dropped by `--corrections`, too.
    errors = scan.images.errors
    used = [k for k, s in enumerate(scan.splits) if s and k not in errors]
    return {
        "dataset": source.name,
        "num_examples": len(used),
        "notes": list(source.notes),
        "splits": {
            split: {
                "num_examples": size,
                "per_class": {
                    name: counts[split, label]
                    for label, name in enumerate(source.class_names)
                },
            }
            for split, size in source.split_sizes.items()
        },
        "imbalance": max(train) / min(train) if train else 1.0,
        "image_sizes": {
            side: {
                "minimum": int(column.min()),
                "median": float(np.median(column)),
                "maximum": int(column.max()),
            }
            for side, column in zip(
                ("height", "width"), scan.images.sizes[used].T, strict=True
            )
            if len(column)
        },
        "undecodable": _named(scan, scan.images.errors),
        "damaged": _named(scan, scan.images.damage),
        "faults": _faults(scan),
        "series": _series(scan),
        "near_duplicates": _near_duplicates(source, scan),
        "corrections": _corrections(source),
    }


def _corrections(source: Source) -> dict[str, Any]:
    rows = [
        {
            "split": row.split,
            "id": row.id,
            "class": row.label,
            "new_class": row.new_label or None,
        }
        for row in source.corrections
    ]
    changed = [row for row in rows if row["new_class"] != row["class"]]
    num_dropped = sum(row["new_class"] is None for row in rows)
    return {
        "num_relabelled": len(changed) - num_dropped,
        "num_dropped": num_dropped,
        "num_kept": len(rows) - len(changed),
        "rows": rows,
    }


def _named(scan: Scan, messages: Mapping[int, str]) -> list[dict[str, str]]:
    return [
        {"split": scan.splits[k], "id": scan.ids[k], "error": message}
        for k, message in sorted(messages.items())
    ]


def _faults(scan: Scan) -> list[dict[str, Any]]:
    return [
        {
            "kind": fault.kind,
            "split": scan.splits[fault.position],
            "id": scan.ids[fault.position],
            "value": fault.value,
        }
        for fault in faults.find(scan.images.measures, scan.images.sizes)
    ]


def _series(scan: Scan) -> dict[str, Any]:
    found = series.find(scan.images.secs, scan.images.cameras)
    used = [
        [k for k in run if scan.splits[k] not in ("", "unused")]
        for run in found
    ]
    divided = [run for run in used if len({scan.splits[k] for k in run}) > 1]
    return {
        "num_series": len(found),
        "num_series_across_splits": len(divided),
        "num_images_across_splits": sum(map(len, divided)),
        "series": [
            {
                "ids": [scan.ids[k] for k in run],
                "splits": [scan.splits[k] for k in run],
            }
            for run in divided
        ],
    }


def _near_duplicates(source: Source, scan: Scan) -> dict[str, Any]:
    # Positions, because file names repeat across splits in some data sets.
    position = {image_id: k for k, image_id in enumerate(scan.ids)}
    found = scans.find_pairs(scan.images)
    distances: dict[tuple[int, ...], int | None] = {
        (first, second): distance
        for first, second, distance in found
        if scan.splits[first] and scan.splits[second]
    }
    for pair in source.known_near_duplicates:
        if position.keys() >= set(pair):
            ends = sorted(position[image_id] for image_id in pair)
            if all(scan.splits[k] for k in ends):
                distances.setdefault(tuple(ends), None)
    pairs = [
        {
            "ids": [scan.ids[k] for k in ends],
            "splits": [scan.splits[k] for k in ends],
            "classes": [source.class_names[scan.labels[k]] for k in ends],
            "distance": distance,
        }
        for ends, distance in sorted(distances.items())
    ]
    groups = splits.group_pairs(distances, len(scan.ids))
    return {
        "num_pairs": len(pairs),
        "num_pairs_across_splits": _count_differing(pairs, "splits"),
        "num_pairs_across_classes": _count_differing(pairs, "classes"),
        "num_groups": int((np.bincount(groups, minlength=1) > 1).sum()),
        "pairs": pairs,
    }


def _count_differing(pairs: list[dict[str, Any]], key: str) -> int:
    return sum(len(set(pair[key])) > 1 for pair in pairs)
