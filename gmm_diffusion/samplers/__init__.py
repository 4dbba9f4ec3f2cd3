"""Samplers by name. To add one: one file, one line in SAMPLERS, one test file."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gmm_diffusion.denoisers import guidance
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, noise
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.samplers import (
  bdia,
  deis,
  dpmpp,
  gaussian,
  heun,
  ipndm,
  mixture,
  one_step,
  posterior,
  time_shift,
  tuned,
  unipc,
)
from gmm_diffusion.samplers.base import Kernel
from gmm_diffusion.samplers.run import initial_state, run
from gmm_diffusion.types import Array, Denoiser, StepGrid

SAMPLERS: dict[str, Callable[..., Kernel]] = {
  'ddpm': gaussian.ddpm,
  'ddim': gaussian.ddim,
  'ddim_gmm': mixture.ddim_gmm,
  'ddim_noise': mixture.ddim_noise,
  'posterior_gmm': posterior.posterior_gmm,
  'posterior_gaussian': posterior.posterior_gaussian,
  'posterior_noise': posterior.posterior_noise,
  'residual': gaussian.residual,
  'euler': gaussian.euler,
  'rfim': gaussian.rfim,
  'rfim_gmm': mixture.rfim_gmm,
  'rfim_noise': mixture.rfim_noise,
  'dpmpp': dpmpp.dpmpp,
  'dpmpp_sde': dpmpp.dpmpp_sde,
  'deis': deis.deis,
  'unipc': unipc.unipc,
  'ipndm': ipndm.ipndm,
  'heun': heun.heun,
  'bdia': bdia.bdia,
  'time_shift': time_shift.time_shift,
  'one_step': one_step.one_step,
  'tuned': tuned.tuned,
}

# Options that are only numbers in the plan: kernels that differ in these share what is compiled.
NUMBERS = ('scale', 'scale_interval', 'offsets_seed', 'posterior')
# The source's five variants [GMM section 4]: what each fixes of the mixture. "shared" is its "*".
_RAND = dict(offsets='rand', form='A', covariance='diagonal')
_ORTHO = dict(offsets='ortho', form='B', covariance='diagonal')
_VUB = dict(offsets='ortho', form='B', covariance='vub')
VARIANTS = {
  'rand': dict(_RAND, shared=False),
  'ortho': dict(_ORTHO, shared=False),
  'ortho_vub': dict(_VUB, shared=False),
  'ortho_shared': dict(_ORTHO, shared=True),
  'ortho_vub_shared': dict(_VUB, shared=True),
}
# The same names on the controls mean the control of that variant.
_BASES = ('ddim_gmm', 'ddim_noise', 'rfim_gmm', 'rfim_noise')
NAMES = tuple(SAMPLERS) + tuple(f'{base}_{variant}' for base in _BASES for variant in VARIANTS)


def options_of(name: str) -> set[str]:
  """The options that have an effect on a sampler; a source variant fixes some of them."""
  own, taken = resolve(name, {})
  return set(taken) - (set() if name == own else set(VARIANTS[name[len(own) + 1 :]]))


def resolve(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
  """(name of a sampler or of a source variant, options) -> (name in SAMPLERS, all options it
  takes).

  Options that are not given have the sampler's own defaults. Options that only other samplers take
  are left out, so that one set of options serves for a comparison; a variant's own settings win.
  """
  if name not in NAMES:
    raise UserError(f'unknown sampler {name!r}; valid: {", ".join(NAMES)}')
  if name not in SAMPLERS:
    name, variant = next(
      (base, name[len(base) + 1 :]) for base in _BASES if name.startswith(base + '_')
    )
    options = {**options, **VARIANTS[variant]}
  known = set().union(*map(_parameters, SAMPLERS))
  for key in options:
    if key not in known:
      raise UserError(f'unknown sampler option {key!r}; valid: {", ".join(sorted(known))}')
  return name, {key: options.get(key, default) for key, default in _parameters(name).items()}


def _takes_schedule(name: str) -> bool:
  return 'schedule' in inspect.signature(SAMPLERS[name]).parameters


def _parameters(name: str) -> dict[str, Any]:
  """The options of a sampler with their defaults. The schedule is none: it comes with the grid."""
  found = inspect.signature(SAMPLERS[name]).parameters
  own = {key: one.default for key, one in found.items() if key not in ('schedule', 'options')}
  return own | mixture.Options._field_defaults if 'options' in found else own


def make(name: str, options: dict[str, Any], schedule: Schedule | None = None) -> Kernel:
  """The kernel of a sampler or source variant; raises UserError on bad names or values.

  schedule is that of the grid; only 'deis', 'time_shift', and 'heun' with churn need it.
  """
  name, options = resolve(name, options)
  return SAMPLERS[name](**options, **({'schedule': schedule} if _takes_schedule(name) else {}))


def draw(
  denoiser: Denoiser,
  schedule: Schedule,
  shape: tuple[int, ...],
  ids: Array,
  seed: int = 0,
  sampler: str = 'ddim',
  steps: int = 10,
  grid: str | StepGrid = '',
  clip: tuple[float, float] | None = None,
  cond: Any = None,
  start: Array | None = None,
  strength: float = 0.5,
  **options: Any,
) -> Array:
  """Samples of a denoiser, compiled for this call.

  How a model enters: its data may have any range, as long as the denoiser's x_0 has it too. Its
  times and levels are those of the schedule, x_t = a_t x_0 + b_t eps with `time.t`, `time.a` and
  `time.b`; a model that counts time otherwise converts `time` itself. Schedules of one's own come
  from maths.schedules: `from_betas`, or `Schedule` for any pair (a, b).

  Args:
    denoiser: (x [B, ...], time, cond) -> Prediction(x0, eps).
    schedule: the one that the denoiser was trained with.
    shape: of one sample.
    ids: numbers of the samples, integers [B]; (seed, id) decides a sample, whatever the others are.
    seed: of the noise.
    sampler: a name in NAMES.
    steps: of the grid.
    grid: a name in maths.grids.GRIDS, or a StepGrid, which has its own steps; '' is 'trailing' on a
      discrete schedule and 'uniform' on others. Sampler 'tuned' has that of its file, `path`.
    clip: the range of the data, such as (-1, 1), to which x_0 is clipped in every step; None for
      data without one, such as latents.
    cond: passed to the denoiser, such as labels [B].
    start: samples [B, *shape] to change (image to image): they are given the noise of a later time,
      and only the steps from there on are taken. None starts from noise alone.
    strength: with `start`, the share of the steps that are taken, in (0, 1]: small changes little.
    **options: of the sampler.

  Returns:
    Samples [B, *shape], float32.

  Raises:
    UserError: on a bad name, option or grid, or a start that does not fit.
  """
  if sampler == 'tuned':
    grid = tuned.grid(options.get('path', ''), schedule)
  if not isinstance(grid, StepGrid):
    grid = grids.make(schedule, steps, grid or ('trailing' if schedule.discrete else 'uniform'))
  if start is not None:
    grid = later(grid, strength)
    if np.shape(start) != (len(np.asarray(ids)), *shape):
      raise UserError(
        f'start must have the shape {[len(np.asarray(ids)), *shape]}, one for each id, got '
        f'{list(np.shape(start))}'
      )
  kernel = make(sampler, options, schedule)
  plan, _ = kernel.plan(grid, shape)
  if clip is not None:
    denoiser = guidance.clip_x0(denoiser, *clip)

  @jax.jit
  def of(keys, cond, start):
    at_step = lambda n: noise.at_step(keys, n, shape)
    x = initial_state(grid, keys, shape, x0=start)
    return run(kernel, denoiser, grid, plan, x, at_step, cond).x

  return of(noise.sample_keys(seed, np.asarray(ids)), cond, start)


def later(grid: StepGrid, share: float) -> StepGrid:
  """The last steps of a grid, a share of them in (0, 1] and at least one; raises UserError."""
  if not 0 < share <= 1:
    raise UserError(f'strength must be in (0, 1], got {share:g}')
  first = len(grid.t) - max(1, round(share * len(grid.t)))
  return StepGrid(*(level[first:] for level in grid))


def control_of(name: str) -> str | None:
  """The energy-matched isotropic control of a mixture sampler; None for any other."""
  return name.replace('_gmm', '_noise') if '_gmm' in name else None


def is_control(name: str) -> bool:
  """Whether a sampler is the control of a mixture."""
  return '_noise' in name
