"""The Gaussian problem of the golden runs, and sweeps over many grids in one compilation."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.denoisers import exact
from gmm_diffusion.maths import noise
from gmm_diffusion.samplers.run import run
from gmm_diffusion.types import StepGrid
from helpers import cases

PROBLEM = cases.golden('g7_problem')
MEAN, VARIANCE = PROBLEM['m'], PROBLEM['v']
DENOISER = exact.gaussian(MEAN, VARIANCE)
X_T = np.float64(PROBLEM['x_T'])


def golden(name):
  """Arrays and [(case, args)] of a golden file; args has also the original's number of
  evaluations."""
  arrays = dict(cases.golden(name))
  specs = json.loads(str(arrays['config']))['cases']
  return arrays, [(case, dict(spec['args'], calls=spec['calls'])) for case, spec in specs.items()]


def problem(arrays, case):
  """The denoiser of a golden case, which its name begins with: 'gauss' or 'mixture'."""
  if case.startswith('gauss'):
    return DENOISER
  return exact.mixture(arrays['mix_means'], arrays['mix_var'], np.log(arrays['mix_pi']))


def grid_through(a, b, times=None):
  """A grid through N + 1 levels, whatever schedule they come from."""
  t = np.arange(len(a))[::-1] if times is None else times
  return StepGrid(*(np.float64(value) for value in (t[:-1], t[1:], a[:-1], b[:-1], a[1:], b[1:])))


def grid_of_abar(abar, times=None):
  return grid_through(np.sqrt(abar), np.sqrt(1 - abar), times)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(kernel, denoiser, grid, plan, x, normal):
  return run(
    kernel,
    denoiser,
    grid,
    plan,
    x,
    lambda n: noise.StepNoise(normal[n], jnp.zeros(len(x))),
    keep='all',
  )


def sample(kernel, grid, x=X_T, normal=None, denoiser=DENOISER):
  """Result of a run with the noise normal [N, B, D], by default none."""
  normal = np.zeros((len(grid.t), 1, 1)) if normal is None else normal
  plan, _ = kernel.plan(grid, x.shape[1:])
  return _run(kernel, denoiser, grid, plan, jnp.asarray(x), jnp.asarray(normal))


def exact_flow(x, start, end):
  """Probability flow of N(MEAN, VARIANCE) data: (x - a m) / sqrt(a^2 v + b^2) is constant."""
  spread = lambda time: np.sqrt(time.a**2 * VARIANCE + time.b**2)
  return end.a * MEAN + spread(end) / spread(start) * (x - start.a * MEAN)


def sweep(kernel, grids, x=X_T, kernels=None):
  """Ends [len(grids), B, D] of noiseless runs from x b_t, compiled once: shorter grids are padded
  with idle steps.

  kernels: one for each grid, if only their plans differ.
  """
  steps = max(len(grid.t) for grid in grids)
  rows = [
    (grid, own.plan(grid, x.shape[1:])[0].rows)
    for grid, own in zip(grids, kernels or [kernel] * len(grids))
  ]
  pad = lambda leaf: np.concatenate([leaf, np.repeat(leaf[-1:], steps - len(leaf), 0)])
  rows = jax.tree.map(lambda *leaves: np.stack([pad(np.asarray(leaf)) for leaf in leaves]), *rows)
  active = np.arange(steps) < np.array([[len(grid.t)] for grid in grids])
  return _sweep(kernel, rows, active, jnp.asarray(x))


@functools.partial(jax.jit, static_argnums=0)
def _sweep(kernel, rows, active, x):
  rows = jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), rows)

  def denoise(x, time, when=True):
    found = DENOISER(x, time, None)
    return jax.tree.map(lambda value: jnp.where(when, value, 0), found)

  def body(state, inputs):
    (row, extra), act = inputs
    new, _ = kernel.step(
      state, row, extra, (), denoise, noise.StepNoise(jnp.zeros_like(x), jnp.zeros(len(x)))
    )
    return jax.tree.map(lambda new, old: jnp.where(act, new, old), new, state), None

  def one(rows, active):
    return jax.lax.scan(body, kernel.init(x * rows[0].b_t[0]), (rows, active))[0].x

  return jax.vmap(one)(rows, active)


def fitted_order(kernel, grids, x=X_T):
  """Minus the slope of log error against log N."""
  ends = np.asarray(sweep(kernel, grids, x))
  first, last = grids[0].now, grids[0].next
  start = type(first)(*(level[0] for level in first))
  end = type(last)(*(level[-1] for level in last))
  errors = np.abs(ends - exact_flow(x * start.b, start, end)).max((1, 2))
  return -np.polyfit(np.log([len(grid.t) for grid in grids]), np.log(errors), 1)[0]
