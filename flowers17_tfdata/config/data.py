"""The flags of the data set."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import NamedTuple

from flowers17_tfdata.config.option import Kind
from flowers17_tfdata.errors import ConfigError

# How `--dataset` names the user's own photographs.
OWN_PREFIXES = ("folder:", "csv:")


class OwnImages(NamedTuple):
    """Where the user's own photographs are.

    Attributes:
      prefix: one of `OWN_PREFIXES`.
      path: what follows it: a folder of class folders, or a table.
    """

    prefix: str
    path: str

    @property
    def absolute(self) -> pathlib.Path:
        """The path, whatever the current folder."""
        path = pathlib.Path(self.path).expanduser()
        if self.prefix == "folder:":
            return path.resolve()
        # A table may be a link; its paths start where the link is.
        return path.parent.resolve() / path.name


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images, their labels and their splits."""

    dataset: str = Kind.RUN.option(
        "oxford_flowers17",
        "folder:PATH for your own images (PATH/CLASS/*.jpg, or PATH/{train,"
        "validation,test}/CLASS/*.jpg), or csv:FILE for a table of them "
        "(columns path and label, optionally split and group); else a TFDS "
        "data set, NAME or NAME/CONFIG (oxford_flowers17 has seeded, "
        "official_1 to 3, synthetic).",
        common=True,
    )
    archive: str = Kind.FREE.option(
        "",
        "17flowers.tgz or its extracted folder, instead of the download.",
        common=True,
    )
    data_dir: str = Kind.RECALLED.option(
        "",
        "Folder of prepared TFDS data sets ('': ~/tensorflow_datasets).",
        common=True,
    )
    split_fractions: str = Kind.RUN.option(
        "0.7,0.15,0.15",
        "TRAIN,VALIDATION,TEST: how to divide a data set without these splits, "
        "with equal proportions of every class.",
    )
    split_seed: int = Kind.RUN.option(
        0,
        "Seed of the division into splits (0 keeps those of oxford_flowers17).",
        bounds=(0, 2**31 - 1),
    )
    near_duplicates: str = Kind.RUN.option(
        "together",
        "together keeps nearly identical images in one split; anywhere does "
        "not, so that test accuracy also measures memory.",
        choices=("together", "anywhere"),
    )
    groups: str = Kind.RUN.option(
        "",
        "Regular expression for the paths of your own images, relative to "
        "their folder: images in which it matches the same text (that in its "
        "parentheses, if any) stay in one split.",
    )
    extends: str = Kind.RUN.option(
        "",
        "Workdir of an earlier run on this folder or table, to which images or "
        "classes were added since, or whose labels were corrected: takes over "
        "the flags, splits and features of that run, and compares both models "
        "on the test images of that run.",
        common=True,
    )
    corrections: str = Kind.RUN.option(
        "",
        "Table of corrected labels, such as --phase=review helps to make: "
        "columns file, class and new_class (the right class, or (drop)). "
        "Images keep their splits, and files are not touched.",
    )
    folds: int = Kind.RUN.option(
        0,
        "Cross-validate on K folds (3 to 20): each is the test split once, the "
        "next one validation (0: do not).",
        common=True,
        bounds=(0, 20),
    )
    fold: int = Kind.RUN.option(
        -1,
        "Run this fold alone, 0 to K-1, of --folds=K (-1: run all, each in "
        "WORKDIR/fold_N, and pool the results).",
        bounds=(-1, None),
    )

    @property
    def runs_all_folds(self) -> bool:
        """Whether this is a cross-validation of all folds, not of one."""
        return self.folds > 0 and self.fold < 0

    @property
    def own_images(self) -> OwnImages | None:
        """Where the user's own photographs are; None for a TFDS data set."""
        for prefix in OWN_PREFIXES:
            if self.dataset.startswith(prefix):
                return OwnImages(prefix, self.dataset.removeprefix(prefix))
        return None

    @property
    def group_pattern(self) -> re.Pattern[str] | None:
        """What finds the name of an image's group; None without `--groups`.

        Raises:
          ConfigError: `--groups` is no regular expression.
        """
        if not self.groups:
            return None
        try:
            return re.compile(self.groups)
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(
                f"--groups must be a regular expression; got {self.groups!r}: "
                f"{error}"
            ) from error

    @property
    def is_flowers17(self) -> bool:
        """Whether the data set is made from the Oxford archive."""
        name, _, config_name = self.dataset.partition("/")
        return name == "oxford_flowers17" and config_name != "synthetic"

    @property
    def fractions(self) -> tuple[float, float, float]:
        """The fractions of train, validation and test, which sum to 1.

        Raises:
          ConfigError: `--split_fractions` holds something else.
        """
        try:
            train, validation, test = map(
                float, self.split_fractions.split(",")
            )
        except ValueError:
            train = validation = test = float("nan")
        numbers = train, validation, test
        # NaN fails both.
        if not all(0 < n < 1 for n in numbers) or abs(sum(numbers) - 1) > 1e-6:
            raise ConfigError(
                "--split_fractions must be TRAIN,VALIDATION,TEST, each above "
                f"0, with the sum 1; got {self.split_fractions!r}"
            )
        return numbers
