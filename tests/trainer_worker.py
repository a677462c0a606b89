"""Trains steps with `Trainer`, alone or as one of two workers.

`python -m tests.trainer_worker FOLDER`, with or without TF_CONFIG, writes the
final weights of each case to `FOLDER/INDEX.npz`. test_multi_worker.py starts
it, since each worker of a strategy needs its own process.
"""

from __future__ import annotations

import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.config.runtime import RuntimeConfig
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.training.flat_weights import FlatWeights
from flowers17_tfdata.training.inference import Inference
from flowers17_tfdata.training.strategy import get_strategy
from flowers17_tfdata.training.trainer import Trainer
from flowers17_tfdata.training.workers import Workers
from tests import fakes

BATCH = 8
# Not a multiple of the batch: the last one is padded.
NUM_EXAMPLES = 27
STEPS = 10


def _make_trainer(strategy, **kwargs) -> Trainer:
    with strategy.scope():
        weights = FlatWeights(fakes.make_model())
        optimizer = keras.optimizers.SGD(0.5, momentum=0.9)
        if kwargs.pop("scale_loss", False):
            optimizer = keras.optimizers.LossScaleOptimizer(
                optimizer, initial_scale=1024.0
            )
    return Trainer(
        weights=weights,
        strategy=strategy,
        optimizer=optimizer,
        global_batch_size=BATCH,
        **kwargs,
    )


def _weights(trainer: Trainer, case: str) -> dict[str, np.ndarray]:
    trainer.weights.store()
    return {
        f"{case}/{k}": keras.ops.convert_to_numpy(v)
        for k, v in enumerate(trainer.model.trainable_variables)
    }


def train(strategy, case: str, **kwargs) -> dict[str, np.ndarray]:
    """Trains through the pipeline, then evaluates."""
    trainer = _make_trainer(strategy, **kwargs)
    examples = fakes.make_noise_examples(NUM_EXAMPLES)
    arguments = {
        "examples": examples,
        "config": InputConfig(image_size=fakes.IMAGE_SIZE),
        "preprocess": fakes.preprocess_input,
        "global_batch_size": BATCH,
    }
    batches = strategy.distribute_datasets_from_function(
        lambda context: input_pipeline.make_train_dataset(
            seed=0, input_context=context, **arguments
        )
    )
    trainer.train_steps(iter(batches), tf.constant(STEPS))
    trainer.weights.store()
    validation = strategy.distribute_datasets_from_function(
        lambda context: input_pipeline.make_eval_dataset(
            input_context=context, **arguments
        )
    )
    inference = Inference(trainer.model, strategy)
    scores = inference.loss_and_accuracy(validation)
    return _weights(trainer, case) | {f"{case}/scores": np.array(scores)}


def overflow(strategy) -> dict[str, np.ndarray]:
    """Trains on a batch whose last example overflows, then on a good one."""
    trainer = _make_trainer(strategy, scale_loss=True)
    good = fakes.make_batch(BATCH)
    inputs = good.inputs.numpy()
    inputs[-1] = np.inf
    bad = good._replace(inputs=tf.constant(inputs))
    both = tf.nest.map_structure(lambda *x: tf.concat(x, 0), bad, good)

    def make(context):
        batches = tf.data.Dataset.from_tensor_slices(both).batch(
            BATCH // context.num_replicas_in_sync, drop_remainder=True
        )
        return batches.shard(
            context.num_input_pipelines, context.input_pipeline_id
        )

    batches = iter(strategy.distribute_datasets_from_function(make))
    before = _weights(trainer, "before_overflow")
    trainer.train_steps(batches, tf.constant(1))
    after = _weights(trainer, "after_overflow")
    trainer.train_steps(batches, tf.constant(1))
    return before | after | _weights(trainer, "after_good_step")


def main() -> None:
    strategy = get_strategy(RuntimeConfig())
    workers = Workers(strategy)
    results = (
        train(strategy, "plain")
        | train(strategy, "smooth", label_smoothing=0.3)
        | train(strategy, "scale", scale_loss=True)
        | overflow(strategy)
    )
    results["count"] = workers.count
    results["gather"] = workers.gather([workers.index, 7.0])
    # Both workers say yes; one does; none does.
    flags = [True, workers.index == 1, False]
    results["any"] = [workers.any(f) for f in flags]
    results["all"] = [workers.all(f) for f in flags]
    results["agree"] = [workers.agree([5.0]), workers.agree([workers.index])]
    np.savez(pathlib.Path(sys.argv[1]) / f"{workers.index}.npz", **results)


if __name__ == "__main__":
    main()
