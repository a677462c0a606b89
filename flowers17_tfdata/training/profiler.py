"""`--profile_steps`: a TensorBoard profile of a few training steps."""

from __future__ import annotations

import pathlib

import tensorflow as tf

from flowers17_tfdata import terminal


class Profiler:
    """Writes a TensorBoard profile of some steps of a stage.

    Args:
      steps: the first and the last step, counted from 1 in this process; None:
        no profile.
      folder: the folder of the stage's TensorBoard files.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: pathlib.Path):
        # There is no step 0.
        self._first, self._last = steps or (0, 0)
        self._folder = folder
        self._done = 0
        self._running = False

    def before(self, count: int) -> None:
        """Starts the profile if its first step is among the next `count`."""
        if self._done < self._first <= self._done + count:
            tf.profiler.experimental.start(str(self._folder))
            self._running = True

    def after(self, count: int) -> None:
        """Counts the steps; writes the profile if its last one is done."""
        self._done += count
        if self._done >= self._last:
            self.stop()

    def stop(self) -> None:
        """Writes the profile if one is running."""
        if self._running:
            tf.profiler.experimental.stop()
            self._running = False
            terminal.say(f"profile written to {self._folder}")
