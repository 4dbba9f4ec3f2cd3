"""Noise schedules q(x_t | x_0) = N(a_t x_0, b_t^2 I), float64 on the host.

  variance preserving  a_t = sqrt(abar_t), b_t = sqrt(1 - abar_t)   [DDIM eq. 4]
  rectified flow       a_t = 1 - t,        b_t = t                  [GMM eq. 18]
  EDM                  a_t = 1,            b_t = t = sigma          [EDM table 1]
  powers               a_t = (1 - t)^(p+1), b_t = n t^((q+1)/2)     [RDDM, 2308.13712]

A discrete schedule has integer times 0..T-1. Between them, and down to the clean
time -1 where abar = 1, log a_t is linear, so that a log-SNR grid of any size has an
exact inverse. float64 matters: a float32 cumprod loses 1.7e-4 relative in 1 - abar_0.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.types import Array, Time


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A noise schedule.

  Attributes:
    signal: t -> a_t, float64.
    noise: t -> b_t, float64.
    time_of_log_snr: log(a^2 / b^2) -> t, the inverse of `log_snr`.
    clean: the time where a = 1 and b = 0.
    first: the least noisy time at which a denoiser is asked.
    last: the noisiest time, where sampling starts.
    discrete: whether the times are integers first..last.
    training_times: increasing times among which training draws, float64.
    network_input: (x, Time) -> (x, time) as the network sees them.
  """

  signal: Callable[[Array], np.ndarray]
  noise: Callable[[Array], np.ndarray]
  time_of_log_snr: Callable[[Array], np.ndarray]
  clean: float
  first: float
  last: float
  discrete: bool
  training_times: np.ndarray
  network_input: Callable[[Array, Time], tuple[Array, Array]]

  def at(self, t: Array) -> Time:
    """Time, signal and noise level at t, float64."""
    t = np.asarray(t, np.float64)
    return Time(t, self.signal(t), self.noise(t))

  def log_snr(self, t: Array) -> np.ndarray:
    """log(a_t^2 / b_t^2); infinite at the clean time."""
    with np.errstate(divide='ignore'):
      return 2 * (np.log(self.signal(t)) - np.log(self.noise(t)))


def from_betas(betas: Array) -> Schedule:
  """Variance-preserving schedule with the given variances, shape [T], in (0, 1)."""
  betas = np.asarray(betas, np.float64)
  if betas.ndim != 1 or not np.all((betas > 0) & (betas < 1)):
    raise UserError(
      f'betas must be a vector of values in (0, 1), got range [{betas.min()}, {betas.max()}]'
    )
  T = len(betas)
  knots = np.arange(-1, T)
  log_a = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-betas))])

  def log_signal(t):
    return np.interp(np.asarray(t, np.float64), knots, log_a)

  def time_of_log_snr(value):
    # a^2 = sigmoid(log-SNR), so log a = -softplus(-log-SNR) / 2
    return np.interp(0.5 * np.logaddexp(0, -np.asarray(value, np.float64)), -log_a, knots)

  return Schedule(
    signal=lambda t: np.exp(log_signal(t)),
    noise=lambda t: np.sqrt(np.abs(np.expm1(2 * log_signal(t)))),  # abs: not -0 at the clean time
    time_of_log_snr=time_of_log_snr,
    clean=-1,
    first=0,
    last=T - 1,
    discrete=True,
    training_times=np.arange(T, dtype=np.float64),
    network_input=lambda x, time: (x, time.t),
  )


def linear(T: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> Schedule:
  """Linear variances [DDPM section 4]."""
  return from_betas(np.linspace(beta_min, beta_max, T))


def sqrt_linear(T: int = 1000, beta_min: float = 0.0015, beta_max: float = 0.0195) -> Schedule:
  """Variances linear in their square root, called "linear" in [LDM]."""
  return from_betas(np.linspace(beta_min**0.5, beta_max**0.5, T) ** 2)


def cosine(T: int = 1000, offset: float = 0.008, cap: float = 0.999) -> Schedule:
  """abar proportional to cos^2, variances capped at `cap` [Nichol & Dhariwal eq. 17]."""
  f = np.cos((np.arange(T + 1) / T + offset) / (1 + offset) * np.pi / 2) ** 2
  return from_betas(np.minimum(1 - f[1:] / f[:-1], cap))


def rectified_flow() -> Schedule:
  """Straight line from data at t = 0 to noise at t = 1 [GMM eq. 18]."""
  as_float = lambda t: np.asarray(t, np.float64)
  # b / a = exp(-log-SNR / 2)
  inverse = lambda value: 1 / (1 + np.exp(as_float(value) / 2))
  return _up_to_one(lambda t: 1 - as_float(t), as_float, inverse)


def _up_to_one(signal, noise, time_of_log_snr) -> Schedule:
  """A continuous schedule from clean data at t = 0 to no signal at t = 1."""
  return Schedule(
    signal=signal,
    noise=noise,
    time_of_log_snr=time_of_log_snr,
    clean=0.0,
    first=1e-3,
    last=1.0,
    discrete=False,
    training_times=np.arange(1, 1001) / 1000,
    network_input=lambda x, time: (x, 1000 * time.t),  # the range of the usual embeddings
  )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5) -> Schedule:
  """Variance exploding, t = sigma [EDM table 1, column "ours"]; raises UserError unless 0 <
  sigma_min < sigma_max."""
  if not 0 < sigma_min < sigma_max:
    raise UserError(
      f'sigma_min must be in (0, sigma_max), got sigma_min {sigma_min:g} and sigma_max '
      f'{sigma_max:g}'
    )
  as_float = lambda t: np.asarray(t, np.float64)

  def network_input(x, time):
    # c_in keeps the input near unit variance; c_noise = log(sigma) / 4, times 1000
    b = jnp.reshape(time.b, jnp.shape(time.b) + (1,) * (x.ndim - jnp.ndim(time.b)))
    return x / jnp.sqrt(b**2 + sigma_data**2), 250 * jnp.log(time.b)

  return Schedule(
    signal=lambda t: np.ones_like(as_float(t)),
    noise=as_float,
    time_of_log_snr=lambda value: np.exp(-as_float(value) / 2),
    clean=0.0,
    first=sigma_min,
    last=sigma_max,
    discrete=False,
    training_times=np.geomspace(sigma_min, sigma_max, 1000),
    network_input=network_input,
  )


def power(signal_power: float = 1.0, noise_power: float = 1.0, noise_end: float = 1.0) -> Schedule:
  """The signal falls as (1 - t)^(signal_power + 1), the variance rises as t^(noise_power + 1) to
  noise_end^2. RDDM adds up steps of these sizes, (1 - t)^p and t^q, and is best with p = q = 1; p =
  0, q = 1 is the rectified flow.

  Raises:
    UserError: a power is not above -1, or noise_end is not positive.
  """
  if min(signal_power, noise_power) <= -1 or not noise_end > 0:
    raise UserError(
      f'schedule power needs powers above -1 and noise_end above 0, got {signal_power:g}, '
      f'{noise_power:g} and {noise_end:g}'
    )
  as_float = lambda t: np.asarray(t, np.float64)
  signal = lambda t: (1 - as_float(t)) ** (signal_power + 1)
  noise = lambda t: noise_end * as_float(t) ** ((noise_power + 1) / 2)

  def time_of_log_snr(value):
    # b / a rises with t; halving [0, 1] so often leaves nothing between two numbers of float64
    value = as_float(value)
    ratio = np.exp(-np.clip(value, -1400, 1400) / 2)
    low, high = np.zeros_like(ratio), np.ones_like(ratio)
    for _ in range(1100):  # down to the least positive number
      middle = (low + high) / 2
      beyond = noise(middle) > ratio * signal(middle)
      low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
      if np.all((high - low) <= np.spacing(low)):
        break
    return np.select([value == np.inf, value == -np.inf], [0.0, 1.0], high)

  return _up_to_one(signal, noise, time_of_log_snr)


SCHEDULES = {
  'linear': linear,
  'sqrt_linear': sqrt_linear,
  'cosine': cosine,
  'rectified_flow': rectified_flow,
  'edm': edm,
  'power': power,
}
