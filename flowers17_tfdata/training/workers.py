"""Agreement between the worker processes of one run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from flowers17_tfdata.training import cluster


class Workers:
    """The processes that train one model together, as one of them sees them.

    Every method but the constructor is a collective: all workers must call it,
    in the same order, and wait for each other. A single worker doesn't wait.

    Attributes:
      count: the number of workers.
      index: this worker's.
      is_chief: whether this is worker 0, which writes the workdir.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self.count, self.index = 1, 0
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            self.count, self.index = cluster.place(strategy.cluster_resolver)
        self.is_chief = self.index == 0

    def gather(self, values: Sequence[float]) -> np.ndarray:
        """Returns every worker's values: float64 `[count, len(values)]`."""
        if self.count == 1:
            return np.asarray([values], np.float64)
        table = np.zeros([self.count, len(values)])
        table[self.index] = values
        replicas = self._strategy.num_replicas_in_sync // self.count
        # Each of a worker's replicas adds the worker's row.
        return self._sum(tf.constant(table)).numpy() / replicas

    @tf.function
    def _sum(self, table: tf.Tensor) -> tf.Tensor:
        return self._strategy.reduce(
            tf.distribute.ReduceOp.SUM,
            self._strategy.run(lambda: table),
            axis=None,
        )

    def any(self, flag: bool) -> bool:
        """Returns whether the flag is set on any worker."""
        return bool(self.gather([flag]).any())

    def all(self, flag: bool) -> bool:
        """Returns whether the flag is set on all workers."""
        return bool(self.gather([flag]).all())

    def barrier(self) -> None:
        """Waits until all workers are here."""
        self.gather([0.0])

    def agree(self, values: Sequence[float]) -> bool:
        """Returns whether all workers have the same values."""
        table = self.gather(values)
        return bool((table == table[0]).all())
