"""The experiments on creativity at a small size."""

import json
import os
import re

from absl.testing import absltest

from experiments.benchmarks import machine_speed
from experiments.studies import creativity_table, els_predicts_cnn
from helpers import cases


class ExperimentsTest(absltest.TestCase):
  def test_machine_speed(self):
    workdir = self.create_tempdir().full_path
    out = cases.call(
      machine_speed.main,
      f'--workdir={workdir}',
      '--sizes',
      '3',
      '--measured=8',
      '--direct=1',
      '--queries=1',
      '--repeats=1',
    )
    self.assertRegex(
      out,
      r'patches \*? +[\d.]+ s for 5000 images and 1 queries +[\d.]+ x bare +direct is +[\d.]+ x '
      r'this',
    )
    self.assertTrue(os.path.exists(os.path.join(workdir, 'machine_speed.json')))

  def test_els_predicts_cnn(self):
    workdir = self.create_tempdir().full_path
    common = (
      els_predicts_cnn.main,
      f'--workdir={workdir}',
      '--train-steps=2',
      '--batch=4',
      '--limit=20',
      '--channels=8',
      '--blocks=1',
    )
    out = cases.call(
      *common, '--pairs=3', '--probes=2', '--sizes', '3', '--steps=2', '--paddings', 'circular'
    )
    self.assertRegex(out, r'circular  ELS    r -?[\d.]+ ± [\d.]+   sizes \[3, 3\]')
    with open(os.path.join(workdir, 'els_predicts_cnn_digits.json'), encoding='utf-8') as file:
      found = json.load(file)['circular']
    self.assertEqual(set(found['differences of r']), {'ELS - LS', 'ELS - IS'})
    out = cases.call(*common, '--pairs=4', '--bound')
    self.assertLen(re.findall(r'error of bbELS', out), 5)

  def test_table_over_seeds(self):
    share = lambda value: {'value': value, 'interval': [0, 1]}
    run = lambda consistent: {
      'quality': {
        'none': {'consistent': share(0.1), 'chance': 0.1},
        'top1': {'consistent': share(consistent), 'chance': 0.1},
      },
      'agreement': {
        name: {'ELS': {'r': share(0.5), 'r2': share(0.25)}} for name in ('none', 'top1')
      },
      'baselines': {name: {'random pair': share(0.2)} for name in ('none', 'top1')},
    }
    row = creativity_table.table([run(0.3), run(0.4), run(0.5)])[1]
    self.assertAlmostEqual(row['consistent'].value, 0.4)
    self.assertAlmostEqual(
      row['consistent above none'].high - 0.3, 4.3027 * 0.1 / 3**0.5, places=4
    )  # t(0.975, 2)
    self.assertAlmostEqual(row['r2 ELS'].value, 0.25)


if __name__ == '__main__':
  absltest.main()
