"""All options of one run, in groups; a flag's name is its field's name."""

from __future__ import annotations

import dataclasses
from typing import Any

from flowers17_tfdata.config.after_training import (
    CompareConfig,
    EvaluationConfig,
    ExportConfig,
    FindLrConfig,
    FoldersConfig,
    PredictConfig,
)
from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.config.optimization import OptimizationConfig
from flowers17_tfdata.config.option import Flag, Kind, flags_of
from flowers17_tfdata.config.runtime import RuntimeConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """The phase, its workdir, and all options in groups."""

    phase: str = Kind.FREE.option("train", "What to do.", common=True)
    workdir: str = Kind.FREE.option(
        "workdir",
        "Folder of this run: metrics, checkpoints, models.",
        common=True,
    )
    data: DataConfig = DataConfig()
    input: InputConfig = InputConfig()
    model: ModelConfig = ModelConfig()
    optimization: OptimizationConfig = OptimizationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    predict: PredictConfig = PredictConfig()
    export: ExportConfig = ExportConfig()
    folders: FoldersConfig = FoldersConfig()
    compare: CompareConfig = CompareConfig()
    find_lr: FindLrConfig = FindLrConfig()
    runtime: RuntimeConfig = RuntimeConfig()


# The option class of each group; `run` holds the options of `Config` itself.
GROUPS: dict[str, Any] = {"run": Config} | {
    field.name: type(field.default)
    for field in dataclasses.fields(Config)
    if dataclasses.is_dataclass(field.default)
}


def all_flags() -> list[Flag]:
    """Returns all flags, group by group."""
    return [flag for group in GROUPS.values() for flag in flags_of(group)]


def from_values(values: dict[str, Any]) -> Config:
    """Builds a `Config` from `{flag name: value}`, without checks."""

    def pick(config_class: Any) -> dict[str, Any]:
        return {f.name: values[f.name] for f in flags_of(config_class)}

    nested = {
        name: config_class(**pick(config_class))
        for name, config_class in GROUPS.items()
        if config_class is not Config
    }
    return Config(**pick(Config), **nested)


def to_values(config: Config) -> dict[str, Any]:
    """Returns `{flag name: value}` of all flags: undoes `from_values`."""
    return {
        flag.name: getattr(
            config if name == "run" else getattr(config, name), flag.name
        )
        for name, config_class in GROUPS.items()
        for flag in flags_of(config_class)
    }
