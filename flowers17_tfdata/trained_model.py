"""A trained model as the phases after training look at it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata import files
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.errors import UserError, one_line
from flowers17_tfdata.input import augmentation, input_pipeline
from flowers17_tfdata.input.examples import Examples, load_examples
from flowers17_tfdata.models import backbones, classifier, folding, saved_models
from flowers17_tfdata.scoring import predictions as predictions_lib
from flowers17_tfdata.scoring import scores
from flowers17_tfdata.scoring.predictions import Predictions
from flowers17_tfdata.session import Session
from flowers17_tfdata.training import inference, loop


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A saved classifier, loaded.

    Attributes:
      path: of its `.keras` file.
      model: from preprocessed images to logits; batch-norm folded.
      extras: what was saved beside it: `class_names`, `dataset`,
        `trained_splits`, `trained_on`; none of it in a file of another program.
      preprocess: from float32 images in [0, 255] to what the model takes.
    """

    path: pathlib.Path
    model: keras.Model
    extras: Mapping[str, Any]
    preprocess: Callable[[tf.Tensor], tf.Tensor]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """In the order of the logits; None: the file holds none."""
        names = self.extras.get("class_names")
        return None if names is None else tuple(map(str, names))

    @property
    def trained_splits(self) -> tuple[str, ...]:
        """Of its data set, those that it was trained on."""
        return tuple(self.extras.get("trained_splits", ("train",)))

    def was_trained_in(self, workdir: pathlib.Path) -> bool:
        """Whether the workdir's record is that of this model's training."""
        return self.path.resolve().parent == workdir.resolve()

    @property
    def image_size(self) -> int:
        """Height and width that the model takes, pixels."""
        return self.model.input_shape[1]


def load_model(config: Config) -> TrainedModel:
    """Loads `--model`, or the one that the workdir's run kept.

    To be called in the strategy's scope.

    Raises:
      UserError: there is none, or it is none of ours.
    """
    path, flag = _find_model(config)
    model = folding.fold_batch_norm(saved_models.load_classifier(path, flag))
    return TrainedModel(
        path,
        model,
        saved_models.read_extras(path),
        backbones.get_preprocess(classifier.get_backbone(model).name),
    )


def _find_model(config: Config) -> tuple[pathlib.Path, str]:
    if config.evaluation.model:
        return pathlib.Path(config.evaluation.model).expanduser(), "--model"
    workdir = pathlib.Path(config.workdir).expanduser()
    kept = saved_models.kept_stage(workdir)
    if kept is not None:
        return saved_models.model_path(workdir, kept), "--workdir"
    hint = "train one first, or pass --model"
    if (workdir / "fold_0").is_dir():
        hint = f"its folds do: pass --workdir={workdir / 'fold_0'}"
    raise UserError(
        f"--workdir {workdir} holds no model_finetune.keras or "
        f"model_transfer.keras: {hint}"
    )


def load_model_for(session: Session) -> TrainedModel:
    """Loads the model, and checks that it fits the session's data set.

    Raises:
      UserError: there is none; it takes images of another size, or tells other
        classes apart.
    """
    with session.strategy.scope():
        trained = load_model(session.config)
    source = session.source
    _check_not_trained_on(session, trained)
    classifier.check_classifier(
        trained.model,
        trained.path,
        session.config.input.image_size,
        len(source.class_names),
    )
    if trained.class_names not in (None, source.class_names):
        first = next(
            f"class {k} is {ours}, the data set's {theirs}"
            for k, (ours, theirs) in enumerate(
                zip(trained.class_names, source.class_names, strict=True)
            )
            if ours != theirs
        )
        raise UserError(
            f"{trained.path} was trained on other classes than {source.name}: "
            f"its {first}"
        )
    return trained


def _check_not_trained_on(session: Session, trained: TrainedModel) -> None:
    """Refuses images that the model was trained on, wherever they lie now.

    Of the data set that it was trained on, those of train may be asked for by
    name. One that changed, was renamed or copied since has other splits.
    """
    before, source = trained.extras.get("dataset", ""), session.source
    split = session.config.evaluation.split
    if before == source.name:
        if split != "train" and split in trained.trained_splits:
            raise UserError(
                f"--split={split}: {trained.path} was trained on it, too "
                "(--refit): an accuracy on it would measure memory; "
                "pass another --model, such as model_finetune.keras"
            )
        return
    seen = set(trained.extras.get("trained_on", ()))
    if split not in source.split_sizes or seen.isdisjoint(
        source.fingerprints(split)
    ):
        return
    # If it is the same folder, this tells what has changed.
    session.check_unchanged(before)
    again = sum(f in seen for f in source.fingerprints(split))
    raise UserError(
        f"--dataset {source.name}: {again} of the "
        f"{source.split_sizes[split]} images in split {split} (by name) "
        f"were trained on by {trained.path}: an accuracy on them would "
        "measure memory"
    )


def read_class_names(config: Config, trained: TrainedModel) -> tuple[str, ...]:
    """Returns the names of a model's classes, from `--labels` or its file.

    Raises:
      UserError: neither has them, or not as many as the model has outputs.
    """
    names, origin = trained.class_names, str(trained.path)
    if config.predict.labels:
        origin = f"--labels {config.predict.labels}"
        names = _read_labels(config.predict.labels)
    if names is None:
        raise UserError(
            f"{trained.path} holds no class names (another program saved it): "
            "pass --labels=FILE, one name a line"
        )
    num_classes = trained.model.output_shape[-1]
    if len(names) != num_classes:
        raise UserError(
            f"{origin} holds {len(names)} class names; the model "
            f"{trained.path} has {num_classes} classes"
        )
    return names


def _read_labels(name: str) -> tuple[str, ...]:
    path = pathlib.Path(name).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"--labels {path} can't be read: {one_line(error)}"
        ) from error
    return tuple(line.strip() for line in lines if line.strip())


def predict_examples(
    session: Session,
    trained: TrainedModel,
    examples: Examples,
    title: str,
    *,
    num_views: int = 1,
) -> Predictions:
    """Runs a model over a split, on all replicas.

    Args:
      session: of this process.
      trained: the model, built in the session's strategy.
      examples: the split, at the model's image size.
      title: of the progress bar.
      num_views: of each image, see `augmentation.draw_views`; of several, the
        logits are logarithms of the mean probabilities.
    """
    logits = _run_on_examples(session, trained, examples, title)
    if num_views > 1:
        views = augmentation.draw_views(session.config.input, num_views)
        more = _run_on_examples(
            session, trained, examples, f"{title}, other views", views
        )
        more = more.reshape(len(views), *logits.shape)
        views_logits = np.concatenate([logits[np.newaxis], more])
        mean = predictions_lib.softmax(views_logits).mean(axis=0)
        logits = np.log(np.maximum(mean, np.finfo(np.float32).tiny))
    return Predictions(
        examples.ids, examples.labels, logits, str(trained.path), num_views
    )


def _run_on_examples(
    session: Session,
    trained: TrainedModel,
    examples: Examples,
    title: str,
    views: np.ndarray | None = None,
) -> np.ndarray:
    """Returns logits `[n or views * n, num_classes]`, view by view."""
    # Views are of the size that the model takes.
    options = dataclasses.replace(session.config.input, train_scale=1.0)
    size = session.config.optimization.global_batch_size
    num_rows, transforms = examples.num_examples, None
    if views is not None:
        transforms = tf.repeat(views, num_rows, axis=0)
        num_rows *= len(views)
    batches = session.strategy.distribute_datasets_from_function(
        lambda context: input_pipeline.make_eval_dataset(
            examples,
            options,
            trained.preprocess,
            global_batch_size=size,
            compute_dtype=session.compute_dtype,
            transforms=transforms,
            input_context=context,
        )
    )
    return inference.run_model(
        trained.model,
        session.strategy,
        batches,
        input_pipeline.make_device_stage(
            options, trained.preprocess, session.compute_dtype
        ),
        title=title,
        num_steps=input_pipeline.steps_per_epoch(num_rows, size),
        xla=loop.uses_xla(session.config.runtime.xla),
    )


def predict_split(
    session: Session, trained: TrainedModel, split: str
) -> Predictions:
    """Reads a split of the session's data set and runs a model over it.

    Raises:
      UserError: there is no such split, or an image can't be decoded.
    """
    num_views = session.config.evaluation.tta
    examples = load_examples(session.source, split, session.config.input)
    return predict_examples(
        session, trained, examples, f"{split} split", num_views=num_views
    )


def evaluate_split(
    session: Session, trained: TrainedModel, split: str
) -> tuple[dict[str, Any], Predictions]:
    """Evaluates a model on a split of the session's data set.

    Writes `evaluation.json`, and what the model says of every example to
    `predictions_SPLIT.npz`.

    Returns:
      What the two files hold.

    Raises:
      UserError: there is no such split, or an image can't be decoded.
    """
    predictions = predict_split(session, trained, split)
    predictions_lib.save(
        predictions_lib.predictions_path(session.output, split), predictions
    )
    evaluation = scores.summarize(
        scores.tally(predictions), split, session.source.class_names
    )
    evaluation |= {
        "model": predictions.model,
        "dataset": session.source.name,
        "views": predictions.num_views,
    }
    files.write_json(session.output / "evaluation.json", evaluation)
    return evaluation, predictions
