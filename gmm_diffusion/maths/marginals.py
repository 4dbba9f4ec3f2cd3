"""Forward marginals, reverse kernel moments, and conversions between predictions.

Notation: x_t = a_t x_0 + b_t eps with eps ~ N(0, I). Equations:

  (1) x_0      = (x_t - b_t eps) / a_t
  (2) v        = a_t eps - b_t x_0                  [Salimans & Ho, appendix D]
  (3) velocity = eps - x_0                          [rectified flow]
  (4) score    = -eps / b_t
  (5) mu       = a_s x_0 + sqrt(b_s^2 - tau^2) eps  [GMM eq. 6, 20]
  (6) tau      = eta (b_s / b_t) sqrt(b_t^2 - (a_t / a_s)^2 b_s^2)   [DDIM eq. 16]
  (7) tau      = eta b_s                            [GMM eq. 20, RFIM]
  (8) tau      = sqrt(eta) (b_s / b_t) sqrt(b_t^2 - b_s^2)           [RDDM, 2308.13712]

(6) is DDIM's formula for any (a, b): with a^2 + b^2 = 1 the root is sqrt(1 - a_t^2 / a_s^2). (8)
has no a_t / a_s: the chain of RDDM moves x_0 and does not scale it.

  (9)  beta = b_t^2 - (a_t / a_s)^2 b_s^2             what the chain adds from s to t
  (10) g    = a_s - a_t sqrt(b_s^2 - tau^2) / b_t     weight of x_0 in mu where x_t stays
"""

import jax.numpy as jnp
import numpy as np

from gmm_diffusion.types import Array, Prediction, StepGrid, Time


def match(level: Array, x: Array) -> Array:
  """A [B] level with axes appended to broadcast against x [B, ...]; a scalar stays one."""
  level = jnp.asarray(level, x.dtype)
  return level if level.ndim == 0 else jnp.reshape(level, level.shape + (1,) * (x.ndim - 1))


def diffuse(x0: Array, eps: Array, time: Time) -> Array:
  """x_t = a_t x_0 + b_t eps, all of shape [B, ...]."""
  return match(time.a, x0) * x0 + match(time.b, x0) * eps


def from_eps(x: Array, eps: Array, time: Time) -> Prediction:
  """Equation (1). Divides by a_t: not for a_t = 0 (zero-SNR schedules, rectified flow at t = 1)."""
  return Prediction((x - match(time.b, x) * eps) / match(time.a, x), eps)


def from_x0(x: Array, x0: Array, time: Time) -> Prediction:
  """The eps that leads from x0 to x."""
  return Prediction(x0, (x - match(time.a, x) * x0) / match(time.b, x))


def from_v(x: Array, v: Array, time: Time) -> Prediction:
  """Equation (2) solved with x_t = a x_0 + b eps, for any (a, b)."""
  a, b = match(time.a, x), match(time.b, x)
  norm = a**2 + b**2
  return Prediction((a * x - b * v) / norm, (b * x + a * v) / norm)


def from_velocity(x: Array, velocity: Array, time: Time) -> Prediction:
  """Equation (3) solved with x_t = a x_0 + b eps; for the flow x_0 = x - t velocity."""
  a, b = match(time.a, x), match(time.b, x)
  return Prediction((x - b * velocity) / (a + b), (x + a * velocity) / (a + b))


def from_score(x: Array, score: Array, time: Time) -> Prediction:
  """Equation (4)."""
  return from_eps(x, -match(time.b, x) * score, time)


# What a network may output: name -> (x, output, time) -> Prediction.
PREDICTIONS = {
  'eps': from_eps,
  'x0': from_x0,
  'v': from_v,
  'velocity': from_velocity,
  'score': from_score,
}


def target(kind: str, x0: Array, eps: Array, time: Time) -> Array:
  """The training target of a network that outputs `kind`: inverse of PREDICTIONS[kind]."""
  a, b = match(time.a, x0), match(time.b, x0)
  return {
    'eps': lambda: eps,
    'x0': lambda: x0,
    'v': lambda: a * eps - b * x0,
    'velocity': lambda: eps - x0,
    'score': lambda: -eps / b,
  }[kind]()


def posterior_std(grid: StepGrid, eta: float) -> Array:
  """Equation (6), shape [N], float64. eta = 1 is the DDPM posterior deviation."""
  return eta * grid.b_s / grid.b_t * np.sqrt(added_variance(grid))


def added_variance(grid: StepGrid) -> Array:
  """Equation (9), shape [N], float64."""
  ratio = grid.a_t / grid.a_s
  return np.maximum(grid.b_t**2 - ratio**2 * grid.b_s**2, 0.0)


def flow_std(grid: StepGrid, eta: float) -> Array:
  """Equation (7), shape [N], float64, at most b_s."""
  return eta * grid.b_s


def residual_std(grid: StepGrid, eta: float) -> Array:
  """Equation (8), shape [N], float64; eta scales the variance."""
  inner = np.maximum(grid.b_t**2 - grid.b_s**2, 0.0)
  return np.sqrt(eta * inner) * grid.b_s / grid.b_t


def noise_weight(grid: StepGrid, tau: Array) -> np.ndarray:
  """sqrt(b_s^2 - tau^2), the weight of eps in equation (5), shape [N], float64."""
  return np.sqrt(np.maximum(grid.b_s**2 - tau**2, 0.0))


def x0_weight(grid: StepGrid, tau: Array) -> Array:
  """Equation (10), shape [N], float64."""
  return grid.a_s - noise_weight(grid, tau) * grid.a_t / grid.b_t


def reverse_mean(prediction: Prediction, a_s: Array, weight: Array) -> Array:
  """Equation (5) with weight = `noise_weight`."""
  x0, eps = prediction.x0, prediction.eps
  return match(a_s, x0) * x0 + match(weight, x0) * eps
