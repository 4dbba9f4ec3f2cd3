"""All tiers in a row: what is kept, what goes on where it stopped, and time that is up."""

from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, marginals, schedules
from gmm_diffusion.tune import race, scores, search, subject, tiers

LINEAR = schedules.linear()
FEW_GRIDS = {name: grids.GRIDS[name] for name in ('trailing', 'log_snr')}


class TiersTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.object(race, 'RUNNERS', {'ddim': {'eta': (0.0, 1.0)}}))
    self.enter_context(mock.patch.dict(grids.GRIDS, FEW_GRIDS, clear=True))

  def run_all(self, kept, **more):
    tuner = self.tuner(kept, **more)
    return tuner.run(), tuner.subject

  def tuner(self, kept, tier=3, learned=(), ratios=None, **more):
    settings = tiers.Settings(3, tier=tier, bands=2, samples=64, steps=6, batch=32, **more)
    spread = np.array([[1.0, 0.5, 0.1]], np.float32)

    def exact(weights):
      def denoise(x, time, cond):
        del cond
        gain = time.a * weights**2 / (time.a**2 * weights**2 + time.b**2)
        return marginals.from_x0(x, gain * x, time)

      return denoise

    it = subject.Subject(exact, spread, LINEAR, (3,), batch=32)
    known = spread * np.random.RandomState(0).standard_normal((256, 3)).astype(np.float32)

    def keep(name, mark, make):
      if (name, mark) not in kept:
        kept[name, mark] = {key: np.asarray(part) for key, part in make().items()}
      return kept[name, mark]

    return tiers.Tuner(it, known, settings, keep, learned=learned, ratios=ratios)

  def test_all_tiers_and_a_second_run_asks_nothing(self):
    kept = {}
    found, it = self.run_all(kept)
    self.assertGreater(it.calls, 0)
    lines = found.evidence
    self.assertEqual(lines[0]['tier'], 'race')
    self.assertIn('gradient, 2 bands', [line['tier'] for line in lines])
    last = next(line for line in reversed(lines) if line['kept'])
    self.assertEqual(last['what'], str(found.best))
    for line in lines[1:]:
      self.assertEqual(line['kept'], line['gain'] > 1.96 * line['error'] and not line['worse'])
    again, other = self.run_all(kept)
    self.assertEqual(again.evidence, lines)
    self.assertEqual(other.calls, 0)

  @parameterized.parameters((0.0, True), (-0.02, True), (-0.3, False))
  def test_a_gain_that_a_block_pays_for_is_none(self, second, kept):
    """The first block gains 1; the second loses within its error of 0.1, or beyond it."""
    own = np.stack([np.zeros(24), np.tile([0.5, -0.5], 12)])
    none = np.zeros((2, 24))
    old, new = race.candidates(LINEAR, 2, lambda t: t)[:2]
    tuner = mock.Mock()
    better = scores.Score(np.array([-1.0, -second]), own, none)
    tuner._selected = lambda one: better if one is new else scores.Score(np.zeros(2), none, none)
    tuner._tuned = lambda one, samples: better
    found = tiers.Found(old, old, [], [])
    tiers.Tuner._propose(tuner, found, 'tier', new)
    self.assertEqual((found.best is new, found.evidence[0]['kept']), (kept, kept))
    self.assertEqual(found.evidence[0]['worse'], [] if kept else [1])

  def test_after_the_race_the_score_is_in_parts_of_its_winner(self):
    parts = lambda x: [x, x[:, :1], x[:, 1:]]
    with mock.patch.object(scores, 'features', lambda shape, learned: parts):
      tuner = self.tuner({}, tier=0, learned=(1, 2))
    some = race.candidates(LINEAR, 3, tuner.subject.times)[0]
    self.assertAlmostEqual(
      tuner.score(some, 64).value, scores.total(tuner._tuned(some, 64)).value, places=5
    )
    with mock.patch.object(tiers.Tuner, '_search'):
      winner = tuner.run().fixed
    goal, apart = np.asarray(tuner.aimed.goal), tuner._tuned(winner, 4 * 64).value
    self.assertLen(goal, 3)
    self.assertTrue(np.all(goal >= apart - 1e-6))  # one block of its own, and two networks
    ratios = tuner._tuned(winner, 64).value / goal
    value = float(tuner.score(winner, 64).value)
    self.assertBetween(value, np.mean(ratios) - 1e-5, np.max(ratios) + 1e-5)
    self.assertIsNone(tuner.reference.goal)  # for those who want the plain score
    calls = tuner.subject.calls
    tuner.score(winner, 64)
    self.assertEqual(tuner.subject.calls, calls)
    with mock.patch.object(tiers.Tuner, '_search'):
      self.assertEqual(str(tuner.run().fixed), str(winner))  # a race has the plain score again
    self.assertEqual(tuner.subject.calls, calls)

  def test_time_that_is_up(self):
    with self.assertRaisesRegex(UserError, 'tune.minutes .* was over before one of'):
      self.run_all({}, minutes=1e-9)

  @parameterized.parameters((0, False), (tiers.EARLY + 2, True))
  def test_time_that_is_up_in_the_search(self, generations, proposed):
    """What was reached is still compared; no further tier begins."""
    real, clock = search.evolution, mock.Mock(return_value=0.0)

    def evolution(make, count, width, score, seed):
      def late(one, generation):
        clock.return_value = 1e9 * (generation >= generations)
        return score(one, generation)

      return real(make, count, width, late, seed)

    def score(tuner, one, samples, first=0):
      value = np.float32(-one.grid.startswith('times'))  # all that are moved are better
      return scores.Score(value, np.ones(4), np.ones(4))

    with (
      mock.patch.object(tiers.Tuner, 'score', score),
      mock.patch.object(tiers.time, 'monotonic', clock),
      mock.patch.object(search, 'evolution', evolution),
      mock.patch.object(tiers, 'STARTS', 1),
    ):
      found, _ = self.run_all({}, minutes=1.0)
    self.assertFalse(found.finished)
    tried = ['race', 'times and ratios'][: 1 + proposed]
    self.assertEqual([line['tier'] for line in found.evidence], tried)

  def test_the_search_finds_times_in_noise(self):
    """The score of times is least at wanted steps in log-SNR. Each draw adds noise of its own that
    is as large as what can be gained at the start."""
    wanted, noise = np.array([1.5, 6.0]), 0.3
    away = lambda one: np.log(np.diff(LINEAR.log_snr(one.table.time.t)) / wanted)
    proposed, random = [], np.random.Generator(np.random.SFC64(0))

    def score(tuner, one, samples, first=0):
      lucky = noise * random.standard_normal()
      alone = samples < tuner.settings.samples
      return scores.Score(np.float32(np.sum(away(one) ** 2) + alone * lucky), None, None)

    with (
      mock.patch.object(tiers.Tuner, 'score', score),
      mock.patch.object(tiers.Tuner, '_propose', lambda tuner, found, *what: proposed.append(what)),
      mock.patch.object(tiers.Tuner, '_fit'),
      mock.patch.object(tiers.Tuner, '_calibrate'),
      mock.patch.object(tiers.Tuner, '_descend'),
      mock.patch.object(search, 'SHIFTS', ()),
    ):
      self.run_all({})
    ((tier, one),) = proposed
    self.assertEqual(tier, 'times and ratios')
    self.assertLess(np.abs(away(one)).max(), 0.3)

  @parameterized.parameters(
    ('a choice for each step', lambda one: one.grid.startswith('USF'), 1),
    ('network times', lambda one: 'network times' in one.grid, 1),
    (
      'ratios of other numbers of calls',
      lambda one: (1, 1.275, 1.5) in dict(one.options).values(),
      1,
    ),
    ('none of them', lambda one: False, 0),
  )
  def test_what_other_methods_find_is_proposed(self, tier, wanted, count):
    plain = {'unipc': {'extrapolate': (False,)}}  # whose last ratio is free
    self.enter_context(mock.patch.object(race, 'RUNNERS', plain))
    proposed = []

    def score(tuner, one, samples, first=0):
      return scores.Score(np.float32(-wanted(one)), np.ones(4), np.ones(4))

    with (
      mock.patch.object(tiers.Tuner, 'score', score),
      mock.patch.object(tiers.Tuner, '_propose', lambda tuner, found, *what: proposed.append(what)),
    ):
      tuner = self.tuner({}, tier=0, ratios={2: (1, 1.5), 4: (1, 1.2, 1.4, 1.5)})
      found = tuner.run()
    self.assertEqual([how for how, _ in proposed], [tier] * count)
    self.assertTrue(all(wanted(one) for _, one in proposed))
    rows = found.search
    self.assertEqual(tier in [row['how'] for row in rows if row['tuning'] < 0], bool(count))
    self.assertLen([row for row in rows if row['how'] == 'race'], 3)  # the leaders
    self.assertLen(found.ratios, 3)  # of a sampler that the search moved

  @parameterized.parameters((False, 2), (True, 1))
  def test_finalists_that_lead_after_the_race_are_proposed(self, keeps, count):
    proposed = []

    def scored(tuner, title, some, samples):
      """What the search made first, then the finalists, the winner of the race as the last."""
      raced = tuner.finalists
      made = [one for one in some if all(one is not it for it in raced)]
      ordered = some
      if len(made) < len(some):
        ordered = [*made[:1], *raced[1:], raced[0], *made[1:]]
      return [(one, scores.Score(np.float32(0), np.ones(4), np.ones(4))) for one in ordered]

    def propose(tuner, found, how, one):
      proposed.append((how, one))
      found.best = one if keeps else found.best

    with (
      mock.patch.object(tiers, 'EARLY', 1),
      mock.patch.object(tiers, 'LATE', 1),
      mock.patch.object(tiers.Tuner, '_shifted', lambda tuner: []),
      mock.patch.object(tiers.Tuner, '_scored', scored),
      mock.patch.object(tiers.Tuner, '_propose', propose),
    ):
      tuner = self.tuner({}, tier=0)
      tuner.run()
    self.assertLen(proposed, count)
    self.assertNotIn(proposed[0][1], tuner.finalists)
    for how, one in proposed[1:]:
      self.assertEqual(how, 'race, scored again')
      self.assertIs(one, tuner.finalists[1])

  def test_few_items(self):
    with self.assertRaisesRegex(UserError, 'at least 4 reference items, got 3'):
      tiers.split(np.zeros((3, 1)))


if __name__ == '__main__':
  absltest.main()
