"""The flags of the data set."""

from __future__ import annotations

import dataclasses

from flowers17_tfdata.config.option import Kind
from flowers17_tfdata.errors import ConfigError

FOLDER_PREFIX = "folder:"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images, their labels and their splits."""

    dataset: str = Kind.RUN.option(
        "oxford_flowers17",
        "folder:PATH for your own images (PATH/CLASS/*.jpg, or PATH/{train,"
        "validation,test}/CLASS/*.jpg), else a TFDS data set, NAME or NAME/"
        "CONFIG (oxford_flowers17 has seeded, official_1 to 3, synthetic).",
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
    def folder(self) -> str | None:
        """The PATH of `--dataset=folder:PATH`; None for a TFDS data set."""
        if not self.dataset.startswith(FOLDER_PREFIX):
            return None
        return self.dataset.removeprefix(FOLDER_PREFIX)

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
