"""`--profile_steps`: a TensorBoard profile of a few training steps."""

from __future__ import annotations

import pathlib

import tensorflow as tf

from flowers17_tfdata import terminal


class Profiler:
    """Writes a TensorBoard profile of some steps of a stage.

    Args:
      steps: first and last step, counted from 1 in this process; None: none.
      folder: of the stage's TensorBoard files.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: pathlib.Path):
        self._steps = steps
        self._folder = folder
        self._done = 0
        self._running = False

    def before(self, count: int) -> None:
        """Starts the profile if its first step is among the next `count`."""
        if self._steps and self._done < self._steps[0] <= self._done + count:
            tf.profiler.experimental.start(str(self._folder))
            self._running = True

    def after(self, count: int) -> None:
        """Counts the steps; writes the profile if its last one is done."""
        self._done += count
        if self._steps and self._done >= self._steps[1]:
            self.stop()

    def stop(self) -> None:
        """Writes the profile if one is running."""
        if self._running:
            tf.profiler.experimental.stop()
            self._running = False
            terminal.say(f"profile written to {self._folder}")
