"""Types that every layer shares."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray
Key = jax.Array


class Time(NamedTuple):
  """A point on a noise schedule: q(x_t | x_0) = N(a x_0, b^2 I).

  Scalars while sampling, arrays of shape [B] while training.

  Attributes:
    t: time in the schedule's own unit.
    a: signal level.
    b: noise level.
  """

  t: Array
  a: Array
  b: Array


class Prediction(NamedTuple):
  """What a denoiser says of a batch x [B, ...]: arrays of x's shape.

  share: of the variance of the reverse step, maths/variances.py (2); None where it says none.
  """

  x0: Array
  eps: Array
  share: Array | None = None


# (x [B, ...], time, cond) -> Prediction. `cond` is any pytree, or None.
Denoiser = Callable[[Array, Time, Any], Prediction]


class StepGrid(NamedTuple):
  """N sampling steps in order of use; step n goes from t[n] to s[n] < t[n].

  All fields have shape [N] (float64 on the host), or [] for one row in a loop.
  """

  t: Array
  s: Array
  a_t: Array
  b_t: Array
  a_s: Array
  b_s: Array

  @property
  def now(self) -> Time:
    """The time at which the denoiser is evaluated."""
    return Time(self.t, self.a_t, self.b_t)

  @property
  def next(self) -> Time:
    """The time that the step reaches."""
    return Time(self.s, self.a_s, self.b_s)
