"""The page of creativity: words that follow the numbers, names on every row."""

import re

from absl.testing import absltest

from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.nets import cnn
from gmm_diffusion.tasks.creativity import report
from gmm_diffusion.tasks.creativity.quality import Maps


def found(attention, half=0.02):
  """Numbers of a plain CNN that is consistent in 10 %, and of one with attention."""
  around = lambda value: Estimate(value, max(0, value - half), min(1, value + half))
  quality = lambda share: {
    'consistent': around(share),
    'recognised': around(1.0),
    'chance': 0.07,
    'memorised': around(0.0),
    'distance': Estimate(9.0, 8.0, 11.0),
    'held-out distance': Estimate(12.0, 11.0, 14.0),
  }
  agreement = lambda one, other: {
    name: {key: around(value) for key in ('r', 'r2', 'cosine')}
    for name, value in (('bbELS', one), ('consistent', other))
  }
  baselines = {'nearest training image': around(0.4), 'random pair': around(0.1)}
  numbers = {
    'quality': {
      'none': quality(0.1),
      'softmax': quality(attention),
      'machine bbELS': quality(0.06),
    },
    'agreement': {'none': agreement(0.7, 0.5), 'softmax': agreement(0.5, 0.6)},
    'baselines': {'none': baselines, 'softmax': baselines},
  }
  return report.Found({}, numbers, {}, Maps([], {}), {}, 'bbELS')


class ReportTest(absltest.TestCase):
  def test_words_follow_the_numbers(self):
    text = ' '.join(report.lead(found(0.5)))
    self.assertIn(
      'The plain CNN makes images with one theme throughout in 10.0 % (8.0 to 12.0)', text
    )
    self.assertIn('independent cells would in 7.0 %', text)
    self.assertIn('Highest is the CNN with softmax attention: 50.0 % (48.0 to 52.0).', text)
    self.assertRegex(text, r'bbELS predicts best what the plain CNN .* r = 0\.70')
    self.assertRegex(
      text, r'consistent predicts best what the CNN with softmax attention .* r = 0\.60'
    )
    self.assertIn('no difference within these intervals', ' '.join(report.lead(found(0.11))))
    self.assertNotIn('Highest is', ' '.join(report.lead(found(0.05))))

  def test_intervals_of_shares_stay_in_0_100(self):
    for value in (Estimate(0.0, 0.0, 0.02), Estimate(1.0, 0.98, 1.0)):
      low, high = re.findall(r'[\d.]+', report.percent(value))[1:]
      self.assertTrue(0 <= float(low) <= float(high) <= 100)
      self.assertNotIn('±', report.percent(value))

  def test_every_row_has_a_name(self):
    for part in report._agreement(found(0.5)):
      for row in re.findall(r'<tr.*?>(.*?)</tr>', str(part)):
        self.assertRegex(row, r'^<t[dh]>[^<]+<')

  def test_names_of_networks(self):
    self.assertEqual(report.label('none'), 'plain CNN')
    self.assertEqual(report.label('machine ELS'), 'machine ELS')
    self.assertEqual(set(report.LABELS), set(cnn.FINALS))


if __name__ == '__main__':
  absltest.main()
