"""Looks at a prepared data set the way a careful person would."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np

from flowers17_tfdata.data import scan as scan_lib
from flowers17_tfdata.data.oxford_flowers17 import splits
from flowers17_tfdata.data.scan import Scan
from flowers17_tfdata.data.source import Source


def audit(source: Source, scan: Scan) -> dict[str, Any]:
    """Counts, sizes, undecodable files and near-duplicates of all splits.

    Args:
      source: the data set.
      scan: what `source.scan()` returned.

    Returns:
      A JSON-serializable summary:
        `dataset`, `num_examples`;
        `splits`: `{split: {"num_examples", "per_class": {name: count}}}`;
        `imbalance`: images of train's largest class over those of its
        smallest that has any;
        `image_sizes`: minimum, median, maximum of height and width, pixels;
        `undecodable`: `[{"split", "id", "error"}]`, split '' where it is left
        out of all of them;
        `near_duplicates`: `num_pairs`, `num_pairs_across_splits`,
        `num_pairs_across_classes`, `num_groups`, and the `pairs` with their
        ids, splits, classes and dHash distance (None for a published pair that
        hashing doesn't find).
    """
    readable = np.array(
        [size for k, size in enumerate(scan.sizes) if k not in scan.errors]
    ).reshape(-1, 2)
    return {
        "dataset": source.name,
        "num_examples": len(scan.ids),
        "splits": _count_splits(source, scan),
        "imbalance": _imbalance(scan),
        "image_sizes": _summarize_sizes(readable),
        "undecodable": [
            {"split": scan.splits[k], "id": scan.ids[k], "error": message}
            for k, message in sorted(scan.errors.items())
        ],
        "near_duplicates": _near_duplicates(source, scan),
    }


def _count_splits(source: Source, scan: Scan) -> dict[str, Any]:
    counts = collections.Counter(
        zip(scan.splits, scan.labels.tolist(), strict=True)
    )
    return {
        split: {
            "num_examples": size,
            "per_class": {
                name: counts[split, label]
                for label, name in enumerate(source.class_names)
            },
        }
        for split, size in source.split_sizes.items()
    }


def _imbalance(scan: Scan) -> float:
    train = scan.labels[np.array(scan.splits) == "train"]
    counts = np.bincount(train, minlength=1)
    counts = counts[counts > 0]
    return float(counts.max() / counts.min()) if len(counts) else 1.0


def _summarize_sizes(sizes: np.ndarray) -> dict[str, Any]:
    if not len(sizes):
        return {}
    return {
        name: {
            "minimum": int(column.min()),
            "median": float(np.median(column)),
            "maximum": int(column.max()),
        }
        for name, column in zip(("height", "width"), sizes.T, strict=True)
    }


def _near_duplicates(source: Source, scan: Scan) -> dict[str, Any]:
    # File names repeat across splits in some data sets; positions do not.
    position = {image_id: k for k, image_id in enumerate(scan.ids)}
    distance = {
        (pair.first, pair.second): pair.distance
        for pair in scan_lib.find_pairs(scan.thumbnails, scan.pairs_cache)
    }
    for pair in source.known_near_duplicates:
        if all(image_id in position for image_id in pair):
            ends = tuple(sorted(position[image_id] for image_id in pair))
            distance.setdefault(ends, None)
    names = [source.class_names[label] for label in scan.labels]
    pairs = [
        {
            "ids": [scan.ids[a], scan.ids[b]],
            "splits": [scan.splits[a], scan.splits[b]],
            "classes": [names[a], names[b]],
            "distance": bits,
        }
        for (a, b), bits in sorted(distance.items())
    ]

    def num_across(what: str) -> int:
        return sum(len(set(pair[what])) > 1 for pair in pairs)

    groups = splits.group_pairs(distance, len(scan.ids))
    group_sizes = np.bincount(groups, minlength=1)
    return {
        "num_pairs": len(pairs),
        "num_pairs_across_splits": num_across("splits"),
        "num_pairs_across_classes": num_across("classes"),
        "num_groups": int((group_sizes > 1).sum()),
        "pairs": pairs,
    }
