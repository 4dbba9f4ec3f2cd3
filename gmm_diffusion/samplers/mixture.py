"""Mixture reverse kernels: DDIM-GMM, RFIM-GMM, and their isotropic control.

x_s ~ sum_k pi_k N(mu + delta_k, tau^2 I - Delta_k) [GMM eq. 7] around the same mu as DDIM or RFIM.
The maths is in maths/moment_matching.py.

Above the largest feasible scale (at eta = 0 that is every scale > 0) the second moment is not
matched: the kernel adds variance. The control, `ddim_noise`, adds the same total variance as
plain isotropic noise, so that a comparison shows what the shape of the mixture contributes.

A step that ends at clean data (b_s = 0, so tau = 0) keeps the moments with offsets of zero only:
mixture and control return the mean there. The source adds an offset; last_step 'source' does it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals
from gmm_diffusion.maths import moment_matching as mm
from gmm_diffusion.maths import noise as noise_lib
from gmm_diffusion.samplers import gaussian
from gmm_diffusion.samplers.base import Kernel, Plan, State
from gmm_diffusion.types import Array, StepGrid


class Row(NamedTuple):
  """weight of eps in mu, tau, scale in use, and the step's own Mixture, or the key to draw it, or
  ()."""

  weight: Array
  tau: Array
  scale: Array
  own: Any


LAST_STEPS = ('mean', 'source')
# Offsets of all steps are kept up to this many numbers (1 GiB of float32). Above it every step
# draws its own again, which keeps memory at O(D K) but costs time in the loop.
KEEP_AT_MOST = 2**28


class Options(NamedTuple):
  """A mixture as the user describes it.

  Attributes:
    components: K, 1..D.
    scale: length of the offsets (orthonormal or unit before centring), >= 0; a number or one per
      step.
    scale_interval: (low, high) in noise level b_t / a_t: steps that start outside have scale 0,
      which is DDIM or RFIM; () is everywhere. The convention of denoisers.guidance.classifier_free.
    offsets: a name in moment_matching.OFFSETS.
    form: 'A' or 'B' of [GMM eq. 8].
    covariance: 'diagonal', 'vub' (form B with offsets 'ortho' only) or 'exact'.
    infeasible: what to do above the largest feasible scale: 'clip', 'shrink' or 'error'.
    priors: K positive numbers that sum to 1; empty for uniform.
    shared: one draw of offsets for all steps, or one per step. Always one for all samples.
    offsets_seed: seed of the offsets.
    last_step: what a step that ends at clean data (b_s = 0) returns: the 'mean', or as the 'source'
      does the mean and an offset of `scale`.
  """

  components: int = 8
  scale: float | Sequence[float] = 1.0
  scale_interval: Sequence[float] = ()
  offsets: str = 'ortho'
  form: str = 'B'
  covariance: str = 'exact'
  infeasible: str = 'clip'
  priors: Sequence[float] = ()
  shared: bool = True
  offsets_seed: int = 0
  last_step: str = 'mean'


def check(options: Options) -> Options:
  """The options with sequences as tuples; raises UserError unless they make sense together."""
  sequences: dict[str, Any] = {
    name: tuple(value)
    for name, value in options._asdict().items()
    if isinstance(value, list | np.ndarray)
  }
  options = options._replace(**sequences)
  valid = {
    'offsets': mm.OFFSETS,
    'form': tuple(mm.COVARIANCES),
    'infeasible': mm.INFEASIBLE,
    'last_step': LAST_STEPS,
  }
  for name, values in valid.items():
    if getattr(options, name) not in values:
      raise UserError(f'unknown {name} {getattr(options, name)!r}; valid: {", ".join(values)}')
  if options.covariance not in mm.COVARIANCES[options.form]:
    raise UserError(
      f'unknown covariance {options.covariance!r} for form {options.form}; '
      f'valid: {", ".join(mm.COVARIANCES[options.form])}'
    )
  if options.covariance == 'vub' and options.offsets != 'ortho':
    raise UserError(
      f"covariance 'vub' bounds orthonormal offsets only, got offsets {options.offsets!r}; valid: "
      f'ortho'
    )
  if options.components < 1:
    raise UserError(f'components must be at least 1, got {options.components}')
  if not np.all(np.isfinite(options.scale)) or np.any(np.asarray(options.scale) < 0):
    raise UserError(f'scale must be >= 0, got {options.scale}')
  interval = options.scale_interval
  if interval and not (len(interval) == 2 and 0 <= interval[0] <= interval[1]):
    raise UserError(
      f'scale_interval must be () or (low, high) with 0 <= low <= high, got {interval}'
    )
  mm.check_priors(options.priors, options.components)
  return options


def _scales(options: Options, grid: StepGrid) -> np.ndarray:
  """The scale of each step, [N]: what was asked for, but 0 where there are no offsets."""
  steps = len(grid.t)
  scale = np.asarray(options.scale, np.float64)
  if scale.ndim and len(scale) != steps:
    raise UserError(f'scale must be one number or one per step ({steps}), got {len(scale)}')
  scales = np.broadcast_to(scale, (steps,))
  low, high = options.scale_interval or (0, np.inf)
  # products, not b / a: a may be 0, where only an infinite high is inside
  above = np.inf if np.isinf(high) else high * grid.a_t
  inside = (low * grid.a_t <= grid.b_t) & (grid.b_t <= above)
  return np.where(inside & ((grid.b_s > 0) | (options.last_step == 'source')), scales, 0)


def _step_keys(options, steps):
  return jax.random.split(jax.random.key(options.offsets_seed), steps)


def _mixture(key, options, dim, dtype):
  priors = jnp.asarray(mm.check_priors(options.priors, options.components), dtype)
  return mm.build(
    mm.draw_offsets(key, options.offsets, priors, dim), priors, options.form, options.covariance
  )


def _drawer(options, dim):
  """key -> the mixture at unit scale, compiled once whatever the other options are."""
  needed = ('components', 'offsets', 'form', 'covariance', 'priors')
  unit = Options(**{name: getattr(options, name) for name in needed})
  draw = jax.jit(_mixture, static_argnums=(1, 2, 3))
  return lambda key: draw(key, unit, dim, jnp.result_type(float))


def _report(options: Options, grid: StepGrid, tau: np.ndarray, dim: int):
  """The moment report and the mixtures: one, all, or () where there are too many to keep."""
  if not 1 <= options.components <= dim:
    raise UserError(
      f'components must be in 1..{dim} (the number of elements of a sample), got '
      f'{options.components}'
    )
  steps = len(tau)
  wanted = _scales(options, grid)
  keys = _step_keys(options, steps)
  draw = _drawer(options, dim)
  keep = options.shared or steps * options.components * dim <= KEEP_AT_MOST
  rows, mixtures = [], []
  for n in range(steps):
    if n == 0 or not options.shared:
      mixture = draw(keys[n])
      mixtures += [mixture] * keep
      summary = mm.summarise(mixture, options.form, options.covariance)
    largest = float(tau[n] * summary.largest) if np.isfinite(summary.largest) else np.inf
    # single-precision offsets know their bound to about 1e-6
    infeasible = bool(wanted[n] > largest * (1 + 1e-5))
    if infeasible and options.infeasible == 'error':
      raise UserError(
        f'scale {wanted[n]:g} is infeasible at step {n} of {steps} (t = {grid.t[n]:g}): the '
        f'largest is '
        f"{largest:.4g}; lower the scale, raise eta, or set infeasible to 'clip' or 'shrink'"
      )
    used = min(wanted[n], largest) if options.infeasible == 'shrink' else wanted[n]
    norm, trace = mm.residual(mixture, summary, options.form, options.covariance, tau[n], used)
    rows.append(
      {
        'step': n,
        't': float(grid.t[n]),
        's': float(grid.s[n]),
        'b_s': float(grid.b_s[n]),
        'tau': float(tau[n]),
        'largest_scale': largest if np.isfinite(largest) else None,
        'scale': float(used),
        'infeasible': {'clip': 'clipped', 'shrink': 'shrunk'}[options.infeasible]
        if infeasible
        else '',
        'mean_residual': float(used * summary.mean),
        'covariance_residual': norm / dim**0.5,
        'added_variance': trace / dim,
      }
    )
  return rows, mixtures


def _gmm(tau_of: Callable[[StepGrid, float], Array], eta: float, options: Options) -> Kernel:
  gaussian.check_eta(eta)
  options = check(options)

  def plan(grid, shape):
    tau = tau_of(grid, eta)
    rows, mixtures = _report(options, grid, tau, int(np.prod(shape)))
    scale = np.array([row['scale'] for row in rows])
    shared, own = (), ()
    if options.shared:
      shared = mixtures[0]
    elif mixtures:
      own = jax.tree.map(lambda *leaves: jnp.stack(leaves), *mixtures)
    else:
      own = jax.random.key_data(_step_keys(options, len(tau)))
    return Plan(Row(marginals.noise_weight(grid, tau), tau, scale, own), shared), rows

  def step(state, row, extra, shared, denoise, noise):
    mean = marginals.reverse_mean(denoise(state.x, row.now), row.a_s, extra.weight)
    flat = mean.reshape(len(mean), -1)
    if options.shared:
      mixture = shared
    elif isinstance(extra.own, mm.Mixture):
      mixture = extra.own
    else:
      mixture = _mixture(jax.random.wrap_key_data(extra.own), options, flat.shape[1], flat.dtype)
    if mixture.offsets.shape[1] != flat.shape[1]:
      raise UserError(
        f'the plan was made for samples of {mixture.offsets.shape[1]} elements, got shape '
        f'{mean.shape[1:]}; call kernel.plan with the shape of one sample'
      )
    k = noise_lib.categorical(noise.uniform, mixture.priors)
    z = None if eta == 0 else noise.normal.reshape(flat.shape)
    kick = mm.sample(mixture, options.form, options.covariance, extra.tau, extra.scale, k, z)
    return State(mean + kick.reshape(mean.shape).astype(mean.dtype)), {'component': k}

  return Kernel(plan, State, step)


def ddim_gmm(eta: float = 0.0, **options: Any) -> Kernel:
  """DDIM-GMM [GMM section 3]; options are those of `Options`."""
  return _gmm(marginals.posterior_std, eta, Options(**options))


def rfim_gmm(eta: float = 0.0, **options: Any) -> Kernel:
  """RFIM-GMM [GMM eq. 20]; options are those of `Options`."""
  return _gmm(marginals.flow_std, eta, Options(**options))


def _control(tau_of, eta, options):
  gaussian.check_eta(eta)
  options = check(options)

  def std(grid, tau, dim):
    added = np.array([row['added_variance'] for row in _report(options, grid, tau, dim)[0]])
    return np.sqrt(np.maximum(tau**2 + added, 0))

  return gaussian.gaussian(lambda grid: tau_of(grid, eta), std)


def ddim_noise(eta: float = 0.0, **options: Any) -> Kernel:
  """DDIM plus isotropic noise of the same total variance as ddim_gmm with these options."""
  return _control(marginals.posterior_std, eta, Options(**options))


def rfim_noise(eta: float = 0.0, **options: Any) -> Kernel:
  """RFIM plus isotropic noise of the same total variance as rfim_gmm with these options."""
  return _control(marginals.flow_std, eta, Options(**options))


def precisions(
  name: str, eta: float, options: dict[str, Any], grid: StepGrid, dim: int
) -> np.ndarray:
  """sum_k pi_k / nu_k of [GMM eq. 40] for each step, float64; 1 / tau^2 for Gaussian kernels."""
  tau = (marginals.flow_std if name.startswith('rfim') else marginals.posterior_std)(grid, eta)
  if name not in ('ddim_gmm', 'rfim_gmm'):
    with np.errstate(divide='ignore'):
      return 1 / np.asarray(tau) ** 2
  o = check(Options(**options))
  keys = _step_keys(o, len(tau))
  draw, scales = _drawer(o, dim), _scales(o, grid)
  mixture, out = None, []
  for n in range(len(tau)):
    if mixture is None or not o.shared:
      mixture = draw(keys[n])
    out.append(mm.precision(mixture, o.form, o.covariance, float(tau[n]), scales[n]))
  return np.array(out)
