"""The losses of a learning-rate range test, and what they suggest.

The test is of L. Smith, "Cyclical Learning Rates for Training Neural Networks"
(WACV 2017, section 3.3, https://arxiv.org/abs/1506.01186): train a few steps
while the learning rate rises, and look where the loss falls and where it stops
to. How the loss is smoothed, when the test ends and how a rate is read off the
curve are fastai's `lr_find` (https://docs.fast.ai/callback.schedule.html).
"""

from __future__ import annotations

import math

import numpy as np

# Of the exponential moving average; fastai's.
_SMOOTHING = 0.98
# The test is over when the smoothed loss is so many times its minimum, which
# counts as this many nats at least: a solved head starts near 0, and one hard
# batch is many times that.
_DIVERGED = 4.0
_LEAST_MINIMUM = 0.5
# Not looked at, as fastai does not: the first tenth of the steps, where the
# average is of few losses, and the last ones, which diverge.
_SKIPPED_FIRST = 0.1
_SKIPPED_LAST = 5


class Curve:
    """Training losses at rising learning rates.

    Attributes:
      rates: learning rate of each step, strictly rising.
      losses: mean training loss of each step's batch, nats; finite.
      smoothed: their exponential moving average, corrected for its start from
        0 (Kingma and Ba 2015, section 3, https://arxiv.org/abs/1412.6980).
      ended: why the test is over: `diverged`, `not finite`, or '' (it isn't).
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.ended = ""
        self._average = 0.0

    def add(self, rate: float, loss: float) -> None:
        """Counts a step, and tells in `ended` whether it was the last one."""
        if not math.isfinite(loss):
            self.ended = "not finite"
            return
        if self.rates and rate <= self.rates[-1]:
            # Loss scaling left the last step out: nothing was learned.
            return
        self.rates.append(rate)
        self.losses.append(loss)
        self._average += (1 - _SMOOTHING) * (loss - self._average)
        weight = 1 - _SMOOTHING ** len(self.losses)
        self.smoothed.append(self._average / weight)
        minimum = max(min(self.smoothed), _LEAST_MINIMUM)
        if self.smoothed[-1] > _DIVERGED * minimum:
            self.ended = "diverged"


def looked_at(curve: Curve, num_steps: int) -> slice:
    """Returns which steps the suggestions are read from.

    Args:
      curve: that the test left.
      num_steps: of the test, had it not ended before.
    """
    first = int(num_steps * _SKIPPED_FIRST)
    return slice(first, max(first, len(curve.rates) - _SKIPPED_LAST))


def suggest(curve: Curve, num_steps: int) -> dict[str, float]:
    """Reads learning rates off the smoothed loss; names are fastai's.

    `valley`: the middle of the longest valley, the longest series of steps,
    each with a lower loss than the one before it, that others may lie between.
    `steepest`: where the loss falls fastest over the logarithm of the rate.
    `minimum`: a tenth of the rate at which the loss is lowest. There the next
    steps undo what the last ones learned; the average lags behind, too.

    Unlike fastai's, the first two end at the lowest loss: a network that
    recovers from a rise, at a rate a hundred times as high, falls longer and
    faster than one that learns.

    Args:
      curve: that the test left.
      num_steps: of the test, had it not ended before.

    Returns:
      Learning rate by name; none where the loss doesn't fall.
    """
    steps = looked_at(curve, num_steps)
    losses = np.asarray(curve.smoothed[steps])
    losses = losses[: np.argmin(losses) + 1] if len(losses) else losses
    if len(losses) < 2:
        return {}
    rates = np.asarray(curve.rates[steps])[: len(losses)]
    slopes = np.diff(losses) / np.diff(np.log(rates))
    found = {
        "valley": rates[_middle_of_valley(losses)],
        "steepest": rates[np.argmin(slopes)],
        "minimum": rates[-1] / 10,
    }
    return {name: float(rate) for name, rate in found.items()}


def still_falls(curve: Curve, num_steps: int) -> bool:
    """Whether the lowest loss is the last one: higher rates were not tried."""
    losses = curve.smoothed[looked_at(curve, num_steps)]
    return not curve.ended and bool(losses) and losses[-1] == min(losses)


def _middle_of_valley(losses: np.ndarray) -> int:
    """Returns the middle of the longest decreasing subsequence.

    Of as many steps as it has, up to its end: steps that lie between, as a
    flat start has them, count as if they weren't there.
    """
    lengths = np.ones(len(losses), np.int64)
    for k in range(1, len(losses)):
        higher = losses[:k] > losses[k]
        lengths[k] += np.max(lengths[:k], where=higher, initial=0)
    end = int(np.argmax(lengths))
    return end - int(lengths[end]) // 2
