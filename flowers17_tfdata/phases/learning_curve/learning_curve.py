"""Runs the phase: fits the heads, writes `learning_curve.json`, prints it.

The curve is that of the head that `training/linear_head.py` solves for, on
features of the frozen backbone. All heads have the weight decay that the whole
asks for: between 0.0003 and 0.01, the choice moved the error of Flowers-17 at
any size by less than the choice of the subset did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowers17_tfdata import files, terminal, timings
from flowers17_tfdata.errors import counted
from flowers17_tfdata.input import augmentation
from flowers17_tfdata.phases import frozen_features, train_data
from flowers17_tfdata.phases.frozen_features import ImageFeatures
from flowers17_tfdata.phases.learning_curve import subsets
from flowers17_tfdata.scoring import scaling_law
from flowers17_tfdata.session import TRAINING_SPLITS, Session
from flowers17_tfdata.training import linear_head

_TIMES = {1: "now", 2: "twice", 4: "4 times"}
# The width of the terminal's chart, in characters.
_WIDTH = 24


def predict_gains(session: Session) -> None:
    """Tells what more photographs would buy.

    It never reads the test split. It prints a chart, two tables and one line,
    and writes `learning_curve.json`: what `scaling_law.summarize` returns,
    with `classes` by their names and `most_wanted` as names, and
      `dataset`;
      `trained_splits`: the splits that the run's model is trained on;
      `num_images`: their images, `now` in the predictions;
      `weight_decay`: what the heads were fitted with;
      `summary`: the line;
      and the flags, versions and hardware of `Session.record`.

    Raises:
      UserError: an image can't be decoded, or every class has too few images.
    """
    config, source = session.config, session.source
    views = augmentation.num_views(
        config.input, max(1, config.input.feature_views)
    )
    with timings.measure(session.output, "learning curve: features"):
        images = frozen_features.read_features(session, TRAINING_SPLITS, views)
    with timings.measure(session.output, "learning curve: heads"):
        judged, weight_decay = _fit_heads(session, images)
    trained = TRAINING_SPLITS if config.optimization.refit else ("train",)
    now = images.features.labels[np.isin(images.splits, trained)]
    result = scaling_law.summarize(
        judged,
        len(now),
        np.bincount(now, minlength=len(source.class_names)),
        config.runtime.seed,
    )
    names = source.class_names
    result["classes"] = dict(zip(names, result["classes"], strict=True))
    result["most_wanted"] = [names[k] for k in result["most_wanted"]]
    result = {
        "dataset": source.name,
        "summary": summary(result),
        "trained_splits": list(trained),
        "num_images": len(now),
        "weight_decay": weight_decay,
        **result,
        **session.record(),
    }
    files.write_json(session.output / "learning_curve.json", result)
    _show(result)


def _fit_heads(
    session: Session, images: ImageFeatures
) -> tuple[scaling_law.Judged, float]:
    """Returns the heads' answers and their weight decay."""
    config, labels = session.config, images.features.labels
    num_classes = len(session.source.class_names)
    weights = train_data.example_weights(session, labels)
    whole = linear_head.fit(
        images.features,
        num_classes,
        seed=config.runtime.seed,
        example_weights=weights,
    )
    title = "learning_curve: heads"
    with terminal.EpochProgress(title, subsets.NUM_FITS) as progress:
        judged = subsets.judge(
            images.features,
            images.groups,
            num_classes,
            weight_decay=whole.weight_decay,
            balanced=weights is not None,
            seed=config.runtime.seed,
            on_fit=progress.advance,
        )
    return judged, whole.weight_decay


def summary(result: Mapping[str, Any]) -> str:
    """Returns the line that says what twice the photographs would buy."""
    if not result["predictions"]:
        wrong, total = round(result["num_wrong"]), result["num_judged"]
        errors = counted(wrong, "error") if wrong else "no error"
        return (
            f"{errors} in {counted(total, 'image')}: at most "
            f"{100 * result['most_wrong']:.2g} %, too few to tell what more "
            "photographs would buy"
        )
    now, twice = result["predictions"][:2]
    low, high = twice["accuracy_interval"]
    wanted = ", ".join(result["most_wanted"])
    return (
        f"twice the photographs: {100 * now['accuracy']:.1f} -> "
        f"{100 * twice['accuracy']:.1f} % ({100 * low:.1f} to "
        f"{100 * high:.1f}); "
        + (f"most wanted: {wanted}" if wanted else "no class stands out")
    )


def _show(result: Mapping[str, Any]) -> None:
    """Prints the curve, what each class gains, and the summary."""
    rows = [(f"{x['num_images']:.0f}", x) for x in result["curve"]] + [
        (f"{x['num_images']} ({_TIMES[x['times']]})", x)
        for x in result["predictions"]
    ]
    bars = interval_bars(
        [(x["accuracy"], x["accuracy_interval"]) for _, x in rows]
    )
    terminal.show_table(
        "accuracy of the head on frozen features",
        ["photographs", "accuracy", "95 % from", "to", "chart"],
        [
            [name, x["accuracy"], *x["accuracy_interval"], bar]
            for (name, x), bar in zip(rows, bars, strict=True)
        ],
        records=[x for _, x in rows],
    )
    told = {name: c for name, c in result["classes"].items() if c}
    if result["predictions"]:
        gains = sorted(told.items(), key=lambda x: -x[1]["gain_per_photograph"])
        terminal.show_table(
            "recall now and with twice the photographs of all classes, the "
            "largest gain per photograph first",
            ["class", "photographs", "now", "twice", "95 % from", "to"],
            [
                [name, c["num_images"], c["recall"], c["twice"]]
                + c["twice_interval"]
                for name, c in gains
            ],
        )
    few = [name for name in result["classes"] if name not in told]
    if few:
        terminal.say(
            f"learning_curve: can't be told, with fewer than "
            f"{subsets.LEAST_GROUPS} images (near-duplicates count as one): "
            f"{', '.join(few)}"
        )
    keys = ("summary", "predictions", "most_wanted")
    terminal.say(
        f"learning_curve: {result['summary']}", **{k: result[k] for k in keys}
    )


def interval_bars(
    rows: Sequence[tuple[float, Sequence[float]]],
) -> list[str]:
    """Returns values and their intervals as text, on a common axis.

    Args:
      rows: the value and the two limits of each row.
    """
    limits = [x for value, interval in rows for x in (value, *interval)]
    low, extent = min(limits), max(limits) - min(limits) or 1.0

    def place(x: float) -> int:
        return round((x - low) / extent * (_WIDTH - 1))

    bars = []
    for value, (start, end) in rows:
        bar = [" "] * _WIDTH
        first, last = place(start), place(end)
        bar[first : last + 1] = "-" * (last + 1 - first)
        bar[first] = bar[last] = "|"
        bar[place(value)] = "o"
        bars.append("".join(bar))
    return bars
