"""What training weights and how often it draws each noise level.

With the signal-to-noise ratio SNR = a_t^2 / b_t^2, the error of eps has the weight

  (1) min(SNR, gamma) / SNR              min-SNR  [Hang et al. 2023, arXiv 2303.09556]
  (2) 1 / (1 + SNR)^gamma                P2       [Choi et al. 2022, arXiv 2204.00227, k = 1]

What a network outputs instead of eps is off by the error of eps over |d eps / d output|:

  (3) weight of an output = weight of eps * (d eps / d output)^2

and noise levels are drawn from

  (4) ln(b_t / a_t) ~ N(mean, deviation^2)           [EDM table 1, "training"]
  (5) u_i = u_0 + i / B mod 1, one u_0 for a batch   [VDM, arXiv 2107.00630]

For a rectified flow (4) is the logit-normal distribution of t.

An item that is known with noise alone, x_n = a_n x_0 + b_n e with one e for ever, teaches all
noisier times [ambient diffusion, 2411.02780]. With r = a_t / a_n, kappa = 1 - r^2 b_n^2 / b_t^2

  (6) x_t = r x_n + sqrt(b_t^2 - r^2 b_n^2) z
  (7) E[x_n | x_t] = a_n x_0 + (r b_n^2 / b_t) eps = a_n kappa x_0 + (r b_n^2 / b_t^2) x_t
  (8) x_0* = (x_n - (r b_n^2 / b_t^2) x_t) / (a_n kappa)

and |(7) - x_n|^2 = (a_n kappa)^2 |x_0 - x_0*|^2: the noisy target x_0* takes the place of x_0 with
the weight kappa^2, and the minimiser is E[x_0 | x_t] for all t noisier than n. The other way, x_n
is drawn given x_t and x_0 by

  (9) x_n = a_n kappa x_0 + (r b_n^2 / b_t^2) x_t + b_n sqrt(kappa) z

A power average of the weights [EDM2, arXiv 2312.02696, section 3.1] is that of the decay

  (10) beta_s = (1 - 1 / s)^(gamma + 1) at update s

after T updates those of s count as s^gamma. As a share of T that profile has the deviation
(gamma + 1)^(1/2) / ((gamma + 2) (gamma + 3)^(1/2)), its width, which says more than gamma.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.maths.marginals import PREDICTIONS, match
from gmm_diffusion.types import Array, Time


def _snr(times: Time) -> np.ndarray:
  with np.errstate(divide='ignore'):
    return (np.asarray(times.a, np.float64) / np.asarray(times.b, np.float64)) ** 2


def min_snr(times: Time, gamma: float = 5.0) -> np.ndarray:
  """Equation (1), float64 [N]; 1 where there is no signal."""
  with np.errstate(divide='ignore'):
    return np.minimum(1.0, gamma / _snr(times))


def p2(times: Time, gamma: float = 1.0) -> np.ndarray:
  """Equation (2), float64 [N]."""
  return (1 + _snr(times)) ** -gamma


WEIGHTS = {'min_snr': min_snr, 'p2': p2}  # (times, gamma) -> weight of the error of eps


def of_output(weights: np.ndarray, kind: str, times: Time) -> np.ndarray:
  """Equation (3): weights of the error of eps [N] as those of a network that outputs `kind`."""
  with jax.enable_x64(True):  # predictions are linear in (x, output)
    slope = PREDICTIONS[kind](np.zeros(len(weights)), np.ones(len(weights)), times).eps
  return weights * np.asarray(slope, np.float64) ** 2


def log_normal(times: Time, mean: float, deviation: float) -> np.ndarray:
  """Equation (4) on a list of increasing times: the probability of each, float64 [N].

  A time stands for the levels that are nearer to it than to its neighbours, the first and the last
  for all beyond them too.
  """
  with np.errstate(divide='ignore'):
    level = -0.5 * np.log(_snr(times))
  between = (level[:-1] + level[1:]) / 2
  with jax.enable_x64(True):
    below = np.asarray(jax.scipy.special.ndtr((between - mean) / deviation), np.float64)
  return np.diff(np.concatenate([[0.0], below, [1.0]]))


def spread(first: Array, position: Array, size: int) -> Array:
  """Equation (5): u_i in [0, 1) for the positions i in a batch of a size."""
  return (first + position / size) % 1


def noisier(x_n: Array, z: Array, now: Time, level: Time) -> Array:
  """Equation (6): x_t [B, ...] of items x_n known at the time `level`, no noisier than `now`; z is
  N(0, I)."""
  r, b_n, b_t = (match(y, x_n) for y in (now.a / level.a, level.b, now.b))
  return r * x_n + jnp.sqrt(jnp.maximum(b_t**2 - (r * b_n) ** 2, 0)) * z


def kappa(now: Time, level: Time) -> Array:
  """1 - r^2 b_n^2 / b_t^2: 1 for clean items, 0 at the level itself."""
  return 1 - (now.a * level.b / (level.a * now.b)) ** 2


def noisy_target(x_n: Array, x_t: Array, now: Time, level: Time) -> Array:
  """Equation (8), [B, ...], at times noisier than `level`."""
  back = now.a * level.b**2 / (level.a * now.b**2)
  scale = level.a * kappa(now, level)
  return (x_n - match(back, x_n) * x_t) / match(scale, x_n)


def earlier(x_t: Array, x0: Array, z: Array, now: Time, level: Time) -> Array:
  """Equation (9): x_n [B, ...] at the time `level`, no noisier than `now`; z is N(0, I)."""
  own = jnp.maximum(kappa(now, level), 0)
  back = now.a * level.b**2 / (level.a * now.b**2)
  mean = match(level.a * own, x0) * x0 + match(back, x_t) * x_t
  return mean + match(level.b * jnp.sqrt(own), z) * z


def power_share(width: float, step: Array) -> Array:
  """1 - beta_s of equation (10) at update `step`, from 1: the share of the new weights, in float32
  also where beta_s is nearly 1. The width is below 0.288, where gamma is 0."""
  square = width**-2.0
  gamma = np.roots([1, 7, 16 - square, 12 - square]).real.max()
  return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / jnp.asarray(step, jnp.float32)))
