"""The flags of the phases that use a trained model."""

from __future__ import annotations

import dataclasses

from flowers17_tfdata.config.option import Kind, Needs
from flowers17_tfdata.errors import ConfigError, did_you_mean

EXPORT_FORMATS = (
    "saved_model",
    "keras",
    "tflite_float16",
    "tflite_int8",
    "onnx",
)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The trained model, and how it is evaluated."""

    model: str = Kind.FREE.option(
        "",
        "Saved .keras classifier ('': the workdir's model_refit.keras, else "
        "the better of the other two on validation).",
        common=True,
        needs=(
            Needs(
                "phase",
                ("train",),
                never=True,
                hint="--backbone names the network to train",
            ),
        ),
    )
    split: str = Kind.FREE.option(
        "test",
        "Split to evaluate, report or compare.",
        common=True,
    )
    assert_accuracy_at_least: float = Kind.FREE.option(
        0.0,
        "Exit with 3 if the accuracy is lower than this.",
        common=True,
        bounds=(0, 1),
    )


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """What `--phase=predict` reads and writes."""

    images: str = Kind.FREE.option(
        "",
        "Images, comma-separated: files, folders, globs ('photos/**/*.jpg'), "
        "or - to read one path per line from standard input.",
        common=True,
        required_by="predict",
    )
    format: str = Kind.FREE.option(
        "table",
        "table for people, json with one object per line, or csv.",
        common=True,
        choices=("table", "json", "csv"),
    )
    output: str = Kind.FREE.option(
        "",
        "File to write the predictions to ('': standard output).",
        common=True,
    )
    top_k: int = Kind.FREE.option(
        3,
        "Number of classes to print, the likeliest first.",
        bounds=(1, None),
    )
    labels: str = Kind.FREE.option(
        "",
        "File of class names, one per line, for a model without any.",
    )


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What `--phase=export` writes."""

    export_dir: str = Kind.FREE.option(
        "",
        "Folder to export to ('': export in the workdir).",
        common=True,
    )
    export_formats: str = Kind.FREE.option(
        "saved_model,keras,tflite_float16,tflite_int8",
        "Formats to export, comma-separated: saved_model, keras, "
        "tflite_float16, tflite_int8, onnx.",
        common=True,
    )

    @property
    def formats(self) -> tuple[str, ...]:
        """The names in `--export_formats`, in the order given.

        Raises:
          ConfigError: there is no name, an unknown one, or one twice.
        """
        names = [n.strip() for n in self.export_formats.split(",")]
        names = [n for n in names if n]
        known = ", ".join(EXPORT_FORMATS)
        if not names:
            raise ConfigError(
                f"--export_formats must name at least one of {known}; got "
                f"{self.export_formats!r}"
            )
        for name in names:
            if name not in EXPORT_FORMATS:
                raise ConfigError(
                    f"--export_formats must be of {known}; got {name!r}"
                    f"{did_you_mean(name, EXPORT_FORMATS)}"
                )
            if names.count(name) > 1:
                raise ConfigError(
                    f"--export_formats must name each format once; got {name} "
                    f"{names.count(name)} times"
                )
        return tuple(names)


@dataclasses.dataclass(frozen=True)
class FoldersConfig:
    """What `--phase=folders` writes."""

    folders_dir: str = Kind.FREE.option(
        "",
        "Folder to write class folders to ('': folders in the workdir).",
    )


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """The runs that `--phase=compare` compares."""

    compare: str = Kind.FREE.option(
        "",
        "Workdirs of evaluated runs: folders and globs, comma-separated.",
        common=True,
        required_by="compare",
    )
    baseline: str = Kind.FREE.option(
        "",
        "Workdirs to compare them with: the same number, in the same order.",
        common=True,
        required_by="compare",
    )


@dataclasses.dataclass(frozen=True)
class FindLrConfig:
    """What `--phase=find_lr` searches for."""

    find_lr_stage: str = Kind.FREE.option(
        "finetune",
        "Stage to find a learning rate for.",
        choices=("transfer", "finetune"),
    )
