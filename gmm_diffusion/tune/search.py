"""CMA-ES [Hansen, arXiv 1604.00772] over the numbers of a sampler: of `moved` or of `chosen`.

They are searched without a gradient, by a score that has noise. All candidates of a generation have
the same noise, and each generation has noise of its own: what is lucky in one is not in the next.
`shifted` and `predicted` are single candidates, which need no search.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from cmaes import CMA

from gmm_diffusion import samplers
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.samplers import compensation, usf
from gmm_diffusion.samplers.compensation import Compensation
from gmm_diffusion.samplers.usf import Choice
from gmm_diffusion.tune import race
from gmm_diffusion.tune.race import Candidate
from gmm_diffusion.types import StepGrid, Time

SHIFTS = (-0.8, -0.4, -0.2, 0.2, 0.4, 0.8)  # of `shifted`: 0.4 is a fifth of the noise level
FLIPS, ORDERS, ENDS = 0.1, 4, 4  # a move that flips a choice; orders, and ends, for a move of 1

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


def predicted(
  some: Sequence[Candidate],
  known: Mapping[int, Sequence[float]],
  schedule: Schedule,
  times: Times,
) -> list[Candidate]:
  """Samplers with the ratios that those found for other numbers of calls predict, where they take
  them.

  The cascade of DC-Solver [arXiv 2409.03755] fits ratios by polynomials in n / N and N. Here they
  are interpolated along the steps, the last beside the last, and then in N; beyond the largest and
  the least N they are those of that N.

  Args:
    some: samplers without ratios.
    known: calls -> ratios [calls]; without any, there is nothing to predict.
    schedule, times: as for `moved`.
  """
  out, numbers = [], sorted(known)
  for one in some if known else ():
    places = np.linspace(0, 1, len(one.table.keep))
    each = [np.interp(places, np.linspace(0, 1, n), known[n]) for n in numbers]
    ratios = np.array([np.interp(len(places), numbers, part) for part in np.transpose(each)])
    if takes_ratios(one):
      moves = np.append(np.zeros(len(_times_of(one))), ratios[1:] - 1)
      with contextlib.suppress(UserError):  # they cannot be used
        out.append(moved(one, moves, schedule, times))
  return out


def shifted(one: Candidate, shift: float, schedule: Schedule, times: Times) -> Candidate:
  """The table that asks the denoiser, from the second call on, at other times than those of the
  states: their log-SNR is larger by `shift`. What it does with the predictions stays.

  This is the time shift of arXiv 2305.15583 with one number for all samples and steps, where the
  source looks for the time that fits the variance of each state. As there, x_T is asked about at
  its own time.
  """
  t, index = np.unique(-one.table.time.t, return_inverse=True)  # falling; Heun asks twice at a time
  level = schedule.log_snr(-t[1:]) + shift
  t = times(np.append(-t[0], np.minimum(schedule.time_of_log_snr(level), -t[0])))
  now = schedule.at(t[index])
  table = one.table._replace(time=Time(now.t, now.a, now.b))
  words = f'{one}, network times moved by {shift:+g} in log-SNR'
  return Candidate('', (), words, table, one.bands)


def takes_choices(one: Candidate) -> bool:
  """Whether `chosen` can begin with its times: it asks once at each."""
  return len(_times_of(one)) == len(one.table.keep)


def choices(calls: int) -> int:
  """How many numbers `chosen` takes."""
  return 4 * calls - 3


def chosen(one: Candidate, moves: np.ndarray, schedule: Schedule, times: Times) -> Candidate:
  """A multistep solver with an order, form and corrector for each step, by USF [arXiv 2312.07243].

  Without moves it has order 2 in x_0 with correctors, on the times of `one`, and extrapolates its
  last step. The other choices of USF, points and relaxations of a derivative, are left out.

  Args:
    one: a sampler that `takes_choices`, for N calls.
    moves: [choices(N)]. N of the times, as in `moved`; N - 2 of the orders from the second step on,
      1 to 4; N - 1 that make a step one in eps, where they are large; N - 1 that leave a corrector
      out, where they are small; and how far the last step extrapolates.
    schedule, times: as for `moved`.

  Raises:
    UserError: a number of the table is not finite.
  """
  t = _times_of(one)
  parts = np.cumsum([1, *[len(t) - 1] * 3, len(t) - 2])
  first, factors, fields, correct, orders, ends = np.split(np.asarray(moves), parts)
  t = times(_stretched(t, first[0], np.exp(factors), schedule))
  grid = grids.from_times(schedule, t)
  plan = _plan(grid, np.append(0, orders), fields > FLIPS, correct > -FLIPS)
  try:
    table = usf.table(grid, plan)
  except np.linalg.LinAlgError as error:
    raise UserError('the times of the solver are too close to each other') from error
  ahead = compensation.weights(grid, Compensation(extrapolate=True))[-1, ::-1]
  plain = np.array([0.0, 1.0])
  table.weights[-1, -2:, 0] = plain + (1 + ENDS * ends[0]) * (ahead - plain)
  if not race.is_finite(table):
    raise UserError('the solver has numbers that are not finite')
  steps = ', '.join(f'{it.order} {it.field}{" corrected" * it.correct}' for it in plan)
  return Candidate('', (), f'USF ({steps}) on times {" ".join(f"{v:.4g}" for v in t)}', table)


def _plan(grid: StepGrid, orders, eps, correct) -> list[Choice]:
  """What usf.table does in each step, from numbers [N - 1] of all steps but that to clean data."""
  known, plan = int(grid.a_t[0] > 0), []  # no polynomial goes through pure noise, nor an eps step
  for n, order in enumerate(np.rint(2 + ORDERS * orders)):
    k, free = int(np.clip(order, 1, max(1, min(4, n + known)))), bool(n or known)
    field = 'eps' if free and eps[n] else 'x0'
    plan.append(Choice(k, field, correct=free and bool(correct[n])))
  return [*plan, Choice()]


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
