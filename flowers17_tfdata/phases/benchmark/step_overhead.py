"""What a training step costs beyond the arithmetic of its images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata.input.input_pipeline import Batch
from flowers17_tfdata.models import training_size
from flowers17_tfdata.phases.benchmark import measurement
from flowers17_tfdata.phases.benchmark.measurement import Row
from flowers17_tfdata.session import Session
from flowers17_tfdata.training import optimizers
from flowers17_tfdata.training.flat_weights import FlatWeights
from flowers17_tfdata.training.loop import Stage
from flowers17_tfdata.training.trainer import Trainer

# The sizes to try for the smallest images, pixels. InceptionV3 takes 75.
_SIZES = (32, 48, 64, 75, 96, 128)

_STEPS_PER_CALL = 10


def overhead_rows(session: Session, stage: Stage) -> list[Row]:
    """Returns the rows `step/nodes` and `step/overhead`.

    Most nodes of the graph launch a kernel on a GPU, and pass over memory on a
    CPU. If there are thousands, each with little arithmetic, their number
    limits the speed of a step.

    Args:
      session: the open run.
      stage: the stage whose step to measure.
    """
    trainer = _smallest_trainer(session, stage)
    dataset = tf.data.Dataset.from_tensors(_smallest_batch(trainer)).repeat()
    batches = iter(
        trainer.strategy.distribute_datasets_from_function(lambda _: dataset)
    )
    step = trainer.train_steps.get_concrete_function(batches, tf.constant(1))
    nodes = count_nodes(step)
    return [
        Row("step/nodes", lambda: nodes, unit="nodes"),
        Row("step/overhead", _make_overhead(trainer, batches), unit="x"),
    ]


def count_nodes(function: tf.types.experimental.ConcreteFunction) -> int:
    """Counts the nodes of a graph and of the functions it calls, each once.

    Constants don't count.
    """
    graph = function.graph.as_graph_def()
    library = {f.signature.name: f for f in graph.library.function}
    counted = set()

    def count(nodes: Iterable[tf.compat.v1.NodeDef]) -> int:
        total = 0
        for node in nodes:
            total += node.op != "Const"
            for attribute in node.attr.values():
                for called in (attribute.func, *attribute.list.func):
                    if called.name in library and called.name not in counted:
                        counted.add(called.name)
                        total += count(library[called.name].node_def)
        return total

    return count(graph.node)


def _smallest_trainer(session: Session, stage: Stage) -> Trainer:
    """Returns a trainer of the stage's model for the smallest images."""
    optimization, strategy = session.config.optimization, session.strategy
    small = stage.model
    for size in _SIZES:
        # Too small for the backbone.
        with contextlib.suppress(ValueError):
            small = training_size.resized(stage.model, size)
            break
    with strategy.scope():
        weights = FlatWeights(stage.model)
        optimizer = optimizers.make_optimizer(
            optimization.finetune_optimizer,
            optimizers.learning_rate_schedule(optimization, 1e-9, 1000, 1000),
            optimization,
            scale_loss=keras.config.dtype_policy().name == "mixed_float16",
        )
    return Trainer(
        weights=weights,
        training_model=small,
        strategy=strategy,
        global_batch_size=strategy.num_replicas_in_sync,
        optimizer=optimizer,
        xla=session.config.runtime.xla,
        deterministic=session.config.runtime.deterministic,
    )


def _smallest_batch(trainer: Trainer) -> Batch:
    """Returns a batch of one image."""
    shape = [1, *trainer.training_model.input_shape[1:]]
    pixels = np.random.default_rng(0).uniform(-1, 1, shape)
    dtype = keras.config.dtype_policy().compute_dtype
    return Batch(
        tf.cast(pixels, dtype),
        tf.zeros([1], tf.int64),
        tf.ones([1]),
        tf.zeros([1, 0]),
    )


def _make_overhead(trainer: Trainer, batches) -> Callable[[], float]:
    """Measures the time of a step over that of its gradients alone."""
    batch = next(batches)

    def step() -> int:
        float(trainer.train_steps(batches, tf.constant(_STEPS_PER_CALL)).loss)
        return _STEPS_PER_CALL

    def gradients() -> int:
        float(trainer.sum_gradients(batch, tf.constant(_STEPS_PER_CALL)))
        return _STEPS_PER_CALL

    return lambda: measurement.rate(gradients) / measurement.rate(step)
