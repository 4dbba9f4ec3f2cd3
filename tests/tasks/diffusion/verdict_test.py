"""Verdicts: a difference is claimed where it is shown, and nowhere else."""

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion.metrics import estimates
from gmm_diffusion.tasks.diffusion import report, verdict

LOWER = {'frechet': True, 'precision': False}
COMMON = np.random.RandomState(0).randn(400)  # what the noise of a sample does to all samplers


def row(name, value, own=0.1, control='', kind='sampler', metric='frechet', **more):
  """A row whose influences are those of the noise and, `own` times as large, its own."""
  influence = COMMON + own * np.random.RandomState(len(name)).randn(400)
  metrics = {metric: estimates.jackknife(value, influence)}
  return verdict.Row((name,), kind, control, 10, metrics, b'', **more)


class JudgeTest(parameterized.TestCase):
  def words(self, *rows, lower=LOWER):
    return ' '.join(verdict.judge(rows, lower).words)

  def test_a_winner_within_overlapping_intervals(self):
    # each interval is +-0.1, the difference of the same noise is known to +-0.01
    rows = row('ddim', 3.0), row('ddpm1', 3.05)
    self.assertLess(rows[1].metrics['frechet'].low, 3.0)
    found = verdict.judge(rows, LOWER)
    self.assertIs(found.best, rows[0])
    self.assertRegex(
      found.words[0], r'^ddim is best here: .* 3.000 ± 0.098.*ddpm1, differs by 0.050'
    )

  def test_no_winner_where_the_difference_is_within_its_interval(self):
    rows = row('ddim', 3.0, own=1), row('ddpm1', 3.05, own=1), row('heun123', 9.0)
    found = verdict.judge(rows, LOWER)
    self.assertIsNone(found.best)
    self.assertRegex(
      found.words[0],
      '^No sampler is shown to be best. ddim has the lowest Frechet distance, .*; ddpm1 is not '
      'shown to differ from it. All others are worse.$',
    )
    self.assertNotIn('heun123 ', found.words[0])

  def test_many_comparisons_widen(self):
    # 2.2 standard errors: shown if it is the only comparison, not as one of nine
    own = row('a', 0.0, own=0), row('bb', 1.0, own=1)
    error = estimates.difference(*(r.metrics['frechet'] for r in own)).half / 1.96
    rows = [row('a', 0.0, own=0), row('bb', 2.2 * error, own=1)]
    self.assertIsNotNone(verdict.judge(rows, LOWER).best)
    rows += [row('ccc' + 'c' * i, 9.0) for i in range(8)]
    self.assertIsNone(verdict.judge(rows, LOWER).best)

  def test_higher_is_better(self):
    rows = [row('ddim', 0.5, metric='precision'), row('ddpm1', 0.9, metric='precision')]
    self.assertStartsWith(self.words(*rows), 'ddpm1 is best here: it has the highest precision')

  def assertStartsWith(self, text, start):
    self.assertEqual(text[: len(start)], start)

  def test_held_out_data_do_not_compete(self):
    rows = row('data', 0.1, kind='data'), row('ddim', 3.0), row('ddpm1', 4.0)
    self.assertStartsWith(self.words(*rows), 'ddim is best here')
    self.assertStartsWith(self.words(rows[0], rows[1]), 'ddim has a Frechet distance of 3.000 ±')

  @parameterized.parameters(
    (3.0, 3.001, 'No mixture is shown to differ from its control.'),
    (3.0, 5.0, 'gmm is better than its control noise: the difference is -2.00'),
    (5.0, 3.0, 'gmm is worse than its control noise: the difference is 2.00'),
  )
  def test_mixtures(self, mixture, control, message):
    rows = row('gmm', mixture, control='noise'), row('noise', control, kind='control')
    self.assertIn(message, self.words(*rows))

  def test_some_mixtures(self):
    rows = (
      row('gmm', 3.0, control='noise'),
      row('noise', 3.0, kind='control'),
      row('gmm4567', 9.0, control='noise'),
    )
    self.assertIn('gmm4567 is worse than its control noise', self.words(*rows))
    self.assertIn('gmm is not shown to differ.', self.words(*rows))

  def test_moments(self):
    steps = [{'mean_residual': 0.0, 'covariance_residual': 1e-8}] * 3
    self.assertIn('ddim keeps the mean and the variance', self.words(row('ddim', 1, report=steps)))
    for name in steps[0]:
      bad = steps + [{**steps[0], name: 1e-3}]
      self.assertNotIn('keep', self.words(row('ddim', 1, report=bad)))


class RowsTest(absltest.TestCase):
  def test_one_kernel_is_one_row(self):
    both = verdict.merged(row('noise', 3.0, kind='control'), row('ddim', 3.0))
    self.assertEqual((both.name, both.kind), ('noise = ddim', 'sampler'))
    # a mixture whose control is DDIM itself is compared with that row
    mixture = row('gmm', 3.0, control='noise')
    self.assertIs(verdict.control_of(mixture, [mixture, both]), both)
    self.assertIsNone(verdict.control_of(verdict.merged(mixture, both), [mixture]))

  def test_listed(self):
    self.assertEqual(verdict.listed(['a']), 'a')
    self.assertEqual(verdict.listed(['a', 'b', 'c']), 'a, b and c')

  def test_bold_is_what_the_verdict_says(self):
    rows = [row('ddim', 3.0, own=1), row('ddpm1', 3.05, own=1)]
    self.assertNotIn('class=best', report._table(rows, LOWER, verdict.judge(rows, LOWER)))
    rows = [row('ddim', 3.0), row('ddpm1', 3.05)]  # best, but the intervals beside it overlap
    self.assertIsNotNone(verdict.judge(rows, LOWER).best)
    self.assertNotIn('class=best', report._table(rows, LOWER, verdict.judge(rows, LOWER)))
    rows = [row('ddim', 3.0), row('ddpm1', 8.0)]
    table = report._table(rows, LOWER, verdict.judge(rows, LOWER))
    self.assertIn('<tr class=best><td>ddim</td>', table)
    self.assertEqual(table.count('class=best'), 1)


class DifferenceTest(absltest.TestCase):
  def test_the_interval_of_a_paired_difference_covers(self):
    # means of 2 x 50 numbers that share most of their noise, 400 times; 95 % within 3 errors
    random, inside, half = np.random.RandomState(0), 0, []
    for _ in range(400):
      shared = random.randn(50)
      a, b = (shared + 0.3 * random.randn(50) for _ in range(2))
      estimate = lambda x: estimates.jackknife(x.mean(), x - x.mean())
      found = estimates.difference(estimate(a), estimate(b))
      inside += found.low <= 0 <= found.high
      half.append(found.half / estimate(a).half)
    self.assertBetween(inside / 400, 0.95 - 3 * 0.011, 0.95 + 3 * 0.011)
    self.assertLess(np.mean(half), 0.5)  # narrower than either interval

  def test_unpaired_is_never_too_narrow(self):
    a, b = estimates.within(1, 0.3), estimates.within(0, 0.4)
    self.assertAlmostEqual(estimates.difference(a, b).half, 1.96 * 0.7)


if __name__ == '__main__':
  absltest.main()
