"""Time grids -> StepGrid. The only code that knows what the previous step is.

Every grid has exactly the number of steps asked for. On a discrete schedule with T times:

  uniform    rounded, evenly spaced over 0..T-1, both ends hit   [ADM respacing "N"]
  trailing   round(T - i T / N) - 1: starts at T-1               [Lin et al. 2305.08891, table 2]
  leading    floor(i T / N): ends at 0, never reaches T-1        [DDIM code, "uniform"]
  stride     the smallest integer stride that gives N times      [ADM respacing "ddimN"]
  quadratic  floor((i sqrt(0.8 T) / (N - 1))^2)                  [DDIM section 5, CIFAR-10]
  log_snr    evenly spaced in log-SNR, fractional times          [DPM-Solver section 4.4]
  karras     evenly spaced in sigma^(1 / rho), sigma = b / a     [EDM eq. 5], fractional times
  tangent    evenly spaced in the angle whose tangent is sigma   [AYS 2404.14507], fractional times
  dmn        least bound on the error of a solver of order 3     [grid_search.py], fractional times

On a continuous schedule all but trailing, leading and stride exist, and start at the noisiest time.
Where the signal level is 0 there, sigma is infinite: log_snr, karras, tangent and dmn then space
the other times from next to it. A grid of one's own is given by its times or its sigmas.

log_snr and karras ask at the schedule's least noisy time and step from there to clean data. tangent
and dmn step over it, so that no call is spent where there is nearly no noise.
"""

import functools
from collections.abc import Callable

import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grid_search
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.types import StepGrid


def nearest(schedule: Schedule, ratios) -> np.ndarray:
  """The times with b / a nearest to these ratios, rising, float64: whole where the schedule is
  discrete, each once, and none without signal, where eps does not say what x_0 is."""
  wanted = schedule.time_of_log_snr(-2 * np.log(ratios))
  wanted = np.clip(wanted, schedule.first, schedule.last)
  wanted = np.unique(np.round(wanted) if schedule.discrete else wanted)
  return wanted[schedule.signal(wanted) > 0]


def from_times(schedule: Schedule, times, end: float | None = None) -> StepGrid:
  """Steps through the given times.

  Args:
    schedule: the noise schedule.
    times: times at which the denoiser is evaluated, strictly decreasing, shape [N].
    end: the time that the last step reaches; None for the clean time.

  Returns:
    A StepGrid of N float64 rows.

  Raises:
    UserError: if the times do not decrease or leave the schedule.
  """
  end = schedule.clean if end is None else end
  path = np.append(np.asarray(times, np.float64), end)
  if len(path) < 2:
    raise UserError('grid times must not be empty')
  if not np.all(np.diff(path) < 0):
    n = int(np.argmax(~(np.diff(path) < 0)))
    raise UserError(
      f'grid times must be strictly decreasing down to {end:g}, got {path[n]:g} before '
      f'{path[n + 1]:g}'
    )
  if path[0] > schedule.last or path[-1] < schedule.clean:
    raise UserError(
      f'grid times must lie in [{schedule.clean:g}, {schedule.last:g}], got {path[0]:g} to '
      f'{path[-1]:g}'
    )
  now, then = schedule.at(path[:-1]), schedule.at(path[1:])
  return StepGrid(now.t, then.t, now.a, now.b, then.a, then.b)


def from_sigmas(schedule: Schedule, sigmas) -> StepGrid:
  """Steps through the given ratios of noise and signal.

  Args:
    schedule: the noise schedule.
    sigmas: b / a, strictly decreasing, shape [N + 1]; the last one is where the grid ends, 0 for
      clean data, as k-diffusion and EDM write their lists.

  Returns:
    A StepGrid of N float64 rows; its times may be fractional on a discrete schedule.

  Raises:
    UserError: if the sigmas do not decrease or leave the schedule.
  """
  sigmas = np.asarray(sigmas, np.float64)
  if sigmas.ndim != 1 or len(sigmas) < 2:
    raise UserError(f'sigmas must be a list of at least 2 numbers, got shape {sigmas.shape}')
  with np.errstate(divide='ignore'):
    last = np.asarray(schedule.last, np.float64)
    most = schedule.noise(last) / schedule.signal(last)
  if not (np.all(np.diff(sigmas) < 0) and 0 <= sigmas[-1] and sigmas[0] <= most * (1 + 1e-9)):
    raise UserError(
      f'sigmas must be strictly decreasing in [0, {most:g}], got {np.array2string(sigmas)}'
    )
  with np.errstate(divide='ignore'):
    times = schedule.time_of_log_snr(-2 * np.log(sigmas))
  times[0] = min(times[0], schedule.last)
  return from_times(schedule, times[:-1], schedule.clean if sigmas[-1] == 0 else times[-1])


def _distinct(times: np.ndarray) -> np.ndarray:
  """Raises repeated entries of an ascending integer grid by as little as possible."""
  index = np.arange(len(times))
  return np.maximum.accumulate(times - index) + index


def _uniform(schedule, n):
  if not schedule.discrete:
    return np.linspace(schedule.last, schedule.clean, n + 1)[:-1]
  # round half to even as the source does; one step starts from pure noise
  return np.round(np.linspace(schedule.last, 0, n))


def _trailing(schedule, n):
  T = schedule.last + 1
  return np.round(T - np.arange(n) * T / n) - 1


def _leading(schedule, n):
  T = schedule.last + 1
  return (np.arange(n) * T // n)[::-1]


def _stride(schedule, n):
  T = int(schedule.last) + 1
  for stride in range(1, T + 1):
    if len(range(0, T, stride)) == n:
      return np.arange(0, T, stride)[::-1]
  raise UserError(
    f'no integer stride over {T} times gives {n} steps; use grid "uniform", "trailing" or "leading"'
  )


def _quadratic(schedule, n):
  if not schedule.discrete:
    return schedule.last * np.linspace(1, 0, n + 1)[:-1] ** 2
  top = np.sqrt(0.8 * (schedule.last + 1))
  times = _distinct(
    np.floor(np.linspace(0, top, n) ** 2) if n > 1 else np.array([np.floor(top**2)])
  )
  # de-duplication may push a very fine grid past the end
  return np.minimum(times, schedule.last - np.arange(n)[::-1])[::-1]


def _ends(schedule):
  """log-SNR of the noisiest and the least noisy time."""
  # A flow has log-SNR -inf at its noisiest time, so both ends stay `first` away from it.
  last = schedule.last if schedule.signal(schedule.last) > 0 else schedule.last - schedule.first
  return schedule.log_snr(np.array([last, schedule.first]))


def _log_snr(schedule, n):
  times = schedule.time_of_log_snr(np.linspace(*_ends(schedule), n))
  times[0] = schedule.last
  return times


def _karras(schedule, n, rho):
  if not rho > 0:
    raise UserError(f'rho must be > 0, got {rho:g}')
  roots = np.exp(-_ends(schedule) / (2 * rho))  # sigma^(1 / rho)
  times = schedule.time_of_log_snr(-2 * rho * np.log(np.linspace(*roots, n)))
  times[0] = schedule.last
  return times


def _tangent(schedule, n):
  """The best grid of AYS, arXiv 2404.14507, for Gaussian data of deviation one."""
  angles = np.arctan(np.exp(-_ends(schedule) / 2))
  times = schedule.time_of_log_snr(-2 * np.log(np.tan(np.linspace(*angles, n))))
  times[0] = schedule.last
  return times


def _dmn(schedule, n):
  begin, end = _ends(schedule) / 2
  times = schedule.time_of_log_snr(2 * grid_search.bounded(begin, end, n - 1))
  times[0] = schedule.last
  return times


GRIDS: dict[str, Callable[..., np.ndarray]] = {
  'uniform': _uniform,
  'trailing': _trailing,
  'leading': _leading,
  'stride': _stride,
  'quadratic': _quadratic,
  'log_snr': _log_snr,
  'karras': _karras,
  'tangent': _tangent,
  'dmn': _dmn,
}
STEPS_OVER_FIRST = ('tangent', 'dmn')
DISCRETE_ONLY = ('trailing', 'leading', 'stride')


def make(
  schedule: Schedule, steps: int, grid: str = 'uniform', end: str = 'clean', rho: float = 7.0
) -> StepGrid:
  """A grid with exactly `steps` steps.

  Args:
    schedule: the noise schedule.
    steps: number of steps, 1..T on a discrete schedule of T times.
    grid: a name in GRIDS.
    end: 'clean' to finish at a = 1, b = 0; 'first' to finish at the schedule's first time (abar_0,
      as LDM and DPM-Solver do). Leading and stride then move up by one, as in LDM; the others
      take it as their end.
    rho: of grid 'karras', > 0: larger puts more steps near clean data.

  Returns:
    A StepGrid of `steps` float64 rows.

  Raises:
    UserError: on an unknown name or an impossible number of steps.
  """
  if grid not in GRIDS:
    raise UserError(f'unknown grid {grid!r}; valid: {", ".join(GRIDS)}')
  if end not in ('clean', 'first'):
    raise UserError(f'unknown end {end!r}; valid: clean, first')
  if grid in DISCRETE_ONLY and not schedule.discrete:
    raise UserError(
      f'grid {grid!r} needs a discrete schedule; valid here: '
      f'{", ".join(name for name in GRIDS if name not in DISCRETE_ONLY)}'
    )
  most = int(schedule.last) + (end == 'clean') if schedule.discrete else 10**6
  if not 1 <= steps <= most:
    raise UserError(f'steps must be in 1..{most}, got {steps}')
  place = functools.partial(GRIDS[grid], schedule, **({'rho': rho} if grid == 'karras' else {}))
  if end == 'clean':
    over = grid in STEPS_OVER_FIRST
    return from_times(schedule, place(steps + 1)[:-1] if over else place(steps))
  times = place(steps)
  if grid in ('leading', 'stride'):  # their last time is the first of the schedule
    times = np.minimum(times + 1, schedule.last - np.arange(steps))
  elif grid == 'trailing':
    times = np.maximum(times, schedule.first + np.arange(steps, 0, -1))
  else:
    times = place(steps + 1)[:-1]
  return from_times(schedule, times, end=schedule.first)
