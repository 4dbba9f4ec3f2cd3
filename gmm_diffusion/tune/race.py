"""Tier 0: every sampler on every grid at exactly N calls.

Deterministic samplers and those with Gaussian noise are tables (samplers/linear.py), so the whole
race shares one compilation. It runs by successive halving [Jamieson & Talwalkar 2016]: all
candidates on few samples, the best quarter on four times as many, and so on, so that all rounds
cost the same; all on the same noise.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from gmm_diffusion import samplers
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.samplers import linear
from gmm_diffusion.samplers.linear import Table
from gmm_diffusion.tune.scores import Score

# Samplers and the values of their options that are tried. deis and ipndm end with the straight line
# alone: of 90 pairs in experiments/results/last_step_*.json their own end was hardly ever better.
RUNNERS: dict[str, dict[str, tuple[Any, ...]]] = {
  'ddim': {'eta': (0.0, 0.3, 0.6, 1.0)},
  'dpmpp': {'order': (2, 3), 'extrapolate': (False, True)},
  'dpmpp_sde': {'extrapolate': (False, True)},
  'deis': {'order': (2, 3)},
  'unipc': {'order': (2, 3), 'bh': ('bh1', 'bh2'), 'extrapolate': (False, True)},
  'ipndm': {'order': (2, 3, 4)},
  'heun': {},
  'bdia': {'gamma': (0.5, 1.0)},
}
FLOW_RUNNERS: dict[str, dict[str, tuple[Any, ...]]] = {
  'rfim': {'eta': (0.3, 0.6, 1.0)},
}
KARRAS_RHO = (3.0, 7.0)
OWN = 'gits'


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A sampler on a grid.

  Attributes:
    name, options: of the sampler, as in samplers.make; '' and {} where the table was fitted.
    grid: in words.
    table: of N rows.
    bands: R of the table.
  """

  name: str
  options: tuple[tuple[str, Any], ...]
  grid: str
  table: Table
  bands: int = 1

  def __str__(self) -> str:
    if not self.name:
      return self.grid
    options = ', '.join(f'{key} {value}' for key, value in self.options)
    return f'{self.name}{f" ({options})" * bool(options)} on {self.grid}'


def _choices(options):
  for values in itertools.product(*options.values()):
    yield dict(zip(options, values, strict=True))


def _grids(schedule, steps):
  """(in words, grid) of every grid of the library with so many steps."""
  for name in grids.GRIDS:
    for rho in KARRAS_RHO if name == 'karras' else (None,):
      try:
        made = grids.make(schedule, steps, name, **({} if rho is None else {'rho': rho}))
      except UserError:  # a stride that does not divide, or a grid of another kind of schedule
        continue
      yield (name if rho is None else f'{name} {rho:g}'), made


def embedded(
  name: str, options: dict[str, Any], schedule: Schedule, times: np.ndarray, grid: str
) -> Candidate:
  """A sampler on given times."""
  kernel = samplers.make(name, options, schedule)
  table = linear.embed(kernel, grids.from_times(schedule, times), (1,))
  return Candidate(name, tuple(sorted(options.items())), grid, table)


def candidates(
  schedule: Schedule,
  calls: int,
  times: Callable[[Any], Any],
  own: Callable[[int], np.ndarray] | None = None,
) -> list[Candidate]:
  """All samplers on all grids with exactly `calls` calls; tables that are equal to two
  decimals count once.

  Args:
    schedule: of the denoiser.
    calls: N, at least 2.
    times: falling times -> those at which the denoiser may be asked.
    own: steps -> times [steps] of a grid that the model has for itself.
  """
  runners = RUNNERS if schedule.discrete else {**RUNNERS, **FLOW_RUNNERS}
  found: dict[bytes, Candidate] = {}
  for name, choices in runners.items():
    for options in _choices(choices):
      steps = calls // 2 + 1 if name == 'heun' else calls  # its last step makes one call
      if name == 'heun' and calls % 2 == 0:
        continue
      tried = [(words, times(grid.t)) for words, grid in _grids(schedule, steps)]
      tried += [(OWN, own(steps))] if own else []
      for words, t in tried:
        try:
          one = embedded(name, options, schedule, t, words)
        except UserError:  # a sampler for another kind of schedule, or too few steps for it
          continue
        if len(one.table.keep) == calls and is_finite(one.table):
          found.setdefault(_key(one.table), one)
  return list(found.values())


def is_finite(table: Table) -> bool:
  """Whether every number of a table is finite."""
  return all(np.all(np.isfinite(part)) for part in (*table.time, *table[3:]))


def _key(table):
  # an extrapolated step to clean data from very little noise differs from a plain one by 1e-3, less
  # than a level of an image; such pairs would take the places of others
  rounded = (np.round(part, 2) + 0.0 for part in (*table.time, *table[3:]))  # no -0
  return b''.join(part.tobytes() for part in rounded)


def halvings(count: int, least: int, most: int) -> list[tuple[int, int]]:
  """[(candidates, samples)] of the rounds: a quarter of the candidates at four times the samples,
  until `most` samples decide among at least four."""
  rounds, samples = [(count, min(least, most))], min(least, most)
  while samples < most:
    samples = min(4 * samples, most)
    count = max(min(count, 4), count // 4)
    rounds.append((count, samples))
  return rounds


def run(
  field: list[Candidate],
  rounds: list[tuple[int, int]],
  score: Callable[[Candidate, int], Score | None],
) -> list[tuple[Candidate, Score]]:
  """Successive halving.

  Args:
    field: all candidates.
    rounds: of `halvings`.
    score: (candidate, samples) -> its score, or None where time is up.

  Returns:
    Those of the last round that was finished, best first; in a race that stops in its first round,
    those that were scored.
  """
  best: list[tuple[Candidate, Score]] = []
  for count, samples in rounds:
    entered = [one for one, _ in best[:count]] if best else field
    scored = []
    for one in entered:
      found = score(one, samples)
      if found is None:
        return best or _ordered(scored)
      scored.append((one, found))
    best = _ordered(scored)
  return best


def _ordered(scored):
  worst = lambda value: float(value) if np.isfinite(value) else np.inf
  return sorted(scored, key=lambda pair: worst(pair[1].value))
