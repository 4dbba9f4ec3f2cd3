"""The only sampling loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import noise as noise_lib
from gmm_diffusion.maths.noise import StepNoise
from gmm_diffusion.samplers.base import Kernel, Plan
from gmm_diffusion.types import Array, Denoiser, Key, Prediction, StepGrid


class Result(NamedTuple):
  """Samples x [B, ...]; with keep='all' the states after each step [N, B, ...] and the kernels'
  infos.

  nfe is the number of denoiser calls per sample: counted while tracing, or for a kernel that skips
  some (see base.Kernel) while running. state is the kernel's last state.
  """

  x: Array
  path: Array | None
  info: Any
  nfe: int | Array
  state: Any


def initial_state(
  grid: StepGrid,
  keys: Key,
  shape: tuple[int, ...],
  dtype: Any = jnp.float32,
  x0: Array | None = None,
) -> Array:
  """x_T, where sampling starts: unit noise times b_t of the grid's first time, and a_t x_0 of
  samples to change.

  This is the state of every schedule whose noisiest time hides the data: there x_t = a_t x_0 + b_t
  eps, and a_t x_0 is left out. b_t is 1 for a rectified flow, just below it for DDPM's schedules,
  and sigma_max for EDM.

  Args:
    grid: N steps.
    keys: of `noise.sample_keys`, [B].
    shape: of one sample.
    dtype: of the samples.
    x0: samples to change [B, *shape]; None starts from noise alone.

  Returns:
    [B, *shape].
  """
  x = jnp.asarray(grid.b_t[0], dtype) * noise_lib.initial(keys, shape, dtype)
  return x if x0 is None else x + jnp.asarray(grid.a_t[0] * x0, dtype)


def run(
  kernel: Kernel,
  denoiser: Denoiser,
  grid: StepGrid,
  plan: Plan,
  x: Array,
  noise: Callable[[Array], StepNoise | None],
  cond: Any = None,
  keep: str = 'last',
  unroll: bool = False,
) -> Result:
  """Runs a kernel down a grid. Pure: wrap it in jit together with the denoiser.

  Args:
    kernel: the reverse kernel.
    denoiser: any Denoiser.
    grid: N steps.
    plan: the Plan of kernel.plan(grid, x.shape[1:]).
    x: x_T [B, ...], the state at the grid's first time, as of `initial_state`.
    noise: step index -> StepNoise for the batch.
    cond: passed to the denoiser.
    keep: 'last', or 'all' to keep the trajectory.
    unroll: compiles every step and not one, for gradients by weights on CPUs: in 5 steps of the
      digits' U-Net they take a tenth of the time that they take through a loop.

  Returns:
    Result.
  """
  if keep not in ('last', 'all'):
    raise UserError(f'unknown keep {keep!r}; valid: last, all')
  calls = []

  def denoise(x, time, when=True):
    calls.append(when)
    if when is True:
      return denoiser(x, time, cond)
    return jax.lax.cond(
      when,
      lambda: denoiser(x, time, cond)._replace(share=None),
      lambda: Prediction(jnp.zeros_like(x), jnp.zeros_like(x)),
    )

  def body(state, inputs):
    calls.clear()  # a body may be traced more than once
    n, row, extra = inputs
    state, info = kernel.step(state, row, extra, plan.shared, denoise, noise(n))
    skipped = [jnp.logical_not(when) for when in calls if when is not True]
    return state, ((state.x, info) if keep == 'all' else (None, None), skipped)

  # tokens are whole numbers, and their times are not
  dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
  cast = lambda leaf: jnp.asarray(leaf, dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
  steps = len(grid.t)
  rows = jax.tree.map(cast, (grid, plan.rows))
  state, ((path, info), skipped) = jax.lax.scan(
    body, kernel.init(x), (jnp.arange(steps), *rows), unroll=unroll
  )
  return Result(
    state.x, path, info, steps * len(calls) - sum(jnp.sum(flags) for flags in skipped), state
  )
