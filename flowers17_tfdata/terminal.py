"""What the user sees: lines, tables and the progress bar."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.console
import rich.progress
import rich.table
import rich.text

# From here on, accuracy alone can look good while the small classes fail.
_IMBALANCED = 3.0

# Of a comparison, as `comparison.json` names them.
_SIDES = ("compare", "baseline")

_mode = "normal"
_on_stderr = False


def configure(mode: str, *, on_stderr: bool = False) -> None:
    """Chooses how everything after this is shown.

    Args:
      mode: of `--console`: quiet, normal, verbose or json.
      on_stderr: write to standard error: standard output holds data.
    """
    global _mode, _on_stderr
    _mode, _on_stderr = mode, on_stderr


def be_quiet() -> None:
    """Prints nothing from now on: another process of the run does."""
    configure("quiet", on_stderr=_on_stderr)


def get_console() -> rich.console.Console:
    """Returns a console; colours only on a terminal."""
    # Made anew each time: the streams may have been redirected since.
    return rich.console.Console(
        highlight=False,
        soft_wrap=True,
        quiet=_mode == "quiet",
        stderr=_on_stderr,
    )


def say(text: str, **record: Any) -> None:
    """Prints one line.

    Args:
      text: for people.
      **record: what `--console=json` prints beside it, JSON-serializable.
    """
    if _mode == "json":
        _print_json(text, record)
    else:
        get_console().print(text, markup=False)


def detail(text: str, **record: Any) -> None:
    """Prints one line where `--console=verbose` or `json`."""
    if _mode in ("verbose", "json"):
        say(text, **record)


@contextlib.contextmanager
def other_output_as_details() -> Iterator[None]:
    """Makes what a library prints to standard output `detail` lines."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            if line.strip():
                detail(line)


def _print_json(text: str, record: Mapping[str, Any]) -> None:
    line = {"time": round(time.time(), 3), "message": text, **record}
    stream = sys.stderr if _on_stderr else sys.stdout
    print(json.dumps(line), file=stream, flush=True)


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Prints a table; numbers are right-aligned."""
    if _mode == "json":
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        _print_json(title, {"rows": records})
        return
    # Text, not str: names in brackets would be taken for markup.
    text = rich.text.Text
    table = rich.table.Table(title=text(title), title_justify="left")
    for k, name in enumerate(columns):
        numeric = bool(rows) and not isinstance(rows[0][k], str)
        table.add_column(
            text(name), justify="right" if numeric else "left", no_wrap=k == 0
        )
    for row in rows:
        table.add_row(*(text(_shown(value)) for value in row))
    get_console().print(table)


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


class EpochProgress:
    """The bar of one pass over the data: steps, ETA, rates.

    A context manager. Draws nothing where the stream is no terminal.

    Args:
      title: before the bar.
      num_steps: of the pass; None: not known.
    """

    def __init__(self, title: str, num_steps: int | None):
        console = get_console()
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


class ScanProgress:
    """The bar of a look at all images, from when there is something to tell.

    A context manager.

    Args:
      num_images: how many there are; None: not known.
    """

    def __init__(self, num_images: int | None):
        self._num_images = num_images
        self._stack = contextlib.ExitStack()
        self._progress: EpochProgress | None = None
        self._done = 0

    def __enter__(self) -> ScanProgress:
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def scanned(self, num_images: int) -> None:
        """Tells how many images have been looked at."""
        if self._progress is None:
            self._progress = self._stack.enter_context(
                EpochProgress("looking at images", self._num_images)
            )
        self._progress.advance(num_images - self._done)
        self._done = num_images


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
        f"near-duplicates: {duplicates['num_pairs']} pairs in "
        f"{duplicates['num_groups']} groups; "
        f"{duplicates['num_pairs_across_splits']} pairs across splits"
    )
    _show_conflict(duplicates)
    if audit["imbalance"] >= _IMBALANCED:
        say(
            f"train's largest class has {audit['imbalance']:.1f} times the "
            "images of its smallest: consider --class_weights=balanced"
        )
    say(f"undecodable files: {len(audit['undecodable'])}")
    for file in audit["undecodable"]:
        say(f"  {file['split'] or 'left out:'} {file['id']}: {file['error']}")


def _show_conflict(duplicates: Mapping[str, Any]) -> None:
    """Tells of a picture that lies in two classes."""
    for pair in duplicates["pairs"]:
        if len(set(pair["classes"])) > 1:
            say(
                f"{duplicates['num_pairs_across_classes']} of them are in two "
                f"classes, first {pair['ids'][0]} ({pair['classes'][0]}) and "
                f"{pair['ids'][1]} ({pair['classes'][1]}): one label is wrong"
            )
            return


def show_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Prints the contents of `evaluation.json`."""
    _show_per_class(f"{evaluation['split']} split", evaluation["per_class"])
    low, high = evaluation["accuracy_interval"]
    # Of five classes or fewer, the five likeliest are all.
    top_5 = ""
    if len(evaluation["per_class"]) > 5:
        top_5 = f"top-5 {evaluation['top_5_accuracy']:.4f}, "
    views = ""
    if evaluation["views"] > 1:
        views = f", mean of {evaluation['views']} views"
    say(
        f"{evaluation['split']}: accuracy {evaluation['accuracy']:.4f} "
        f"(95 % interval {low:.4f} to {high:.4f}, "
        f"{evaluation['num_examples']} images{views}), "
        f"{top_5}loss {evaluation['loss']:.4f}",
        **{
            name: evaluation[name]
            for name in ("split", "num_examples", "accuracy", "loss")
        },
    )


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Prints the contents of `comparison.json`."""
    pairs, pooled = comparison["pairs"], comparison["pooled"]
    title = f"{comparison['split']} split, {pooled['num_images']} images"
    if _mode == "json":
        _print_json(title, {"rows": pairs})
    else:
        rows = [row for pair in pairs for row in _pair_rows(pair)]
        if len(pairs) > 1:
            names = {"compare": "all compared", "baseline": "all baselines"}
            rows += _pair_rows({**pooled, **names})
        columns = ["workdir", "accuracy, %", "alone", "points", "p"]
        show_table(title, columns, rows)
        _tell_of_models(pairs)
    say(
        f"{comparison['split']}: {_verdict(comparison)}",
        split=comparison["split"],
        **pooled,
    )


def _pair_rows(figures: Mapping[str, Any]) -> list[list[Any]]:
    """Returns a row for each of the two; the first has what is of both."""
    rows = []
    for name in _SIDES:
        accuracy = _points(figures[f"{name}_accuracy"])
        # Of all pairs together there is none.
        if f"{name}_interval" in figures:
            accuracy += f" ({_span(figures[f'{name}_interval'])})"
        alone = figures[f"only_{name}_right"]
        rows.append([figures[name], accuracy, alone, "", ""])
    interval = _span(figures["difference_interval"])
    rows[0][3:] = [
        f"{_points(figures['difference'])} ({interval})",
        _p_value(figures["p_value"]).removeprefix("= ").replace(" ", ""),
    ]
    return rows


def _tell_of_models(pairs: Sequence[Mapping[str, Any]]) -> None:
    """Says whose answers are compared, and from how many looks at an image."""
    for name in _SIDES:
        kinds = dict.fromkeys(
            f"{pathlib.Path(pair[f'{name}_model']).name}, "
            f"{pair[f'{name}_views']} view(s)"
            for pair in pairs
        )
        say(f"{name}: {'; '.join(kinds)}")


def _verdict(comparison: Mapping[str, Any]) -> str:
    """Says in a sentence which of the two is better, if one is."""
    pooled, pairs = comparison["pooled"], comparison["pairs"]
    # One run goes by its name, several by how they were named.
    source = pairs[0] if len(pairs) == 1 else comparison
    names = [source[name] for name in _SIDES]
    difference, interval = pooled["difference"], pooled["difference_interval"]
    if difference < 0:
        # Told from the side of the better one.
        names.reverse()
        difference, interval = -difference, [-x for x in interval[::-1]]
    figures = (
        f"95 % interval {_span(interval)}, p {_p_value(pooled['p_value'])}"
    )
    if pooled["beyond_chance"]:
        return (
            f"{names[0]} is better than {names[1]} by {_points(difference)} "
            f"points ({figures})"
        )
    return (
        f"the difference between {names[0]} and {names[1]} "
        f"({_points(difference)} points, {figures}) is within what chance "
        "explains"
    )


def _points(share: float) -> str:
    # Adding 0 makes a rounded -0.0 one without a sign.
    return f"{round(100 * share, 1) + 0.0:.1f}"


def _span(interval: Sequence[float]) -> str:
    return " to ".join(map(_points, interval))


def _p_value(p: float) -> str:
    return f"= {p:.4f}" if p >= 0.0001 else "< 0.0001"


def _show_per_class(
    title: str, per_class: Mapping[str, Mapping[str, Any]]
) -> None:
    rows = [
        [name, s["precision"], s["recall"], s["f1"], s["support"]]
        for name, s in per_class.items()
    ]
    columns = ["class", "precision", "recall", "F1", "images"]
    show_table(title, columns, rows)


def show_cross_validation(result: Mapping[str, Any]) -> None:
    """Prints the contents of `cross_validation.json`."""
    folds, spread = result["folds"], result["over_folds"]
    _show_per_class(f"test splits of {len(folds)} folds", result["per_class"])
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
        **{name: result[name] for name in ("num_examples", "accuracy", "loss")},
        over_folds=dict(spread),
    )
