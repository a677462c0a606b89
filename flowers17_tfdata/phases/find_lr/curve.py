"""The losses of a learning-rate range test, and what they suggest.

The test is L. Smith's, "Cyclical Learning Rates for Training Neural Networks"
(WACV 2017, section 3.3, https://arxiv.org/abs/1506.01186): train a few steps
while the learning rate rises, and see where the loss falls and where it stops
falling. The smoothing of the loss, the end of the test and the suggestions
follow fastai's `lr_find`
(https://docs.fast.ai/callback.schedule.html).
"""

from __future__ import annotations

import math

import numpy as np

# The weight of the past in the exponential moving average, as in fastai.
_SMOOTHING = 0.98
# The test ends when the smoothed loss is this many times its minimum. The
# minimum counts as at least this many nats: the loss of a solved head starts
# near 0, and a single hard batch has many times that.
_DIVERGED = 4.0
_LEAST_MINIMUM = 0.5
# As in fastai, suggestions ignore the first tenth of the steps, where the
# average is one of few losses, and the last steps, which diverge.
_SKIPPED_FIRST = 0.1
_SKIPPED_LAST = 5


class Curve:
    """Training losses at rising learning rates.

    Attributes:
      rates: the learning rate of each step, strictly rising.
      losses: the mean training loss of each step's batch, in nats; finite.
      smoothed: the exponential moving average of the losses, corrected for its
        start from 0 (Kingma and Ba 2015, section 3,
        https://arxiv.org/abs/1412.6980).
      ended: why the test is over, `diverged` or `not finite`; '' if it isn't.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.ended = ""
        self._average = 0.0

    def add(self, rate: float, loss: float) -> None:
        """Adds a step, and sets `ended` if it was the last one."""
        if not math.isfinite(loss):
            self.ended = "not finite"
            return
        if self.rates and rate <= self.rates[-1]:
            # Loss scaling skipped the step before: nothing was learned.
            return
        self.rates.append(rate)
        self.losses.append(loss)
        self._average += (1 - _SMOOTHING) * (loss - self._average)
        weight = 1 - _SMOOTHING ** len(self.losses)
        self.smoothed.append(self._average / weight)
        minimum = max(min(self.smoothed), _LEAST_MINIMUM)
        if self.smoothed[-1] > _DIVERGED * minimum:
            self.ended = "diverged"


def _reliable(curve: Curve, num_steps: int) -> slice:
    """Returns the steps that suggestions are read from."""
    first = int(num_steps * _SKIPPED_FIRST)
    return slice(first, max(first, len(curve.rates) - _SKIPPED_LAST))


def suggest(curve: Curve, num_steps: int) -> float | None:
    """Reads a learning rate off the smoothed loss: fastai's `valley`.

    It is the middle of the longest series of steps that each have a lower loss
    than the one before. Other steps may lie between them. That depends less on
    a single step than the steepest fall or the minimum does.

    Unlike fastai's, it ignores what follows the lowest loss: when a network
    recovers from a rise, at a rate a hundred times as high, the loss falls
    longer than when it learns.

    Args:
      curve: the curve of the test.
      num_steps: the number of steps of a test that doesn't end early.

    Returns:
      The learning rate; None if the loss doesn't fall.
    """
    steps = _reliable(curve, num_steps)
    losses = np.asarray(curve.smoothed[steps])
    if len(losses):
        losses = losses[: np.argmin(losses) + 1]
    if len(losses) < 2:
        return None
    return curve.rates[steps][_middle_of_valley(losses)]


def still_falls(curve: Curve, num_steps: int) -> bool:
    """Returns whether the last loss is the lowest: try higher rates, too."""
    losses = curve.smoothed[_reliable(curve, num_steps)]
    return not curve.ended and bool(losses) and losses[-1] == min(losses)


def _middle_of_valley(losses: np.ndarray) -> int:
    """Returns the middle of the longest decreasing subsequence.

    The middle is half its length before its end. Steps between its own, such as
    a flat start, don't count.
    """
    lengths = np.ones(len(losses), np.int64)
    for k in range(1, len(losses)):
        higher = losses[:k] > losses[k]
        lengths[k] += np.max(lengths[:k], where=higher, initial=0)
    end = int(np.argmax(lengths))
    return end - int(lengths[end]) // 2
