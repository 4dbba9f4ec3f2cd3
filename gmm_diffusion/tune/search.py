"""CMA-ES [Hansen, arXiv 1604.00772] over the numbers of a sampler, of which `moved` has some.

They are searched without a gradient, by a score that has noise. All candidates of a generation have
the same noise, and each generation has noise of its own: what is lucky in one is not in the next.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from cmaes import CMA

from gmm_diffusion import samplers
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.tune import race
from gmm_diffusion.tune.race import Candidate

Times = Callable[[Any], Any]  # falling times -> those at which the denoiser may be asked


def evolution(
  make: Callable[[np.ndarray], Candidate],
  count: int,
  width: float,
  score: Callable[[Candidate, int], float | None],
  seed: int,
) -> Iterator[Candidate]:
  """The candidate at the mean of CMA-ES after each generation, until time is up.

  Args:
    make: moves [count] -> candidate, where zeros change nothing; raises UserError for moves that
      cannot be used.
    count: of moves, at least 2.
    width: deviation of the first moves.
    score: (candidate, number of the generation) -> what becomes least; None where time is up.
    seed: of the moves, non-negative.
  """
  optimizer = CMA(np.zeros(count), width, seed=seed)
  reached = make(optimizer.mean)
  while True:
    tried = []
    for moves in [optimizer.ask() for _ in range(optimizer.population_size)]:
      try:
        value = score(make(moves), optimizer.generation)
      except UserError:
        value = np.inf
      if value is None:
        return
      tried.append((moves, value))
    optimizer.tell(tried)
    with contextlib.suppress(UserError):  # the next mean may be used again
      reached = make(optimizer.mean)
    yield reached


def takes_ratios(one: Candidate) -> bool:
  """Whether the sampler takes `ratios`, and has a step whose ratio may differ from 1."""
  free = len(one.table.keep) - 1 - _extrapolates(one)
  return 'ratios' in samplers.options_of(one.name) and free > 0


def _extrapolates(one):
  _, options = samplers.resolve(one.name, dict(one.options))  # with defaults
  return bool(options.get('extrapolate'))


def free_numbers(one: Candidate) -> int:
  """How many numbers `moved` takes."""
  return len(_times_of(one)) + takes_ratios(one) * (len(one.table.keep) - 1)


def moved(one: Candidate, moves: np.ndarray, schedule: Schedule, times: Times) -> Candidate:
  """The sampler with other times and ratios.

  Args:
    one: a sampler of the library, not a fitted table.
    moves: [free_numbers(one)]. By the first, times a mean step, the log-SNR of the first call
      rises, from that of the noisiest time with a signal on. The steps in log-SNR between calls are
      multiplied by exp of the next ones. The rest is added to the ratios [DC-Solver, arXiv
      2409.03755] from the second step on, if the sampler takes them, but for that of a last step
      that extrapolates; the polynomial goes through one prediction before.
    schedule: of the denoiser.
    times: see Times.

  Raises:
    UserError: the sampler cannot be used with them.
  """
  t, options = _times_of(one), dict(one.options)
  first, factors, added = np.split(np.asarray(moves), [1, len(t)])
  if takes_ratios(one):
    added = np.append(0, added)
    added[-1] *= not _extrapolates(one)
    ratios = np.round(options.get('ratios', np.ones(len(added))) + added, 3)
    options.update(ratios=tuple(ratios.tolist()), compensate=1)
  t = times(_stretched(t, first[0], np.exp(factors), schedule))
  grid = ' '.join(f'{value:.4g}' for value in t)
  made = race.embedded(one.name, options, schedule, t, f'times {grid}')
  if len(made.table.keep) != len(one.table.keep) or not race.is_finite(made.table):
    raise UserError(f'{made} cannot be used')
  return made


def _times_of(one):
  return np.unique(one.table.time.t)[::-1]  # Heun asks twice at a time


def _stretched(t, rise, factors, schedule):
  """Times whose first log-SNR rises by a part of a mean step, and steps in it times factors."""
  noisiest = schedule.training_times[-1 if schedule.signal(schedule.last) else -2]
  least, most = schedule.log_snr(np.array([noisiest, schedule.first]))
  level = schedule.log_snr(np.clip(t, schedule.first, noisiest))
  steps = np.maximum(np.diff(level), 1e-3)
  room = 1e-3 * np.arange(len(t))[::-1]  # that later times are still different
  start = np.clip(level[0] + rise * np.mean(steps), least, most - room[0])
  first = schedule.last if start <= least else schedule.time_of_log_snr(start)
  level = np.minimum(start + np.cumsum(steps * factors), most - room[1:])
  return np.append(first, schedule.time_of_log_snr(level))
