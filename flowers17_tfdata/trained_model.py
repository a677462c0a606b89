"""A trained model: found, loaded, checked, and run on examples."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata import files, terminal
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.errors import UserError, one_line
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.input.examples import Examples, load_examples
from flowers17_tfdata.models import (
    backbones,
    classifier,
    folding,
    saved_models,
    trust,
)
from flowers17_tfdata.models.trust import Trust
from flowers17_tfdata.scoring import predictions, scores, trust_scores
from flowers17_tfdata.scoring.predictions import Predictions
from flowers17_tfdata.session import Session
from flowers17_tfdata.training import inference


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A loaded classifier.

    Attributes:
      path: the `.keras` file.
      model: from preprocessed images to logits, batch-norm folded.
      extras: what was saved with it: `class_names`, `dataset`,
        `trained_splits`, `trained_on`. Empty if another program saved it.
      preprocess: from float32 images in [0, 255] to the model's inputs.
      options: the options of the input pipeline, at the model's image size.
      strategy: the strategy in whose scope the model was loaded.
      compute_dtype: the dtype of the model's inputs; None: that of the global
        policy.
      trust: what was fitted to it, if anything.
    """

    path: pathlib.Path
    model: keras.Model
    extras: Mapping[str, Any]
    preprocess: Callable[[tf.Tensor], tf.Tensor]
    options: InputConfig
    strategy: tf.distribute.Strategy
    compute_dtype: str | None = None
    trust: Trust | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The class names in the order of the logits, if they were saved."""
        names = self.extras.get("class_names")
        if names is None:
            return None
        # Earlier versions took the form in which macOS stores names.
        return tuple(unicodedata.normalize("NFC", str(n)) for n in names)

    @property
    def trained_splits(self) -> tuple[str, ...]:
        """The splits of its data set that the model was trained on."""
        return tuple(self.extras.get("trained_splits", ("train",)))

    def was_trained_in(self, workdir: pathlib.Path) -> bool:
        """Whether the workdir records the training of this model."""
        return self.path.resolve().parent == workdir.resolve()

    def suffix_in(self, workdir: pathlib.Path) -> str:
        """Returns what the names of this model's results end with.

        '', except for another model than the one that the workdir's run kept,
        whose results must stay.
        """
        kept = saved_models.kept_stage(workdir)
        if kept is None:
            return ""
        path, own = (
            p.resolve()
            for p in (self.path, saved_models.model_path(workdir, kept))
        )
        if path == own:
            return ""
        if path.parent == own.parent:
            return f"_{path.stem}"
        return f"_{path.parent.name}_{path.stem}"

    @property
    def image_size(self) -> int:
        """Height and width of the model's input, pixels."""
        return self.model.input_shape[1]

    @property
    def num_features(self) -> int:
        """The number of channels of `features`."""
        return self.model.get_layer("pooler").output.shape[-1]

    @functools.cached_property
    def _inference(self) -> inference.ImageInference:
        model = self.model
        if self.trust is not None:
            with self.strategy.scope():
                model = classifier.with_features(model)
        return self._make_inference(model)

    @functools.cached_property
    def _feature_inference(self) -> inference.ImageInference:
        with self.strategy.scope():
            extractor = classifier.get_feature_extractor(self.model)
        return self._make_inference(extractor)

    def _make_inference(self, model: keras.Model) -> inference.ImageInference:
        return inference.ImageInference(
            model,
            self.strategy,
            self.options,
            self.preprocess,
            self.compute_dtype,
        )

    def answers(
        self, examples: Examples, batch_size: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Runs the model on examples, on all replicas.

        Args:
          examples: the examples, at the model's image size.
          batch_size: the most images per step over all replicas.

        Yields:
          What `trust.answer` returns, and `logits`, float32 `[n,
          num_classes]`, in order.
        """
        if not examples.num_examples:
            return
        num_classes = self.model.output_shape[-1]
        size = self._fitting(batch_size, examples.num_examples)
        for outputs in self._inference.outputs(examples, size):
            logits, features = np.split(outputs, [num_classes], axis=1)
            answer = trust.answer(logits, features, self.trust)
            arrays = {name: x.numpy() for name, x in answer.items()}
            yield {"logits": logits, **arrays}

    def answers_in(self, predicted: Predictions) -> dict[str, np.ndarray]:
        """Returns the answers that predictions of this model contain.

        They are those of `trust.answer`.
        """
        probabilities = predicted.probabilities
        found = {"probabilities": probabilities}
        if self.trust is None or predicted.unknown_scores is None:
            return found
        scores = predicted.unknown_scores
        return found | {
            "unknown_score": scores,
            "unknown": scores > self.trust.unknown_above,
            "classes_at_95": self.trust.sets.members(probabilities),
        }

    def features(
        self, examples: Examples, batch_size: int
    ) -> Iterator[np.ndarray]:
        """Runs the backbone on examples, on all replicas.

        Args:
          examples: the examples, at the model's image size.
          batch_size: the most images per step over all replicas.

        Yields:
          The pooled features, the head's input, float32 `[n, channels]`, in
          order.
        """
        if examples.num_examples:
            size = self._fitting(batch_size, examples.num_examples)
            yield from self._feature_inference.outputs(examples, size)

    def _fitting(self, batch_size: int, num_rows: int) -> int:
        """Returns a batch size that pads a few images by less than a batch."""
        replicas = self.strategy.num_replicas_in_sync
        return min(batch_size, -(-num_rows // replicas) * replicas)


def load_model(
    config: Config, strategy: tf.distribute.Strategy
) -> TrainedModel:
    """Loads `--model`, or the model that the workdir's run kept.

    Raises:
      UserError: there is no model, or the file isn't one of ours.
    """
    path, flag = find_model(config)
    with strategy.scope():
        model = saved_models.load_classifier(path, flag)
        model = folding.fold_batch_norm(model)
    return TrainedModel(
        path,
        model,
        saved_models.read_extras(path),
        backbones.get_preprocess(classifier.get_backbone(model).name),
        dataclasses.replace(
            config.input, image_size=model.input_shape[1], train_scale=1.0
        ),
        strategy,
        keras.config.dtype_policy().compute_dtype,
        saved_models.read_trust(path),
    )


def find_model(config: Config) -> tuple[pathlib.Path, str]:
    """Returns the file of the model to use, and the flag that names it.

    Raises:
      UserError: the workdir holds no model.
    """
    if config.evaluation.model:
        return pathlib.Path(config.evaluation.model).expanduser(), "--model"
    workdir = pathlib.Path(config.workdir).expanduser()
    kept = saved_models.kept_stage(workdir)
    if kept is not None:
        return saved_models.model_path(workdir, kept), "--workdir"
    hint = "train one first, or pass --model"
    if not workdir.is_dir():
        raise UserError(f"--workdir {workdir} does not exist: {hint}")
    if (workdir / "fold_0").is_dir():
        hint = f"pass a fold's, such as --workdir={workdir / 'fold_0'}"
    raise UserError(
        f"--workdir {workdir} holds no model_finetune.keras or "
        f"model_transfer.keras: {hint}"
    )


def load_model_for(session: Session) -> TrainedModel:
    """Loads the model, and checks that it fits the session's data set.

    Raises:
      UserError: there is no model, or it has another image size or other
        classes, or it was trained on the images of `--split`.
    """
    trained = load_model(session.config, session.strategy)
    source = session.source
    _check_not_trained_on(session, trained)
    classifier.check_classifier(
        trained.model,
        trained.path,
        session.config.input.image_size,
        len(source.class_names),
    )
    names = trained.class_names
    if names is not None and names != source.class_names:
        first = next(
            f"class {k} is {ours} in the model and {theirs} in the data set"
            for k, (ours, theirs) in enumerate(
                zip(names, source.class_names, strict=True)
            )
            if ours != theirs
        )
        raise UserError(
            f"{trained.path} was trained on other classes than {source.name}: "
            f"{first}{_dropped_numbers(names, source.class_names)}"
        )
    return trained


def _dropped_numbers(names: Sequence[str], folders: Sequence[str]) -> str:
    """Explains classes that earlier versions named otherwise; '' if none."""
    pairs = zip(names, folders, strict=True)
    if all(re.fullmatch(rf"\d+_{re.escape(n)}", now) for n, now in pairs):
        return (
            " (an earlier version left such numbers out of the names): train "
            "again in another --workdir"
        )
    return ""


def _check_not_trained_on(session: Session, trained: TrainedModel) -> None:
    """Refuses images that the model was trained on.

    You may evaluate on the `train` split of the model's own data set by naming
    it. Any other overlap is refused: if the data set was changed, renamed or
    copied since training, its splits differ, and images that the model has seen
    may now be in test.
    """
    before, source = trained.extras.get("dataset", ""), session.source
    split = session.config.evaluation.split
    if before == source.name:
        if split != "train" and split in trained.trained_splits:
            folder = trained.path.parent
            stage = saved_models.kept_stage(folder, before_refit=True)
            other = f", such as {folder}/model_{stage}.keras" if stage else ""
            raise UserError(
                f"--split={split}: {trained.path} was trained on it (--refit): "
                "an accuracy on it would measure memory; pass another "
                f"--model{other}"
            )
        return
    seen = set(trained.extras.get("trained_on", ()))
    if split not in source.split_sizes or seen.isdisjoint(
        source.fingerprints(split)
    ):
        return
    # If it is the same folder, this error says what has changed.
    session.check_unchanged(before)
    again = sum(f in seen for f in source.fingerprints(split))
    raise UserError(
        f"--dataset {source.name}: {again} of the "
        f"{source.split_sizes[split]} images in split {split} (by name) "
        f"were trained on by {trained.path}: an accuracy on them would "
        "measure memory"
    )


def read_class_names(config: Config, trained: TrainedModel) -> tuple[str, ...]:
    """Returns the class names of a model, from `--labels` or from its file.

    Raises:
      UserError: there are no names, or not as many as the model has outputs.
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
) -> Predictions:
    """Runs a model on the examples of a split.

    Args:
      session: the open run.
      trained: the model.
      examples: the examples, at the model's image size.
      title: the title of the progress bar.
    """
    size = session.config.optimization.global_batch_size
    unknown_scores: list[np.ndarray] = []

    def logits() -> Iterator[np.ndarray]:
        for answer in trained.answers(examples, size):
            if "unknown_score" in answer:
                unknown_scores.append(answer["unknown_score"])
            yield answer["logits"]

    collected = inference.collect(
        logits(),
        title,
        input_pipeline.steps_per_epoch(examples.num_examples, size),
    )
    return Predictions(
        examples.ids,
        examples.labels,
        collected,
        str(trained.path),
        np.concatenate(unknown_scores) if unknown_scores else None,
    )


def predict_split(
    session: Session, trained: TrainedModel, split: str
) -> Predictions:
    """Reads a split of the session's data set and runs a model on it.

    Raises:
      UserError: there is no such split, or an image can't be decoded.
    """
    examples = load_examples(session.source, split, session.config.input)
    return predict_examples(session, trained, examples, f"{split} split")


def summarize(
    trained: TrainedModel,
    predicted: Predictions,
    split: str,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Returns the scores of a model's predictions.

    They are those of `scores.summarize`, and under `trust`, if the model has
    one, those of `trust_scores.summarize`.
    """
    evaluation = scores.summarize(predicted, split, class_names)
    if trained.trust is not None:
        evaluation["trust"] = trust_scores.summarize(
            predicted,
            trained.answers_in(predicted),
            trained.trust.temperature,
            trained.trust.sets.certain_from,
        )
    return evaluation


def evaluate_split(
    session: Session, trained: TrainedModel, split: str
) -> tuple[dict[str, Any], Predictions]:
    """Evaluates a model on a split of the session's data set.

    It writes `evaluation.json`, and the logits of every example to
    `predictions_SPLIT.npz`; for another model than the run's own, with
    `TrainedModel.suffix_in` in their names.

    Returns:
      The contents of the two files.

    Raises:
      UserError: there is no such split, or an image can't be decoded.
    """
    predicted = predict_split(session, trained, split)
    suffix = trained.suffix_in(session.workdir)
    predictions.save(
        predictions.predictions_path(session.output, split, suffix), predicted
    )
    evaluation = summarize(
        trained, predicted, split, session.source.class_names
    )
    evaluation |= {"model": predicted.model, "dataset": session.source.name}
    path = session.output / f"evaluation{suffix}.json"
    files.write_json(path, evaluation)
    if suffix:
        terminal.say(
            f"{trained.path} is not the run's own model: its results are in "
            f"{path}"
        )
    return evaluation, predicted
