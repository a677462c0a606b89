"""The configuration: frozen dataclasses whose fields are the flags.

A field is declared once, here: its name is the flag's name, its metadata hold
the help text and the rule that `validate` checks. `flags.py` makes the absl
flags from it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

from flowers17_tfdata.errors import ConfigError, did_you_mean, one_line

PHASES = (
    "prepare",
    "transfer",
    "finetune",
    "refit",
    "train",
    "evaluate",
    "predict",
    "export",
    "report",
    "folders",
    "compare",
    "find_lr",
    "benchmark",
)
# They look at what a workdir holds, and take from its config.json what the
# command line leaves open.
PHASES_ON_A_RUN = (
    *("evaluate", "predict", "export", "report", "folders"),
    "find_lr",
)
_OF_A_RUN = {
    *("dataset", "data_dir", "split_fractions", "split_seed"),
    *("near_duplicates", "folds", "fold"),
    *("image_size", "augmentation", "rotation", "shift", "zoom", "crop"),
    *("horizontal_flip", "backbone"),
    *("precision", "global_batch_size", "tta"),
}
# `find_lr` trains as the run's stage does: by all of its options, but those
# that were of the machine, of the moment, or for the eye.
_GROUPS_OF_A_STAGE = ("data", "input", "model", "optimization")
_NOT_OF_A_STAGE = {
    *("archive", "cache", "augment_on", "data_service"),
    *("model_summary", "plot_model"),
}
STAGES = ("transfer", "finetune", "refit")
EXPORT_FORMATS = (
    "saved_model",
    "keras",
    "tflite_float16",
    "tflite_int8",
    "onnx",
)
OPTIMIZERS = ("sgd", "adam", "adamw")
# Not a step at a time: the head's optimum, found on cached features.
SOLVER = "lbfgs"


def option(
    default: Any,
    help_text: str,
    *,
    choices: tuple[str, ...] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
) -> Any:
    """Declares one flag: its default, its help and the rule for its value."""
    rule = {
        "help": help_text,
        "choices": choices,
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
    }
    return dataclasses.field(default=default, metadata=rule)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and where they come from."""

    dataset: str = option(
        "oxford_flowers17",
        "folder:PATH for images of your own (PATH/CLASS/*.jpg, or "
        "PATH/{train,validation,test}/CLASS/*.jpg), or a TFDS data set, NAME "
        "or NAME/CONFIG. Of oxford_flowers17: seeded (default), official_1, "
        "official_2, official_3, synthetic.",
    )
    archive: str = option(
        "",
        "17flowers.tgz or its extracted folder, instead of the download.",
    )
    data_dir: str = option(
        "", "Where TFDS keeps prepared data sets ('': ~/tensorflow_datasets)."
    )
    split_fractions: str = option(
        "0.7,0.15,0.15",
        "TRAIN,VALIDATION,TEST: how a data set without these splits is "
        "divided, classes in proportion, near-duplicates together.",
    )
    split_seed: int = option(
        0,
        "Seed of that division. Of oxford_flowers17/seeded and synthetic: 0 "
        "is the data set's own split, any other divides all images anew.",
        at_least=0,
        at_most=2**31 - 1,
    )
    near_duplicates: str = option(
        "together",
        "together: nearly identical images share a split; anywhere: they are "
        "divided like any others, as most tutorials do: the test then "
        "measures memory, too.",
        choices=("together", "anywhere"),
    )
    folds: int = option(
        0,
        "Cross-validation: divide all images into K folds (3 to 20) and train "
        "K times; each fold is test once, the next one validation, the rest "
        "train. 0: do not.",
        at_least=0,
        at_most=20,
    )
    fold: int = option(
        -1,
        "Of --folds=K, the run with this fold as test, 0 to K-1; -1: all of "
        "them, each in WORKDIR/fold_N, and their pooled result.",
        at_least=-1,
    )


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """How an image becomes a training example."""

    image_size: int = option(
        299, "Height and width of the network's input, pixels.", at_least=32
    )
    train_scale: float = option(
        1.0,
        "Size of the images that fine-tuning trains on, as a fraction of "
        "--image_size. Smaller ones train faster, and make up for crops, "
        "which magnify.",
        at_least=0.25,
        at_most=1,
    )
    cache: str = option(
        "auto",
        "memory: decode once, keep resized uint8 images (3 * image_size^2 "
        "bytes each); none: decode in every epoch; auto: memory where they "
        "take less than half of what is free.",
        choices=("auto", "memory", "none"),
    )
    feature_views: int = option(
        2,
        "Transfer stage: run the frozen backbone once over K views of each "
        "train image (the image, its mirror image, random ones), then fit the "
        "head to these features; 0: augment anew, and run it, in every epoch.",
        at_least=0,
        at_most=1000,
    )
    augment_on: str = option(
        "auto",
        "host: OpenCV inside tf.data; device: Keras ops in the training step, "
        "uint8 over the bus; auto: device where there is a GPU.",
        choices=("auto", "host", "device"),
    )
    data_service: str = option(
        "",
        "grpc://HOST:PORT of a tf.data service (flowers17-data-server) that "
        "decodes and augments training images; evaluation stays here.",
    )
    augmentation: str = option(
        "affine",
        "affine: a random affine transform of each training image; none.",
        choices=("affine", "none"),
    )
    rotation: float = option(
        30.0, "Rotation range, +-degrees.", at_least=0, at_most=180
    )
    shift: float = option(
        0.1,
        "Width and height shift range, +-fraction of the size.",
        at_least=0,
        at_most=1,
    )
    zoom: float = option(
        0.2, "Zoom range: scale in [1-zoom, 1+zoom].", at_least=0, at_most=0.9
    )
    crop: float = option(
        1.0,
        "Random resized crop: each training image shows a part of its image, "
        "of an area in [crop, 1] of it and an aspect ratio in [3/4, 4/3]; 1: "
        "all of it.",
        at_least=0.05,
        at_most=1,
    )
    horizontal_flip: bool = option(True, "Flip half of the images.")

    @property
    def train_image_size(self) -> int:
        """Height and width of augmented training images, pixels."""
        return round(self.train_scale * self.image_size)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    backbone: str = option(
        "inception_v3",
        "Any keras.applications classifier, e.g. inception_v3, xception, "
        "resnet50v2, mobilenet_v2, efficientnetv2-b0, vgg16.",
    )
    weights: str = option(
        "imagenet",
        "Backbone weights: imagenet (downloaded), none (random), or the path "
        "of a .weights.h5 / .h5 file without the top.",
    )
    head_units: int = option(
        0,
        "Units of the head's hidden layer, which --transfer_optimizer=sgd, "
        "adam or adamw trains; 0: none.",
        at_least=0,
    )
    dropout: float = option(
        0.0,
        "Dropout rate before the last layer, wherever it is trained.",
        at_least=0,
        at_most=0.95,
    )
    unfreeze_from: str = option(
        "auto",
        "First backbone layer or block that the fine-tune stage trains, e.g. "
        "mixed2, block5; all; auto: the first feature map of an eighth of the "
        "image's size (all for --weights=none).",
    )
    init_from: str = option(
        "",
        "Saved .keras classifier that finetune starts from ('': the "
        "workdir's model_transfer.keras).",
    )
    model_summary: bool = option(
        False, "Print each stage's layers, shapes and trainable weights."
    )
    plot_model: bool = option(
        False,
        "Draw each stage's network to plot_STAGE.png in the workdir (needs "
        "pydot and Graphviz).",
    )

    @property
    def trains_batch_norm(self) -> bool:
        """Whether fine-tuning does: until then it can't be folded."""
        return self.weights == "none"


@dataclasses.dataclass(frozen=True)
class OptimizationConfig:
    """Epochs and optimizers of the two stages."""

    global_batch_size: int = option(
        32, "Images a step, over all replicas.", at_least=1
    )
    transfer_optimizer: str = option(
        SOLVER,
        "Transfer stage: lbfgs: find the linear head's optimum on cached "
        "features, its weight decay by cross-validation within train; sgd, "
        "adam, adamw: train the head for --transfer_epochs.",
        choices=(SOLVER, *OPTIMIZERS),
    )
    transfer_epochs: int = option(
        30,
        "Epochs with the backbone frozen; --transfer_optimizer=lbfgs needs "
        "none.",
        at_least=1,
    )
    transfer_learning_rate: float = option(
        1e-3, "Peak learning rate of the transfer stage.", above=0
    )
    finetune_epochs: int = option(
        8,
        "Epochs with the backbone partly unfrozen; 0: no fine-tuning, the head "
        "alone.",
        at_least=0,
    )
    refit: bool = option(
        False,
        "In the end train the better of the two stages once more, on train and "
        "validation together. Nothing is left to validate that on: test alone "
        "tells what it is worth.",
    )
    finetune_optimizer: str = option(
        "adamw", "Optimizer of the fine-tune stage.", choices=OPTIMIZERS
    )
    finetune_learning_rate: float = option(
        3e-4, "Peak learning rate of the fine-tune stage.", above=0
    )
    finetune_lowest_rate: float = option(
        1.0,
        "Discriminative learning rates: that of the lowest trained layer, as "
        "a fraction of the head's; it rises geometrically in between. 1: all "
        "alike.",
        above=0,
        at_most=1,
    )
    schedule: str = option(
        "cosine",
        "cosine: one epoch of linear warm-up, then a cosine to 0; constant.",
        choices=("cosine", "constant"),
    )
    weight_decay: float = option(
        1e-4,
        "Decoupled weight decay of adamw (times the learning rate); not on "
        "biases or batch-norm.",
        at_least=0,
    )
    class_weights: str = option(
        "none",
        "balanced: an example's loss counts in inverse proportion to its "
        "class's number of train images.",
        choices=("none", "balanced"),
    )
    label_smoothing: float = option(
        0.0, "Label smoothing of the training loss.", at_least=0, at_most=0.9
    )


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
    """Where and in what arithmetic it runs."""

    console: str = option(
        "normal",
        "quiet: errors alone; normal: results, progress bars on a terminal; "
        "verbose: TensorFlow's and our own notes too; json: an object a line, "
        "for machines.",
        choices=("quiet", "normal", "verbose", "json"),
    )
    strategy: str = option(
        "auto",
        "auto: multi_worker where TF_CONFIG or SLURM names several workers, "
        "else mirrored where there are several devices; default: one device; "
        "mirrored: all of this machine's; multi_worker: all workers'.",
        choices=("auto", "default", "mirrored", "multi_worker"),
    )
    num_virtual_devices: int = option(
        0,
        "Split the CPU (or the one GPU) into N logical devices, to try "
        "replicas on one machine; 0: do not.",
        at_least=0,
        at_most=64,
    )
    launch_local: int = option(
        0,
        "Start N workers of a cluster on this machine, to try one; 0: do not.",
        at_least=0,
        at_most=64,
    )
    precision: str = option(
        "auto",
        "auto: mixed_bfloat16 where the hardware has it, mixed_float16 on "
        "older GPUs with tensor cores, else float32.",
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    )
    xla: str = option(
        "auto",
        "Compile each replica's forward and backward pass with XLA; auto: on "
        "GPUs (on CPUs it was slower).",
        choices=("auto", "on", "off"),
    )
    profile_steps: str = option(
        "",
        "FIRST,LAST: write a TensorBoard profile of these training steps of "
        "each stage (counted from 1) to the workdir.",
    )
    checkpoint_every_secs: float = option(
        0.0,
        "Save a checkpoint this often within epochs too, seconds; 0: after "
        "each epoch, and at SIGTERM or SIGUSR1.",
        at_least=0,
    )
    grace_secs: float = option(
        120.0,
        "After SIGTERM or SIGUSR1: save, and exit with 42, within this time, "
        "seconds; else exit with 1.",
        above=0,
    )
    deterministic: bool = option(
        False,
        "Bit-equal results of the same command on the same hardware: "
        "deterministic kernels, slower on GPUs.",
    )
    stall_timeout_secs: float = option(
        600.0,
        "With several workers: exit with 1 when they are not all there, or no "
        "step ends, within this time, seconds.",
        above=0,
    )
    seed: int = option(
        0,
        "Seed of initialization, order, augmentation and dropout, and of "
        "what --phase=compare draws.",
        at_least=0,
        at_most=2**31 - 1,
    )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The trained model, and what `--phase=evaluate` looks at."""

    model: str = option(
        "",
        "Saved .keras classifier ('': the workdir's model_refit.keras, else "
        "the better one by validation of model_finetune.keras and "
        "model_transfer.keras).",
    )
    split: str = option(
        "test", "Split to evaluate, to report on, or to compare on."
    )
    tta: int = option(
        1,
        "Test-time augmentation of evaluate and predict: mean probability over "
        "K views of an image, the image itself, its mirror image, and randomly "
        "augmented ones; the network runs K times.",
        at_least=1,
        at_most=1000,
    )
    assert_accuracy_at_least: float = option(
        0.0,
        "Exit with 3 if the accuracy is lower.",
        at_least=0,
        at_most=1,
    )


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """What `--phase=predict` reads and writes."""

    images: str = option(
        "",
        "Images, comma-separated: files, folders (searched through), globs "
        "('photos/**/*.jpg'), or - for a list on standard input, a path a "
        "line.",
    )
    format: str = option(
        "table",
        "table: for people; json: an object a line; csv: a row an image.",
        choices=("table", "json", "csv"),
    )
    output: str = option(
        "", "File to write the predictions to ('': standard output)."
    )
    top_k: int = option(
        3, "Classes told of each image, the likeliest first.", at_least=1
    )
    labels: str = option(
        "",
        "File of class names, one a line, for a model that holds none.",
    )


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What `--phase=export` writes."""

    export_dir: str = option(
        "", "Folder to export to ('': export in the workdir)."
    )
    export_formats: str = option(
        "saved_model,keras,tflite_float16,tflite_int8",
        "What to export, comma-separated: saved_model, keras, tflite_float16, "
        "tflite_int8, onnx (needs pip install 'flowers17_tfdata[onnx]').",
    )


@dataclasses.dataclass(frozen=True)
class FoldersConfig:
    """What `--phase=folders` writes."""

    folders_dir: str = option(
        "",
        "Folder for the splits as class folders ('': folders in the workdir).",
    )


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """The runs that `--phase=compare` sets side by side."""

    compare: str = option(
        "",
        "Workdirs of evaluated runs, comma-separated: folders, globs "
        "('runs/ours_*').",
    )
    baseline: str = option(
        "",
        "As many workdirs to compare them with, the first with the first, and "
        "so on (what a glob matches is sorted).",
    )


@dataclasses.dataclass(frozen=True)
class FindLrConfig:
    """What `--phase=find_lr` tries."""

    find_lr_stage: str = option(
        "finetune",
        "Stage to find a learning rate for.",
        choices=("transfer", "finetune"),
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """The phase, its workdir, and a group of options per module."""

    phase: str = option("train", "What to do.", choices=PHASES)
    workdir: str = option(
        "workdir", "Folder of this run: metrics, checkpoints, models."
    )
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    input: InputConfig = dataclasses.field(default_factory=InputConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimization: OptimizationConfig = dataclasses.field(
        default_factory=OptimizationConfig
    )
    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig)
    evaluation: EvaluationConfig = dataclasses.field(
        default_factory=EvaluationConfig
    )
    predict: PredictConfig = dataclasses.field(default_factory=PredictConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
    folders: FoldersConfig = dataclasses.field(default_factory=FoldersConfig)
    compare: CompareConfig = dataclasses.field(default_factory=CompareConfig)
    find_lr: FindLrConfig = dataclasses.field(default_factory=FindLrConfig)

    def __post_init__(self) -> None:
        validate(self)


def groups(config_class: type | Config = Config):
    """Yields `(name, class)` of the nested option groups."""
    for field in dataclasses.fields(config_class):
        if field.default_factory is not dataclasses.MISSING:
            yield field.name, field.default_factory


def options(config_class: type) -> list[dataclasses.Field]:
    """Returns the fields of `config_class` that are flags."""
    return [f for f in dataclasses.fields(config_class) if "help" in f.metadata]


def from_values(values: dict[str, Any]) -> Config:
    """Builds a `Config` from `{flag name: value}`.

    Raises:
      ConfigError: a value breaks its rule, or two flags contradict.
    """

    def pick(cls: type) -> dict[str, Any]:
        return {f.name: values[f.name] for f in options(cls)}

    nested = {name: cls(**pick(cls)) for name, cls in groups()}
    return Config(**pick(Config), **nested)


def to_values(config: Config) -> dict[str, Any]:
    """Returns `{flag name: value}`, flat: the inverse of `from_values`."""
    values = {f.name: getattr(config, f.name) for f in options(Config)}
    for name, cls in groups():
        group = getattr(config, name)
        values |= {f.name: getattr(group, f.name) for f in options(cls)}
    return values


def recorded_values(workdir: str, phase: str) -> dict[str, Any]:
    """Returns `{flag name: value}` of the run that a workdir holds.

    Of the options that make the data, its split, the input and the network
    what they are, for `find_lr` the training too; none where nothing was
    trained. Not `archive`: the data set was prepared from it. Not what was
    settled for the machine.

    Raises:
      ConfigError: its config.json is damaged.
    """
    path = pathlib.Path(workdir).expanduser() / "config.json"
    if not path.exists():
        return {}
    try:
        flags = json.loads(path.read_text(encoding="utf-8"))["flags"]
        recorded = dict(flags)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--workdir: {path} can't be read ({one_line(error, 120)}): "
            "delete it, and pass the run's flags"
        ) from error
    kept = {}
    for field in _options_of_a_run(phase):
        value = recorded.get(field.name, field.default)
        if type(value) is not type(field.default):
            raise ConfigError(
                f"--workdir: {path} holds {value!r} for {field.name}: delete "
                "it, and pass the run's flags"
            )
        if field.name in recorded:
            kept[field.name] = value
    return kept


def _options_of_a_run(phase: str) -> list[dataclasses.Field]:
    names = set(_OF_A_RUN)
    if phase == "find_lr":
        classes = dict(groups())
        for group in _GROUPS_OF_A_STAGE:
            names |= {field.name for field in options(classes[group])}
        names = names - _NOT_OF_A_STAGE | {"seed"}
    return [
        field
        for _, config_class in groups()
        for field in options(config_class)
        if field.name in names
    ]


def _check_option(field: dataclasses.Field, value: Any) -> None:
    rule = field.metadata
    if rule["choices"] and value not in rule["choices"]:
        raise ConfigError(
            f"--{field.name} must be one of {', '.join(rule['choices'])}; "
            f"got {value!r}{did_you_mean(value, rule['choices'])}"
        )
    # Negated, so that NaN fails every bound.
    if rule["at_least"] is not None and not value >= rule["at_least"]:
        raise ConfigError(
            f"--{field.name} must be at least {rule['at_least']}; got {value}"
        )
    if rule["at_most"] is not None and not value <= rule["at_most"]:
        raise ConfigError(
            f"--{field.name} must be at most {rule['at_most']}; got {value}"
        )
    if rule["above"] is not None and not (rule["above"] < value < 1e6):
        raise ConfigError(
            f"--{field.name} must be a number above {rule['above']}; "
            f"got {value}"
        )


def validate(config: Config) -> None:
    """Checks every option against its rule, then the rules between options.

    Raises:
      ConfigError: names the flag, the rule and the value.
    """
    for field in options(Config):
        _check_option(field, getattr(config, field.name))
    for name, cls in groups():
        for field in options(cls):
            _check_option(field, getattr(getattr(config, name), field.name))
    profile_range(config.runtime)
    split_fractions(config.data)
    export_formats(config.export)
    _check_folder(config)
    _check_folds(config)
    _check_augmentation(config.input)
    # Beyond the image and its mirror image, views are drawn at random.
    if config.evaluation.tta > 2 and config.input.augmentation == "none":
        raise ConfigError(
            "--tta above 2 goes with --augmentation=affine, whose ranges it "
            f"draws from; got {config.evaluation.tta} and none"
        )
    if not config.workdir:
        raise ConfigError("--workdir must name a folder; got ''")
    if not config.data.dataset:
        raise ConfigError("--dataset must name a TFDS data set; got ''")
    if config.data.archive and not is_flowers17(config.data.dataset):
        raise ConfigError(
            "--archive goes with --dataset=oxford_flowers17 (seeded or "
            f"official_*) alone; got --dataset={config.data.dataset}"
        )
    if config.phase == "train" and config.evaluation.model:
        raise ConfigError(
            "--model does not go with --phase=train, which evaluates the "
            f"model that it trains; got {config.evaluation.model!r}"
        )
    if config.phase == "train" and config.model.init_from:
        raise ConfigError(
            "--init_from goes with --phase=finetune alone: train starts from "
            f"its own transfer stage; got {config.model.init_from!r}"
        )
    _check_predict(config)
    _check_compare(config)
    _check_stages(config)
    _check_home(config)
    _check_data_service(config.input)
    _check_devices(config)


def _check_augmentation(config: InputConfig) -> None:
    if config.augmentation == "affine":
        return
    for name, augments, range_text in (
        ("feature_views", config.feature_views > 2, " above 2"),
        ("crop", config.crop < 1, " below 1"),
    ):
        if augments:
            raise ConfigError(
                f"--{name}{range_text} goes with --augmentation=affine; got "
                f"--augmentation={config.augmentation} and "
                f"{getattr(config, name):g}"
            )


def stages_of_training(config: Config) -> tuple[str, ...]:
    """Returns the stages that `--phase=train` runs, in their order."""
    options = config.optimization
    runs = {
        "transfer": True,
        "finetune": options.finetune_epochs > 0,
        "refit": options.refit,
    }
    return tuple(stage for stage in STAGES if runs[stage])


def runs_all_folds(config: Config) -> bool:
    """Whether the run is a cross-validation of all folds, not of one."""
    return config.data.folds > 0 and config.data.fold < 0


def _check_folds(config: Config) -> None:
    folds, fold = config.data.folds, config.data.fold
    if 0 < folds < 3:
        raise ConfigError(
            "--folds must be 0, or at least 3: one to test, one to validate, "
            f"the rest to train on; got {folds}"
        )
    if fold >= 0 and not folds:
        raise ConfigError(f"--fold goes with --folds=K; got --fold={fold}")
    if fold >= 0 and fold >= folds:
        raise ConfigError(f"--fold must be below --folds={folds}; got {fold}")
    if not runs_all_folds(config):
        return
    for flag, value, wanted in (
        ("phase", config.phase, "train"),
        ("split", config.evaluation.split, "test"),
        ("launch_local", config.runtime.launch_local, 0),
    ):
        if value != wanted:
            raise ConfigError(
                f"--folds without --fold=N goes with --{flag}={wanted} alone; "
                f"got {value!r}"
            )
    if config.runtime.strategy == "multi_worker":
        raise ConfigError(
            "--folds without --fold=N does not go with --strategy="
            "multi_worker: pass --fold=0, then 1, ..., each with a --workdir"
        )


def _check_predict(config: Config) -> None:
    if config.phase != "predict":
        return
    if not config.predict.images:
        raise ConfigError(
            "--images must name files, folders or globs for --phase=predict; "
            "got ''"
        )
    if config.runtime.launch_local:
        raise ConfigError(
            "--launch_local does not go with --phase=predict, which takes one "
            f"process; got {config.runtime.launch_local}"
        )


def _check_compare(config: Config) -> None:
    if config.phase != "compare":
        return
    for name in ("compare", "baseline"):
        value = getattr(config.compare, name)
        if not value.strip(", "):
            raise ConfigError(
                f"--{name} must name workdirs of evaluated runs for "
                f"--phase=compare; got {value!r}"
            )
    if config.runtime.launch_local:
        raise ConfigError(
            "--launch_local does not go with --phase=compare, which takes one "
            f"process; got {config.runtime.launch_local}"
        )


def _check_stages(config: Config) -> None:
    options = config.optimization
    if config.phase == "finetune" and not options.finetune_epochs:
        raise ConfigError(
            "--finetune_epochs must be at least 1 for --phase=finetune; got 0"
        )
    if options.transfer_optimizer != SOLVER:
        return
    names = ", ".join(OPTIMIZERS)
    if config.phase == "find_lr" and config.find_lr.find_lr_stage == "transfer":
        raise ConfigError(
            f"--find_lr_stage=transfer goes with --transfer_optimizer={names}; "
            f"got {SOLVER}, which needs no learning rate"
        )
    if config.model.head_units:
        raise ConfigError(
            f"--head_units must be 0 for --transfer_optimizer={SOLVER}, which "
            f"solves a linear head (a hidden layer is trained by {names}); got "
            f"{config.model.head_units}"
        )
    if not config.input.feature_views:
        raise ConfigError(
            f"--feature_views must be at least 1 for --transfer_optimizer="
            f"{SOLVER} (training by {names} can augment anew in every epoch); "
            "got 0"
        )


def _check_home(config: Config) -> None:
    """Checks that every ~NAME in a path is somebody's."""
    for name, value in to_values(config).items():
        path = str(value).removeprefix("folder:")
        if not path.startswith("~"):
            continue
        if os.path.expanduser(path) == path:
            raise ConfigError(
                f"--{name}: there is no home folder of "
                f"{path.partition(os.sep)[0]}; got {value!r}"
            )


def _check_folder(config: Config) -> None:
    if not config.data.dataset.startswith("folder:"):
        return
    folder = config.data.dataset.removeprefix("folder:")
    if not folder:
        raise ConfigError(
            "--dataset=folder:PATH must name a folder; got "
            f"{config.data.dataset!r}"
        )
    # What a run writes there would be a class to the next one.
    for name, path in (
        ("workdir", config.workdir),
        ("data_dir", config.data.data_dir),
        ("folders_dir", config.folders.folders_dir),
        ("export_dir", config.export.export_dir),
    ):
        if path and _lies_in(path, folder):
            raise ConfigError(
                f"--{name} must lie outside of the images' folder {folder}; "
                f"got {path}"
            )


def _lies_in(path: str, folder: str) -> bool:
    path, folder = (
        os.path.realpath(os.path.expanduser(p)) for p in (path, folder)
    )
    return os.path.join(path, "").startswith(os.path.join(folder, ""))


def _check_data_service(config: InputConfig) -> None:
    address = config.data_service
    if not address:
        return
    host, _, port = address.removeprefix("grpc://").rpartition(":")
    if not (
        address.startswith("grpc://")
        and host
        and port.isascii()
        and port.isdigit()
        and 0 < int(port[:6]) < 65536
    ):
        raise ConfigError(
            f"--data_service must be grpc://HOST:PORT; got {address!r}"
        )


def _check_devices(config: Config) -> None:
    size = config.optimization.global_batch_size
    runtime = config.runtime
    if runtime.launch_local and runtime.strategy not in (
        "auto",
        "multi_worker",
    ):
        raise ConfigError(
            "--launch_local goes with --strategy=auto or multi_worker; got "
            f"--strategy={runtime.strategy}"
        )
    devices = runtime.num_virtual_devices
    if devices > 1 and runtime.strategy == "default":
        raise ConfigError(
            "--num_virtual_devices goes with --strategy=auto or mirrored; got "
            f"--strategy=default and {devices} devices"
        )
    if devices and size % devices:
        raise ConfigError(
            "--global_batch_size must be a multiple of the number of "
            f"replicas ({devices}); got {size}"
        )


def profile_range(config: RuntimeConfig) -> tuple[int, int] | None:
    """Returns the first and last step of `--profile_steps`, counted from 1.

    Raises:
      ConfigError: it is not two increasing numbers.
    """
    if not config.profile_steps:
        return None
    first, _, last = config.profile_steps.partition(",")
    # Plain ASCII digits: int() would take ' 1_0 ' and other scripts'.
    numbers = [int(n) for n in (first, last) if n.isascii() and n.isdigit()]
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise ConfigError(
            "--profile_steps must be FIRST,LAST with 1 <= FIRST <= LAST; got "
            f"{config.profile_steps!r}"
        )
    return numbers[0], numbers[1]


def split_fractions(config: DataConfig) -> tuple[float, float, float]:
    """Returns the fractions of train, validation and test, summing to 1.

    Raises:
      ConfigError: `--split_fractions` are not three positive numbers that sum
        to 1.
    """
    try:
        numbers = tuple(float(n) for n in config.split_fractions.split(","))
    except ValueError:
        numbers = ()
    if not (
        len(numbers) == 3
        # Negated, so that NaN fails.
        and all(0 < n < 1 for n in numbers)
        and abs(sum(numbers) - 1) < 1e-6
    ):
        raise ConfigError(
            "--split_fractions must be TRAIN,VALIDATION,TEST, each above 0, "
            f"summing to 1; got {config.split_fractions!r}"
        )
    return numbers


def export_formats(config: ExportConfig) -> tuple[str, ...]:
    """Returns the names in `--export_formats`, in the order given.

    Raises:
      ConfigError: none, an unknown one, or one twice.
    """
    names = [n.strip() for n in config.export_formats.split(",") if n.strip()]
    known = ", ".join(EXPORT_FORMATS)
    if not names:
        raise ConfigError(
            f"--export_formats must name at least one of {known}; got "
            f"{config.export_formats!r}"
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


def is_flowers17(dataset: str) -> bool:
    """Whether `dataset` is `oxford_flowers17` made from the Oxford archive."""
    name, _, config_name = dataset.partition("/")
    return name == "oxford_flowers17" and config_name != "synthetic"
