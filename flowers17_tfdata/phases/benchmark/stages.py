"""Our own stages, each as a function that takes one measurement."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata import machine
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.config.optimization import SOLVER
from flowers17_tfdata.data import decode
from flowers17_tfdata.input import augmentation, feature_cache, input_pipeline
from flowers17_tfdata.input.examples import Examples
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.input.input_pipeline import Batch
from flowers17_tfdata.models import (
    backbones,
    classifier,
    depthwise,
    folding,
    freezing,
    training_size,
)
from flowers17_tfdata.phases.benchmark import timing
from flowers17_tfdata.session import Session
from flowers17_tfdata.training import linear_head, loop, optimizers
from flowers17_tfdata.training.trainer import Trainer

# Images that the stages of the pipeline are measured on one by one.
_SAMPLE = 64


def _consume(dataset: tf.data.Dataset) -> Callable[[], float]:
    """Measures a finite dataset of single elements."""
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.with_options(options)

    @tf.function
    def count():
        return dataset.reduce(np.int64(0), lambda n, *_: n + 1)

    return lambda: timing.rate(lambda: int(count()))


def make_read(session: Session) -> Callable[[], float]:
    """Records of the train split, still encoded."""
    return _consume(session.source.read("train"))


def encoded_sample(session: Session) -> list[bytes]:
    """Returns the first encoded images of the train split."""
    examples = session.source.read("train").take(_SAMPLE)
    return [e["image"] for e in examples.as_numpy_iterator()]


def make_decode(encoded: list[bytes]) -> Callable[[], float]:
    """Encoded to pixels, on all cores."""
    return _consume(
        tf.data.Dataset.from_tensor_slices(encoded).map(
            decode.decode_image, num_parallel_calls=machine.num_cores()
        )
    )


def make_resize(encoded: list[bytes], image_size: int) -> Callable[[], float]:
    """Pixels to the network's size, on all cores."""
    images = [decode.decode_image(data).numpy() for data in encoded]
    signature = tf.TensorSpec([None, None, 3], tf.uint8)
    # RaggedTensor would copy: the images are picked from Python instead.
    dataset = tf.data.Dataset.range(len(images)).map(
        lambda k: decode.resize(
            tf.ensure_shape(
                tf.numpy_function(lambda k: images[k], [k], tf.uint8),
                signature.shape,
            ),
            image_size,
        ),
        num_parallel_calls=machine.num_cores(),
    )
    return _consume(dataset)


def make_augment(
    examples: Examples, config: InputConfig
) -> Callable[[], float]:
    """Decoded pixels, resampled once by OpenCV, on all cores."""
    indices = np.arange(_SAMPLE) % len(examples.labels)
    transforms = augmentation.draw_transforms(config, 0, 0, _SAMPLE)
    cores = machine.num_cores()
    shares = list(
        zip(
            np.array_split(indices, cores),
            np.array_split(transforms.numpy(), cores),
            strict=True,
        )
    )
    pool = ThreadPoolExecutor(cores)

    def call() -> int:
        batches = pool.map(
            lambda share: examples.images.resample(
                *share, config.train_image_size
            ),
            shares,
        )
        return sum(len(batch) for batch in batches)

    return lambda: timing.rate(call)


def make_normalize(session: Session, examples: Examples) -> Callable[[], float]:
    """uint8 batch to the backbone's range in the compute dtype."""
    config = session.config
    size = config.optimization.global_batch_size
    with tf.device("CPU:0"):
        images = tf.constant(
            examples.images.read(np.arange(size) % len(examples.labels))
        )
        normalize = input_pipeline.make_normalize(
            backbones.get_preprocess(config.model.backbone),
            session.compute_dtype,
        )

    def call() -> int:
        with tf.device("CPU:0"):
            normalize(images)
        return size

    return lambda: timing.rate(call)


def make_pipeline(session: Session, examples: Examples) -> Callable[[], float]:
    """The host's part of the training pipeline, batches taken and dropped.

    Where the device augments, that is uint8 images and their transforms.
    """
    config = session.config
    size = config.optimization.global_batch_size
    dataset = input_pipeline.make_train_dataset(
        examples,
        config.input,
        backbones.get_preprocess(config.model.backbone),
        global_batch_size=size,
        seed=config.runtime.seed,
        compute_dtype=session.compute_dtype,
    )

    def run() -> float:
        # Anew each time: one kept would go on filling its buffer while the
        # next stage is measured.
        batches = iter(dataset)

        def call() -> int:
            next(batches)
            return size

        _drain(batches)
        return timing.rate(call)

    return run


def _drain(batches: Iterator) -> None:
    """Takes what the buffers may hold from before the clock runs."""
    for _ in range(2 * machine.num_cores() + 4):
        next(batches)


def steps_per_call() -> int:
    """Returns the training steps that a measurement's calls take at once."""
    return 10 if tf.config.list_physical_devices("GPU") else 1


def build_model(session: Session, unfreeze_from: str) -> keras.Model:
    """Builds the classifier as training on pretrained weights does.

    Its own weights are random: speed does not depend on them.

    Args:
      session: of the process.
      unfreeze_from: the layer or block that training begins at.
    """
    config = dataclasses.replace(session.config.model, weights="none")
    with session.strategy.scope():
        model = classifier.build_classifier(
            config,
            image_size=session.config.input.image_size,
            num_classes=len(session.source.class_names),
            seed=session.config.runtime.seed,
        )
        freezing.unfreeze_from(
            classifier.get_backbone(model),
            unfreeze_from,
            session.config.input.image_size,
            keep_batch_norm=True,
        )
        model = folding.fold_batch_norm(model)
    depthwise.avoid_slow_gradient(model)
    return model


def make_image_trainer(
    session: Session,
    model: keras.Model,
    device_stage: Callable[[Batch], tf.Tensor] = lambda batch: batch.inputs,
) -> Trainer:
    """Builds the trainer of a classifier that `build_model` made."""
    with session.strategy.scope():
        reduced = training_size.training_model(model, session.config.input)
    return make_trainer(session, model, device_stage, reduced)


def make_trainer(
    session: Session,
    model: keras.Model,
    device_stage: Callable[[Batch], tf.Tensor] = lambda batch: batch.inputs,
    training_model: keras.Model | None = None,
    xla_update: bool = False,
) -> Trainer:
    """Builds a trainer with the fine-tune stage's optimizer."""
    config = session.config
    options = config.optimization
    with session.strategy.scope():
        optimizer = optimizers.make_optimizer(
            options.finetune_optimizer,
            # Weights that go astray would not cost less, but may stop being
            # numbers.
            optimizers.learning_rate_schedule(options, 1e-9, 1000, 1000),
            options,
            scale_loss=session.precision == "mixed_float16",
        )
    return Trainer(
        model=model,
        strategy=session.strategy,
        global_batch_size=options.global_batch_size,
        optimizer=optimizer,
        training_model=training_model,
        device_stage=device_stage,
        xla=loop.uses_xla(config.runtime.xla),
        xla_update=xla_update and config.runtime.xla != "off",
    )


def _synthetic_batches(session: Session, shape: tuple[int, ...]) -> Iterator:
    """Endless, one batch over and over, distributed."""
    dtype = session.compute_dtype
    strategy = session.strategy
    size = session.config.optimization.global_batch_size
    size //= strategy.num_replicas_in_sync
    batch = Batch(
        tf.cast(tf.random.stateless_uniform([size, *shape], [0, 0]), dtype),
        tf.zeros([size], tf.int64),
        tf.ones([size]),
        tf.zeros([size, 0]),
    )
    return iter(
        strategy.distribute_datasets_from_function(
            lambda _: tf.data.Dataset.from_tensors(batch).repeat()
        )
    )


def make_forward(session: Session, trainer: Trainer) -> Callable[[], float]:
    """Forward pass and metrics, as evaluation runs them, synthetic images."""
    batches = _synthetic_batches(session, trainer.model.input_shape[1:])
    batch = next(batches)

    def call() -> int:
        float(trainer.eval_step(batch).loss)
        return session.config.optimization.global_batch_size

    return lambda: timing.rate(call)


def make_step(
    session: Session, trainer: Trainer, batches: Iterator | None = None
) -> Callable[[], float]:
    """Training steps, on synthetic images or on `batches`."""
    if batches is None:
        shape = trainer.training_model.input_shape[1:]
        batches = _synthetic_batches(session, shape)
    steps = steps_per_call()

    def call() -> int:
        float(trainer.train_steps(batches, tf.constant(steps)).loss)
        return steps * session.config.optimization.global_batch_size

    return lambda: timing.rate(call)


def make_training(
    session: Session, model: keras.Model, examples: Examples
) -> Callable[[], float]:
    """The fine-tune stage's steps, on its own batches."""
    config = session.config
    preprocess = backbones.get_preprocess(config.model.backbone)
    device_stage = input_pipeline.make_device_stage(
        config.input, preprocess, session.compute_dtype
    )
    batches = session.strategy.distribute_datasets_from_function(
        lambda context: input_pipeline.make_train_dataset(
            examples,
            config.input,
            preprocess,
            global_batch_size=config.optimization.global_batch_size,
            seed=config.runtime.seed,
            compute_dtype=session.compute_dtype,
            input_context=context,
        )
    )
    iterator = iter(batches)
    step = make_step(
        session, make_image_trainer(session, model, device_stage), iterator
    )

    def run() -> float:
        _drain(iterator)
        return step()

    return run


def make_head(
    session: Session, model: keras.Model, num_examples: int
) -> Callable[[], float]:
    """The transfer stage on cached features of one view, all of it."""
    options = session.config.optimization
    if options.transfer_optimizer == SOLVER:
        return _make_solved_head(session, model, num_examples)
    epoch = _make_trained_head(session, model, num_examples)
    return lambda: epoch() / options.transfer_epochs


def _make_solved_head(
    session: Session, model: keras.Model, num_examples: int
) -> Callable[[], float]:
    """Solves for features that lie about their class's mean."""
    channels = model.get_layer("pooler").output.shape[-1]
    num_classes = len(session.source.class_names)
    rng = np.random.default_rng(0)
    labels = np.arange(num_examples) % num_classes
    means = rng.standard_normal([num_classes, channels])
    noise = rng.standard_normal([1, num_examples, channels])
    values = (0.1 * means[labels] + noise).astype(np.float32)

    def call() -> int:
        linear_head.fit(Features(values, labels), num_classes, seed=0)
        return num_examples

    return lambda: timing.rate(call)


def _make_trained_head(
    session: Session, model: keras.Model, num_examples: int
) -> Callable[[], float]:
    """Takes an epoch's steps."""
    config = session.config
    channels = model.get_layer("pooler").output.shape[-1]
    features = Features(
        np.zeros([1, num_examples, channels], np.float32),
        np.zeros(num_examples, np.int64),
    )
    with session.strategy.scope():
        head = classifier.get_standardizing_head(model, features.values)
    batches = iter(
        session.strategy.distribute_datasets_from_function(
            lambda context: feature_cache.make_train_dataset(
                features,
                global_batch_size=config.optimization.global_batch_size,
                seed=config.runtime.seed,
                input_context=context,
            )
        )
    )
    trainer = make_trainer(session, head, xla_update=True)
    steps = input_pipeline.steps_per_epoch(
        num_examples, config.optimization.global_batch_size
    )

    def call() -> int:
        float(trainer.train_steps(batches, tf.constant(steps)).loss)
        return num_examples

    return lambda: timing.rate(call)
