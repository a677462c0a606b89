"""The output that users see: lines, tables and progress bars."""

from __future__ import annotations

import collections
import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.console
import rich.progress
import rich.table
import rich.text

from flowers17_tfdata.errors import counted

# From this imbalance on, a good accuracy can hide failures in small classes.
IMBALANCED = 3.0

# The most files that an audit lists.
_MOST_FILES = 20

# The least width of a table's column of text, characters.
_LEAST_WIDTH = 12

# The scores that `--console=json` adds to the line of an evaluation.
_SCORES = ("num_examples", "accuracy", "loss")

_mode = "normal"
_on_stderr = False


def configure(mode: str, *, on_stderr: bool = False) -> None:
    """Sets how all later output is shown.

    Args:
      mode: the value of `--console`: quiet, normal, verbose or json.
      on_stderr: write to standard error, because standard output holds data.
    """
    global _mode, _on_stderr
    _mode, _on_stderr = mode, on_stderr


def say(text: str, **record: Any) -> None:
    """Prints one line.

    Args:
      text: the line.
      **record: JSON-serializable values that `--console=json` adds to it.
    """
    if _mode == "json":
        line = {"time": round(time.time(), 3), "message": text, **record}
        stream = sys.stderr if _on_stderr else sys.stdout
        print(json.dumps(line), file=stream, flush=True)
    else:
        _make_console().print(text, markup=False)


def detail(text: str, **record: Any) -> None:
    """Prints one line if `--console` is `verbose` or `json`."""
    if _mode in ("verbose", "json"):
        say(text, **record)


@contextlib.contextmanager
def other_output_as_details() -> Iterator[None]:
    """Turns what a library prints to standard output into `detail` lines."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            if line.strip():
                detail(line)


def _make_console() -> rich.console.Console:
    # Not kept: the streams may be redirected in the meantime.
    console = rich.console.Console(
        highlight=False,
        soft_wrap=True,
        quiet=_mode == "quiet",
        stderr=_on_stderr,
    )
    if not console.width:
        # COLUMNS=0 says that it is unknown; rich would print nothing.
        console.width = 80
    return console


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    records: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Prints a table; numbers are right-aligned.

    Args:
      title: the table's title.
      columns: the names of the columns.
      rows: the values of each row; floats are shown with three decimals.
      records: the rows that `--console=json` prints. Defaults to `rows`.
    """
    if _mode == "json":
        if records is None:
            records = [dict(zip(columns, row, strict=True)) for row in rows]
        say(title, rows=records)
        return
    # In a str, rich would take names in brackets for markup.
    text = rich.text.Text
    table = rich.table.Table(title=text(title), title_justify="left")
    least_width = 1
    cells = [[_format(value) for value in row] for row in rows]
    for k, name in enumerate(columns):
        numeric = bool(rows) and not isinstance(rows[0][k], str)
        # Never narrower than its numbers: rich would cut them first.
        longest = max(len(row[k]) for row in [columns, *cells])
        width = longest if numeric else min(longest, _LEAST_WIDTH)
        # With a border and a space on each side.
        least_width += width + 3
        table.add_column(
            text(name),
            justify="right" if numeric else "left",
            min_width=width,
            no_wrap=numeric,
            # Long names take several lines.
            overflow="fold",
        )
    for row in cells:
        table.add_row(*map(text, row))
    console = _make_console()
    # A table that is wider than the screen is better than one without numbers.
    console.width = max(console.width, least_width)
    console.print(table)


def _format(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


class EpochProgress:
    """The progress bar of one pass over the data: steps, ETA, rates.

    A context manager. Draws nothing if the stream is not a terminal.

    Args:
      title: the text before the bar.
      num_steps: the number of steps, or None if it is unknown.
    """

    def __init__(self, title: str, num_steps: int | None):
        console = _make_console()
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("ETA"),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[rates]}"),
            console=console,
            transient=True,
            disable=_mode == "json" or not console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=num_steps, rates="")

    def __enter__(self) -> EpochProgress:
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def advance(self, num_steps: int = 1, rates: str = "") -> None:
        """Counts steps; `rates` is shown behind the bar."""
        self._progress.update(self._task, advance=num_steps, rates=rates)


class ScanProgress(EpochProgress):
    """The progress bar of a scan of all images.

    It appears with the first image: data sets whose scan is cached need none.

    Args:
      num_images: the number of images, or None if it is unknown.
    """

    def __init__(self, num_images: int | None):
        super().__init__("reading images", num_images)

    def __enter__(self) -> ScanProgress:
        return self

    def scanned(self, num_images: int) -> None:
        """Sets the number of images that have been scanned so far."""
        # A second call does nothing.
        self._progress.start()
        self._progress.update(self._task, completed=num_images)


def show_audit(audit: Mapping[str, Any]) -> None:
    """Prints the summary that `data.audit.audit` returns."""
    splits = audit["splits"]
    class_names = list(next(iter(splits.values()))["per_class"])
    rows = [
        [name, *(s["per_class"][name] for s in splits.values())]
        for name in class_names
    ]
    rows.append(["all", *(s["num_examples"] for s in splits.values())])
    show_table(audit["dataset"], ["class", *splits], rows)
    for side, size in audit["image_sizes"].items():
        say(
            f"{side}: {size['minimum']} to {size['maximum']} pixels, "
            f"median {size['median']:g}"
        )
    duplicates = audit["near_duplicates"]
    say(
        f"near-duplicates: {counted(duplicates['num_pairs'], 'pair')} in "
        f"{counted(duplicates['num_groups'], 'group')}; "
        f"{counted(duplicates['num_pairs_across_splits'], 'pair')} across "
        "splits"
    )
    for pair in duplicates["pairs"]:
        (one, other), (label, second) = pair["ids"], pair["classes"]
        if label != second:
            across = counted(duplicates["num_pairs_across_classes"], "pair")
            say(
                f"{across} across classes, first {one} ({label}) and {other} "
                f"({second}): one of the two labels is wrong"
            )
            break
    _show_series(audit)
    if audit["imbalance"] >= IMBALANCED:
        say(
            f"train's largest class has {audit['imbalance']:.1f} times the "
            "images of its smallest: consider --class_weights=balanced"
        )
    undecodable = audit["undecodable"]
    say(f"files that can't be decoded: {len(undecodable)}")
    for file in undecodable[:_MOST_FILES]:
        say(f"  {file['split'] or 'left out:'} {file['id']}: {file['error']}")
    if len(undecodable) > _MOST_FILES:
        say(f"  and {len(undecodable) - _MOST_FILES} more, in audit.json")
    damaged = audit["damaged"]
    if damaged:
        say(f"damaged files, used all the same: {len(damaged)}")
    for file in damaged[:_MOST_FILES]:
        say(f"  {file['split']} {file['id']}: {file['error']}")
    if len(damaged) > _MOST_FILES:
        say(f"  and {len(damaged) - _MOST_FILES} more, in audit.json")
    faults = audit["faults"]
    first = {fault["kind"]: fault["id"] for fault in reversed(faults)}
    counts = collections.Counter(fault["kind"] for fault in faults)
    for kind, number in counts.items():
        say(f"{kind}: {counted(number, 'image')}, first {first[kind]}")


def _show_series(audit: Mapping[str, Any]) -> None:
    """Warns of series that are divided between splits."""
    series = audit["series"]
    if not series["series"]:
        return
    first = series["series"][0]
    ids, splits = first["ids"], first["splits"]
    other = next(k for k, split in enumerate(splits) if split != splits[0])
    advice = ""
    if audit["dataset"].startswith(("folder:", "csv:")):
        advice = "; --groups keeps a series together if its paths show it"
    say(
        f"{series['num_series_across_splits']} series of photographs "
        f"({counted(series['num_images_across_splits'], 'image')}, each taken "
        "within seconds of the one before) divided between splits, first "
        f"{ids[0]} ({splits[0]}) and {ids[other]} ({splits[other]}): they may "
        f"show the same subject{advice}"
    )


def show_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Prints the contents of `evaluation.json`."""
    split = evaluation["split"]
    _show_per_class(f"{split} split", evaluation)
    low, high = evaluation["accuracy_interval"]
    top_5 = ""
    # With five classes or fewer, top-5 accuracy is always 1.
    if len(evaluation["per_class"]) > 5:
        top_5 = f"top-5 {evaluation['top_5_accuracy']:.4f}, "
    say(
        f"{split}: accuracy {evaluation['accuracy']:.4f} "
        f"(95 % interval {low:.4f} to {high:.4f}, "
        f"{counted(evaluation['num_examples'], 'image')}), "
        f"{top_5}loss {evaluation['loss']:.4f}",
        split=split,
        **{name: evaluation[name] for name in _SCORES},
    )
    trust = evaluation.get("trust")
    if trust:
        sets = trust["classes_at_95"]
        say(
            f"{split}: calibration error {trust['ece']:.1%} (before the "
            f"temperature {trust['ece_before']:.1%}); "
            f"{counted(trust['turned_away'], 'image')} turned away as unknown; "
            f"classes_at_95 hold the right one in {sets['coverage']:.1%}"
        )


def show_cross_validation(result: Mapping[str, Any]) -> None:
    """Prints the contents of `cross_validation.json`."""
    folds, spread = result["folds"], result["over_folds"]
    _show_per_class(f"test splits of {len(folds)} folds", result)
    rows = [
        [name, one["accuracy"], *one["accuracy_interval"], one["num_examples"]]
        for name, one in (*((f["workdir"], f) for f in folds), ("all", result))
    ]
    columns = ["fold", "accuracy", "95 % from", "to", "images"]
    show_table("cross-validation", columns, rows)
    low, high = result["accuracy_interval"]
    say(
        f"cross-validation: accuracy {result['accuracy']:.4f} (95 % interval "
        f"{low:.4f} to {high:.4f}, {result['num_examples']} images, each "
        f"tested once); over {len(folds)} folds {spread['mean']:.4f} +- "
        f"{spread['standard_deviation']:.4f} (standard deviation), "
        f"{spread['minimum']:.4f} to {spread['maximum']:.4f}",
        **{name: result[name] for name in _SCORES},
        over_folds=dict(spread),
    )


def _show_per_class(title: str, result: Mapping[str, Any]) -> None:
    rows = [
        [name, s["precision"], s["recall"], s["f1"], s["support"]]
        for name, s in result["per_class"].items()
    ]
    columns = ["class", "precision", "recall", "F1", "images"]
    show_table(title, columns, rows)
