"""The study of what each part of the segmenter adds, at a small size."""

import json
import os
from unittest import mock

from absl.testing import absltest

from experiments.lib import common
from experiments.studies import click_ablations
from gmm_diffusion.tasks.segmentation import training
from helpers import cases

VALUES = 'clicks through propagated values alone'
SET = 'train.steps=1', 'train.warmup=0', 'segmentation.clicks=2', 'segmentation.objects=2'


class ClickAblationsTest(absltest.TestCase):
  def test_the_networks_differ_in_one_part_each(self):
    full = common.spec_of('segmentation:photographs')
    seen = {(full, 'tokens')}
    for name, (clicks, own) in click_ablations.NETWORKS.items():
      spec = common.spec_of('segmentation:photographs', own)
      seen.add((spec, clicks))
      self.assertEqual(len(own) + (clicks != 'tokens'), int(name != click_ablations.FULL), name)
    self.assertLen(seen, len(click_ablations.NETWORKS))

  def test_rows(self):
    workdir = self.create_tempdir().full_path
    arguments = (
      f'--workdir={workdir}', '--config=segmentation:runlocal', '--networks', click_ablations.FULL,
      VALUES, '--set', *SET,
    )  # fmt: skip

    def run():
      with mock.patch.object(training, 'make_batch', side_effect=training.make_batch) as made:
        cases.call(click_ablations.main, *arguments)
      with open(os.path.join(workdir, 'click_ablations.json'), encoding='utf-8') as file:
        return json.load(file), made.call_count

    found, batches = run()
    self.assertEqual(batches, 2)  # one step of each network
    self.assertEqual((found['n'], found['steps']), (2, 1))
    rows = found['networks']
    self.assertCountEqual(rows[click_ablations.FULL], ('both', 'none', 'minus none'))
    self.assertCountEqual(rows[VALUES], ('both', f'minus {click_ablations.FULL}'))
    of = lambda name, row: rows[name][row]['IoU@2'][0]
    for difference, (one, other) in {
      (click_ablations.FULL, 'minus none'): (
        (click_ablations.FULL, 'both'),
        (click_ablations.FULL, 'none'),
      ),
      (VALUES, f'minus {click_ablations.FULL}'): ((VALUES, 'both'), (click_ablations.FULL, 'both')),
    }.items():
      self.assertAlmostEqual(of(*difference), of(*one) - of(*other))
    again, batches = run()  # what is trained is evaluated again
    self.assertEqual((again['networks'], batches), (rows, 0))


if __name__ == '__main__':
  absltest.main()
