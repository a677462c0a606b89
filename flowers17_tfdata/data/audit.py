"""Looks at a prepared data set the way a careful person would."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np

from flowers17_tfdata.data import decode, near_duplicates
from flowers17_tfdata.data.oxford_flowers17 import splits
from flowers17_tfdata.data.sources import Source


def audit(source: Source) -> dict[str, Any]:
    """Counts, sizes, undecodable files and near-duplicates of all splits.

    Returns:
      A JSON-serializable summary:
        `dataset`, `num_examples`;
        `splits`: `{split: {"num_examples", "per_class": {name: count}}}`;
        `image_sizes`: minimum, median, maximum of height and width, pixels;
        `undecodable`: `[{"split", "id", "error"}]`;
        `near_duplicates`: `num_pairs`, `num_pairs_across_splits`,
        `num_groups`, and the `pairs` with their ids, splits and dHash
        distance (None for a published pair that hashing doesn't find).
    """
    ids, split_of, labels, encoded = [], [], [], []
    for split in source.split_sizes:
        for example in source.read(split).as_numpy_iterator():
            ids.append(example["id"].decode())
            split_of.append(split)
            labels.append(int(example["label"]))
            encoded.append(example["image"])
    found = decode.make_thumbnails(encoded)
    readable = np.array(
        [size for k, size in enumerate(found.sizes) if k not in found.errors]
    ).reshape(-1, 2)
    return {
        "dataset": source.name,
        "num_examples": len(ids),
        "splits": _count_splits(source, split_of, labels),
        "image_sizes": _summarize_sizes(readable),
        "undecodable": [
            {"split": split_of[k], "id": ids[k], "error": message}
            for k, message in sorted(found.errors.items())
        ],
        "near_duplicates": _near_duplicates(
            source, ids, split_of, found.thumbnails
        ),
    }


def _count_splits(source, split_of, labels) -> dict[str, Any]:
    counts = collections.Counter(zip(split_of, labels, strict=True))
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


def _near_duplicates(source, ids, split_of, thumbnails) -> dict[str, Any]:
    # File names repeat across splits in some data sets; positions do not.
    position = {image_id: k for k, image_id in enumerate(ids)}
    distance = {
        (pair.first, pair.second): pair.distance
        for pair in near_duplicates.find_near_duplicates(thumbnails)
    }
    for pair in source.known_near_duplicates:
        if all(image_id in position for image_id in pair):
            ends = tuple(sorted(position[image_id] for image_id in pair))
            distance.setdefault(ends, None)
    pairs = [
        {
            "ids": [ids[a], ids[b]],
            "splits": [split_of[a], split_of[b]],
            "distance": bits,
        }
        for (a, b), bits in sorted(distance.items())
    ]
    groups = splits.group_pairs(distance, len(ids))
    group_sizes = np.bincount(groups, minlength=1)
    return {
        "num_pairs": len(pairs),
        "num_pairs_across_splits": sum(
            len(set(pair["splits"])) > 1 for pair in pairs
        ),
        "num_groups": int((group_sizes > 1).sum()),
        "pairs": pairs,
    }
