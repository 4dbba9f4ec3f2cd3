"""All tiers in a row, each kept only where its gain is shown on noise and data that no tier saw.

Tuning, selection and the final report each have their own noise and their own part of the data.
A tier proposes the table that is best by (2) of scores.py against the winner of the race; it
replaces the best so far only if its paired gain by (1) there, on the selection split, excludes zero
(95 %). So the result is the untuned winner of the race unless something is shown to be better.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from gmm_diffusion import files
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import bands as bands_lib
from gmm_diffusion.samplers.linear import Table
from gmm_diffusion.tune import calibrate, descend, fit, local_errors, race, scores, search
from gmm_diffusion.tune.race import Candidate
from gmm_diffusion.tune.scores import Score
from gmm_diffusion.tune.subject import Subject

# (name, what it depends on, make) -> the arrays that make() returns, perhaps from an earlier run
Keep = Callable[[str, str, Callable[[], dict[str, Any]]], dict[str, Any]]
STREAMS = 2048  # of noise for each seed: those of the report come first
TUNE, SELECT, DESCEND, OWN = STREAMS - 4, STREAMS - 3, STREAMS - 2, STREAMS - 1
SURE = 4  # times as many samples decide the race, and between two proposals, as propose one
FIRST = 32  # samples of a candidate in the first round of the race
WORSE = 2.58  # standard errors of a block: 2.5 % for five of them
LEADERS = 8  # finalists of the race, which the search knows
STARTS, EARLY, LATE = 3, 6, 24  # samplers that the search moves; generations for each, then for one
LONG = 36  # generations of tier 2
MOVED, REFINED = 0.2, 0.05  # deviations of the first moves of the search, and of those of tier 2
LOCAL_ERRORS = 'local-errors.npz'  # the same for all numbers of calls
# what the search proposes, by how it was found
MOVING, CHOOSING = 'times and ratios', 'a choice for each step'
PREDICTED, SHIFTED = 'ratios of other numbers of calls', 'network times'
AGAIN = 'race, scored again'  # a finalist that is ahead of the winner by the new score
PARTS = 6  # of tier 3: the work between two stored states
RIDGES = (1e-3, 1e-1)


class Settings(NamedTuple):
  """How much is tried.

  Attributes:
    calls: N, of the denoiser for each sample, at least 2.
    tier: the last one that is run, 0 to 3.
    bands: R of the tables of tiers 1 and 3, beside 1; 1 is one number for all.
    samples: for the scores by which tiers propose; 4 times as many select, and fewer rank the
      candidates of a generation.
    steps, batch: of tier 3.
    minutes: after which no new candidate is made; what was found is still compared. 0 is no limit.
    seed: of the noise.
  """

  calls: int
  tier: int = 2
  bands: int = 1
  samples: int = 512
  steps: int = 300
  batch: int = 256
  minutes: float = 0.0
  seed: int = 0


@dataclasses.dataclass
class Found:
  """The best so far.

  Attributes:
    best: the table to use.
    fixed: the winner of the race: the best untuned sampler by the score, on its best grid.
    evidence: one dict for each proposal: tier, what, tuning score and selection score by (1) of
      scores.py, gain over the best before it with its standard error, the blocks of the score that
      are shown to be worse, and whether it was kept.
    proposals: what they proposed.
    calls: single-sample calls of the denoiser that tuning made.
    finished: whether the time sufficed.
    ratios: of DC-Solver, one for each call, in the best sampler of the search that has them.
    search: how each sampler that the search compared was found, what it is, and its tuning score,
      in the parts of (2) of scores.py.
  """

  best: Candidate
  fixed: Candidate
  evidence: list[dict[str, Any]]
  proposals: list[Candidate]
  calls: int = 0
  finished: bool = True
  ratios: tuple[float, ...] = ()
  search: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def split(items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Items [M, ...] of the reference for tuning, and those for selection."""
  if len(items) < 4:
    raise UserError(f'tuning needs at least 4 reference items, got {len(items)}')
  return items[::2], items[1::2]


class Tuner:
  """One denoiser, one N."""

  def __init__(
    self,
    subject: Subject,
    items: np.ndarray,
    settings: Settings,
    keep: Keep = lambda name, mark, make: make(),
    report: Callable[[Found], None] = lambda found: None,
    mark: str = '',
    learned: Sequence[Callable[[Any], Any]] = (),
    labels: np.ndarray | None = None,
    ratios: Mapping[int, Sequence[float]] | None = None,
  ):
    """Args:

    subject: the denoiser.
    items: reference [M, *shape], in the range of the subject.
    settings: see Settings.
    keep: for what takes long.
    report: called with what is found whenever that changes.
    mark: what the subject, the items and `learned` depend on, such as a hash.
    learned: features of trained networks, as in scores.features.
    labels: what the denoiser is given with the items, int32 [M]; by default 0.
    ratios: Found.ratios of other numbers of calls.
    """
    if settings.calls < 2:
      raise UserError(f'tune.calls must be at least 2, got {settings.calls}')
    self.subject, self.settings, self.keep, self.report = subject, settings, keep, report
    self.mark = f'{mark} {settings.seed}' + f' {scores.LEARNED:g}' * len(learned)
    self.items, chosen = split(items)
    self.labels = (np.zeros(len(items), np.int32) if labels is None else labels)[::2]
    self.features = scores.features(subject.shape, learned)
    self.reference, selecting = (
      scores.reference(self.features, part[: SURE * settings.samples], len(learned))
      for part in (self.items, chosen)
    )
    self._learned, self._ratios = len(learned), ratios or {}
    self._follow(self.reference)
    self._blocks = scores.block_scorer(self.features, self.reference)
    self._selection = scores.block_scorer(self.features, selecting)
    self._bands: dict[int, Any] = {1: None}
    self._end = time.monotonic() + 60 * settings.minutes if settings.minutes else np.inf

  def run(self) -> Found:
    """All tiers; raises UserError where no sampler makes so many calls."""
    found = self._race()
    for tier in (self._search, self._fit, self._calibrate, self._descend)[: 1 + self.settings.tier]:
      if self._late():
        break
      tier(found)
    found.finished = not self._late()
    found.calls = self.subject.calls
    self.report(found)
    return found

  def bands(self, count: int) -> Any:
    """The transform of tables with `count` bands; None for one."""
    if count not in self._bands:
      self._bands[count] = bands_lib.make(self.subject.shape, count)
    return self._bands[count]

  def score(self, one: Candidate, samples: int, first: int = 0) -> Score:
    """Its score on the tuning split, with the noise of ids from `first` on: after the race, in
    parts of the distances of the winner."""
    ids = np.arange(first, first + samples)
    what = first if self.aimed.goal is None else f'{first}-goal'
    return self._kept_score(one, self._tuning, TUNE, ids, what, self._aimed())

  def _selected(self, one):
    """Its scores on the selection split, in blocks."""
    ids = np.arange(SURE * self.settings.samples)
    return self._kept_score(one, self._selection, SELECT, ids, 'blocks', self.mark)

  def _tuned(self, one, samples):
    """The same on the tuning split."""
    return self._kept_score(one, self._blocks, TUNE, np.arange(samples), 'blocks', self.mark)

  def _aimed(self):
    """What the scores of `score` depend on."""
    goal = self.aimed.goal
    return self.mark if goal is None else f'{self.mark} {files.fingerprint(goal, scores.SHARP)}'

  def _kept_score(self, one, scorer, stream, ids, what, mark):
    def make():
      x = self.subject.draw(one.table, self._seed(stream), ids, self.bands(one.bands))
      return {name: np.asarray(part, np.float32) for name, part in scorer(x)._asdict().items()}

    name = f'{hash_of(one.table)}-{stream}-{len(ids)}-{what}.npz'
    found = self.keep(name, mark, make)
    return Score(**{k: v for k, v in found.items() if k != 'mark'})

  def _seed(self, number):
    return stream(self.settings.seed, number)

  def _late(self):
    return time.monotonic() > self._end

  def _scored(self, title, some, samples):
    """[(candidate, score)] with progress, best first."""
    bar = tqdm(some, desc=title, unit='candidate', dynamic_ncols=True)
    out = [(one, self.score(one, samples)) for one in bar]
    return sorted(out, key=lambda pair: _value(pair[1]))

  def _race(self):
    subject, settings = self.subject, self.settings
    self._follow(self.reference)
    field = race.candidates(subject.schedule, settings.calls, subject.times, self._own_grid())
    if not field:
      raise UserError(f'no sampler makes exactly {settings.calls} calls on this schedule')
    rounds = race.halvings(len(field), FIRST, SURE * settings.samples)
    total = sum(count for count, _ in rounds)
    with tqdm(total=total, desc='race', unit='candidate', dynamic_ncols=True) as bar:

      def score(one, samples):
        if self._late():
          return None
        bar.update()
        return self.score(one, samples)

      ordered = race.run(field, rounds, score)
    if not ordered:
      raise UserError(
        f'tune.minutes {settings.minutes:g} was over before one of {len(field)} samplers was '
        f'scored; give it more'
      )
    self.leaders = ordered[:LEADERS]
    self.finalists = [one for one, _ in self.leaders]
    best, tuned = ordered[0]
    self._aim(best)
    found = Found(best, best, [], [best], subject.calls)
    value = scores.total(self._selected(best)).value
    found.evidence.append(_line('race', best, tuned.value, value, None, True))
    self.report(found)
    return found

  def _aim(self, winner):
    """From here on, what counts is to be better than the winner of the race in every respect."""
    goal = self._tuned(winner, SURE * self.settings.samples)
    self._follow(scores.towards(self.reference, goal, self._learned))

  def _follow(self, reference):
    """Candidates are compared with this from here on."""
    self.aimed, self._tuning = reference, scores.scorer(self.features, reference)

  def _samples(self, part):
    """Samples by which the candidates of a generation are ranked, and the like."""
    return max(FIRST, self.settings.samples // part)

  def _own_grid(self):
    """Steps -> times with the least local errors; None for so many that any grid is good."""
    if self.settings.calls > min(local_errors.FINE, len(self.subject.schedule.training_times)):
      return None
    make = lambda: dict(
      zip('tc', local_errors.costs(self.subject, self._seed(TUNE), np.arange(FIRST)), strict=True)
    )
    found = self.keep(LOCAL_ERRORS, self.mark, make)
    return lambda steps: local_errors.best(found['t'], found['c'], steps)

  def _propose(self, found, tier, one):
    """Keeps a proposal where its gain on the selection split excludes zero, and no block of
    features is shown to be worse: what one network alone sees is no gain."""
    both = self._selected(one), self._selected(found.best)
    new, old = map(scores.total, both)
    gain = scores.gain(new, old)
    blocks = [scores.gain(*pair) for pair in zip(*map(scores.in_blocks, both), strict=True)]
    worse = [k for k, (value, error) in enumerate(blocks) if value < -WORSE * error]
    kept = bool(np.isfinite(new.value)) and scores.excludes_zero(*gain) and not worse
    tuned = scores.total(self._tuned(one, self.settings.samples)).value
    line = _line(tier, one, tuned, new.value, gain, kept)
    found.evidence.append({**line, 'worse': worse})
    found.proposals.append(one)
    if kept:
      found.best = one
    found.calls = self.subject.calls
    self.report(found)

  def _search(self, found):
    leaders = [one for one, _ in self.leaders]
    kinds = {(one.name, one.options): one for one in reversed(leaders)}  # each on its best grid
    starts = sorted(kinds.values(), key=leaders.index)[:STARTS]
    paths = [(self._moving(start), MOVING) for start in starts]
    paths += [(self._choosing(one), CHOOSING) for one in leaders if search.takes_choices(one)][:1]
    total = len(paths) * EARLY + LATE
    with tqdm(total=total, desc='search', unit='generation', dynamic_ncols=True) as bar:
      walk = functools.partial(_walk, bar)
      ends = [(walk(path, EARLY), path, how) for path, how in paths]
      made = [(end, how) for end, _, how in ends if end]
      for best, _ in self._scored('search', [end for end, _ in made], self.settings.samples)[:1]:
        path, how = next((path, how) for end, path, how in ends if end is best)
        last = walk(path, LATE)
        made += [(last, how)] if last else []
    places = self.subject.schedule, self.subject.times
    made += [(one, PREDICTED) for one in search.predicted(starts, self._ratios, *places)]
    self.leaders = self._scored('search', leaders + [one for one, _ in made], self.settings.samples)
    options = [dict(one.options) for one, _ in self.leaders]
    found.ratios = next((some['ratios'] for some in options if 'ratios' in some), ())
    ahead = list(itertools.takewhile(lambda pair: pair[0] is not found.best, self.leaders))
    hows = {id(one): how for one, how in made}
    row = lambda how, one, score: {'how': how, 'what': str(one), 'tuning': _value(score)}
    found.search = [row(hows.get(id(one), 'race'), one, score) for one, score in self.leaders]
    untuned = [pair for pair in ahead[1:] if id(pair[0]) not in hows]
    for one, _ in ahead[:1] + untuned[:1]:  # the second only if the first is not kept
      if found.best is found.fixed:
        self._propose(found, hows.get(id(one), AGAIN), one)
    for one in self._shifted():
      score = self.score(one, self.settings.samples)
      found.search.append(row(SHIFTED, one, score))
      if _value(score) < _value(self.leaders[0][1]):
        self._propose(found, SHIFTED, one)

  def _moving(self, start):
    """The evolution of the times and ratios of a sampler."""
    make = lambda moves: search.moved(start, moves, self.subject.schedule, self.subject.times)
    return self._evolution(make, search.free_numbers(start), MOVED, self._samples(8))

  def _choosing(self, start):
    """The evolution of a solver with choices of its own in every step."""
    make = lambda moves: search.chosen(start, moves, self.subject.schedule, self.subject.times)
    return self._evolution(make, search.choices(self.settings.calls), MOVED, self._samples(8))

  def _shifted(self):
    """The best of the leaders with other network times; none where time is up."""
    schedule, times = self.subject.schedule, self.subject.times
    tops = [one for one, _ in self.leaders[:STARTS]]
    some = [search.shifted(one, by, schedule, times) for one in tops for by in search.SHIFTS]
    rounds = race.halvings(len(some), FIRST, self.settings.samples)
    score = lambda one, samples: None if self._late() else self.score(one, samples)
    return [one for one, _ in race.run(some, rounds, score)[:1]]

  def _evolution(self, make, count, width, samples):
    def score(one, generation):
      if not self._late():
        return _value(self.score(one, samples, first=generation * samples))

    return search.evolution(make, count, width, score, self._seed(TUNE))

  def _fit(self, found):
    subject, samples = self.subject, self._samples(2)  # of many pixels each
    ids, seed = np.arange(samples), self._seed(TUNE)
    counts = sorted({1, self.settings.bands})
    start = self.leaders[0][0]
    x = subject.start(start.table.b[0], seed, ids)
    known = self._known(start, x, ids)
    choices = [
      fit.Choice('coupled', count, ridge, gain)
      for count in counts
      for ridge in RIDGES
      for gain in (False, True)
    ]
    choices += [fit.Choice('local', 1, RIDGES[0], True), fit.Choice('joint', 1, RIDGES[0], False)]
    made = []
    for choice in tqdm(choices, desc='closed form', unit='fit', dynamic_ncols=True):
      if self._late():
        break
      made.append(self._fitted(start, choice, ids, seed, known))
    made = sorted(
      [pair for pair in made if race.is_finite(pair[0].table)], key=lambda pair: _value(pair[1])
    )
    for count in counts:  # bands have to be worth it against one
      own = [pair for pair in made if pair[0].bands == count]
      if own:
        self._propose(found, f'closed form, {_bands(count)}', own[0][0])

  def _known(self, start, x, ids):
    make = lambda: {'states': fit.targets(self.subject, start.table, x, ids)}
    return self.keep(f'{hash_of(start.table)}-teacher-{len(ids)}.npz', self.mark, make)['states']

  def _fitted(self, start, choice, ids, seed, known):
    """(the fitted table, its tuning score)."""

    def make():
      own = ids % len(self.items)
      one, x = fit.fit(
        self.subject, start, choice, ids, seed, known, self.items[own], self.labels[own]
      )
      if choice.target == 'joint':
        x = self.subject.draw(one.table, seed, ids, self.bands(one.bands))
      score = self._tuning(self.subject.clipped(x))
      parts = {name: getattr(one.table, name) for name in ('keep', 'weights', 'std')}
      return {**parts, **score._asdict()}

    name = f'{hash_of(start.table)}-{files.fingerprint(str(choice))}-{len(ids)}.npz'
    arrays = self.keep(name, self._aimed(), make)
    parts = {key: np.asarray(arrays[key]) for key in ('keep', 'weights', 'std')}
    table = fit.widened(start.table, choice.bands)._replace(**parts)
    score = Score(*(arrays[key] for key in Score._fields))
    return Candidate('', (), f'{choice} from {start}', table, choice.bands), score

  def _calibrate(self, found):
    make = functools.partial(calibrate.candidate, found.best)
    count = calibrate.free_numbers(found.best)
    path = self._evolution(make, count, REFINED, self._samples(4))
    with tqdm(total=LONG, desc='coefficients', unit='generation', dynamic_ncols=True) as bar:
      one = _walk(bar, path, LONG)
    if not one:
      return
    tuned, before = (self.score(it, self.settings.samples) for it in (one, found.best))
    if _value(tuned) < _value(before):
      self._propose(found, 'coefficients and noise', one)

  def _descend(self, found):
    scale = float(np.sum(self.aimed.goal))  # so that the loss begins at the winner's score
    settings = descend.Settings(self.settings.steps, self.settings.batch, energy=scale)
    counts = sorted({found.best.bands, self.settings.bands})
    for count in counts:
      start = found.best
      table = start.table if start.bands == count else fit.widened(start.table, count)
      one = self._descended(start, table, count, settings)
      if one is not None:
        self._propose(found, f'gradient, {_bands(count)}', one)

  def _descended(self, start, table, count, settings):
    """The best of the averaged moves along the way, by the tuning score; None without time."""
    best, source = None, None
    state = descend.beginning(table, settings)
    structure, every = jax.tree.structure(state), max(1, settings.steps // PARTS)
    name = f'gradient-{hash_of(table)}-{settings.steps}-{settings.batch}'

    loss_of = descend.loss_of(
      self.subject, table, self.bands(count), self.features, self.aimed, settings,
      self._seed(DESCEND),
    )  # fmt: skip

    def walk(bar):
      nonlocal source
      source = source or descend.descend(self.subject, table, loss_of, settings, state=state)
      for loss, reached in source:
        bar.update()
        bar.set_postfix_str(f'loss {loss:.4f}')
        if reached[0] % every == 0:
          return {f'{i:03d}': np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(reached))}

    with tqdm(total=PARTS * every, desc='gradient', unit='step', dynamic_ncols=True) as bar:
      for part in range(PARTS):
        if self._late():
          break
        before = bar.n
        arrays = self.keep(f'{name}-{part}.npz', self._aimed(), functools.partial(walk, bar))
        if bar.n == before:  # an earlier run made it; what follows starts from there
          source = None
          bar.update(every)
        leaves = [arrays[key] for key in sorted(arrays) if key.isdigit()]
        after = jax.tree.unflatten(structure, leaves)
        state = (int(after[0]), *after[1:])
        made = descend.table_of(table, state[2], self.subject.schedule, self.subject.whole_times)
        words = f'{state[0]} steps of the gradient, {_bands(count)}, from {start}'
        one = Candidate('', (), words, made, count)
        if race.is_finite(made):
          value = _value(self.score(one, self.settings.samples))
          best = min(best or (np.inf, one), (value, one), key=lambda pair: pair[0])
    return best and best[1]


def _walk(bar, path, generations):
  """The last candidate of so many generations; None where time was up before one."""
  reached = None
  for one in itertools.islice(path, generations):
    reached = one
    bar.update()
    bar.set_postfix_str(one.name)
  return reached


def stream(seed: int, number: int) -> int:
  """The seed of a stream of noise, number 0 to STREAMS - 1."""
  return (STREAMS * seed + number) % 2**32


def hash_of(table: Table) -> str:
  """Twelve digits that change with any number of a table."""
  return files.fingerprint(*jax.tree.leaves(table))


def _bands(count):
  return f'{count} band{"s" * (count > 1)}'


def _value(score):
  return float(score.value) if np.isfinite(score.value) else np.inf


def _line(tier, one, tuned, selected, gain, kept):
  out = {
    'tier': tier,
    'what': str(one),
    'tuning': float(tuned),
    'selection': float(selected),
    'kept': kept,
  }
  return out if gain is None else {**out, 'gain': gain[0], 'error': gain[1]}
