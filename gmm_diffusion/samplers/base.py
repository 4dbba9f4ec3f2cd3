"""The sampler protocol.

A kernel is three pure functions. `plan` works once on the host in float64: it turns the grid
into whatever coefficients the steps need, so that nobody recomputes a previous time in a loop.
`init` and `step` run inside the one loop, samplers/run.py. A step never loops and never mixes
samples. A multistep method keeps its history in the state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths.noise import StepNoise
from gmm_diffusion.types import Array, Prediction, StepGrid


class Plan(NamedTuple):
  """What a kernel prepares for a grid and a sample shape.

  Attributes:
    rows: pytree with leading axis N; step n gets its row. float64 leaves are cast once to
      the dtype of the samples.
    shared: pytree that every step gets as it is (such as offsets drawn once).
  """

  rows: Any
  shared: Any = ()


# One dict per step for people to read; empty where there is nothing to say.
Report = list[dict[str, Any]]


class Kernel(NamedTuple):
  """A reverse kernel.

  Attributes:
    plan: (grid, sample shape) -> (Plan, Report).
    init: x_T [B, ...] -> state; every state has a field `x`.
    step: (state, grid row, plan row, plan.shared, denoise, noise) -> (state, info), where
      denoise(x, time) -> Prediction counts as one network evaluation, denoise(x, time, when=flag)
      as one only where the scalar flag holds (elsewhere it returns zeros and asks no network), and
      info is a pytree with leading axis B.
  """

  plan: Callable[[StepGrid, tuple[int, ...]], tuple[Plan, Report]]
  init: Callable[[Array], Any]
  step: Callable[[Any, StepGrid, Any, Any, Callable[..., Prediction], StepNoise], tuple[Any, Any]]


class State(NamedTuple):
  """The state of a one-step kernel: samples x [B, ...]."""

  x: Array


def require(schedule: Any, name: str) -> None:
  """Raises UserError without a schedule: what happens between the times of a grid only the schedule
  knows."""
  if schedule is None:
    raise UserError(
      f'sampler {name} needs the noise schedule of its grid: samplers.make(name, options, schedule)'
    )
