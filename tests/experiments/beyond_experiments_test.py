"""The studies of guidance, particles, steadiness, noisy data and chains, at a small size."""

import json
import os
from unittest import mock

import numpy as np
from absl.testing import absltest

from configs import digits
from experiments.studies import denoising_mcmc, drop, fkc_images, guidance, noisy_data
from gmm_diffusion import tasks
from gmm_diffusion.data import sources
from gmm_diffusion.engine import drawing, loss
from gmm_diffusion.metrics import features
from gmm_diffusion.samplers import fkc
from helpers import cases, cli

NET = 'net.name=cnn', 'net.channels=8', 'net.blocks=1', 'train.batch=16', 'train.steps=2'
SET = '--config=digits:runlocal', '--set', *NET, 'train.warmup=0'


class StudiesTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = cls.enterClassContext(cases.folder())
    cls.enterClassContext(mock.patch.dict(features.SETTINGS, steps=10))
    cls.start = cli.trained(cls.root)

  def rows(self, study, *arguments, key='rows'):
    """What a study writes."""
    name = study.__name__.split('.')[-1]
    self.workdir = self.create_tempdir().full_path
    cases.call(study.main, f'--workdir={self.workdir}', *arguments)
    with open(os.path.join(self.workdir, name + '.json'), encoding='utf-8') as file:
      return json.load(file)[key]

  def test_particles(self):
    with mock.patch.object(fkc, 'draw', side_effect=fkc.draw) as draw:
      rows = self.rows(
        fkc_images, f'--start={self.start}', '--particles', '0', '4', '--steps=3', '--count=20',
        '--seeds', '0', *SET,
      )  # fmt: skip
    self.assertEqual([call.args[1] for call in draw.call_args_list], [[-1.0, 2.0]])
    of = {(row['scale'], row['particles'], row['metric']): row for row in rows}
    asked = {key[:2]: row for key, row in of.items() if key[2] == 'recognised as asked'}
    self.assertEqual({key: row['calls'] for key, row in asked.items()}, {
      (1.0, 0): 3, (2.0, 0): 3, (2.0, 4): 12,
    })  # fmt: skip
    self.assertBetween(asked[2.0, 4]['effective'], 1, 4)
    self.assertGreaterEqual(asked[2.0, 4]['resampled'], 1 / 3)  # the last step always does
    self.assertLen({of[*key, 'frechet']['value'] for key in asked}, 3)
    self.assertTrue(os.path.exists(os.path.join(self.workdir, 'scale2_particles4.png')))

  def test_noisy_data(self):
    names, real = ('10 % clean + 90 % noisy', '10 % clean alone'), loss.train
    variants = {name: noisy_data.VARIANTS[name] for name in names}
    with (
      mock.patch.object(noisy_data, 'VARIANTS', variants),
      mock.patch.object(loss, 'train', side_effect=real) as train,
    ):
      rows = self.rows(noisy_data, '--count=20', '--level=0.3', '--seeds', '0', *SET)
    whole = sources.load(loss.specs.Data()).train
    (both, every, _), (alone, few, _) = (call.args for call in train.call_args_list)
    self.assertEqual((both.train.noisy, both.train.noise_level, alone.train.noisy), (0.9, 0.3, 0))
    clean = loss.noisy_items(both, len(whole)) < 0
    np.testing.assert_array_equal(every.train, whole)
    np.testing.assert_array_equal(few.train, whole[clean])  # the same that are clean in the other
    found = {row['data']: row['value'] for row in rows if row['metric'] == 'frechet'}
    self.assertEqual(tuple(found), names)
    self.assertLen(set(found.values()), 2)

  def test_drop(self):
    """Where later samples are less steady nothing changes; where they are steadier they are what
    stays."""
    changes = []
    for order in (1, -1):
      known = lambda model, bind, x, labels: np.arange(len(x)) * order
      with (
        mock.patch.object(drop, 'SAMPLERS', {'ddim 2': {'name': 'ddim', 'steps': 2}}),
        mock.patch.object(drawing.Model, 'unsteadiness', autospec=True, side_effect=known),
      ):
        rows = self.rows(
          drop, f'--start={self.start}', '--shares', '0.5', '--count=20', '--seeds', '0', '1', *SET
        )
      of = {row['share']: row for row in rows if row['metric'] == 'frechet'}
      self.assertEqual(of[0.0]['change']['value'], 0)
      changes.append(of[0.5]['change']['value'])
    self.assertEqual(changes[0], 0)
    self.assertNotEqual(changes[1], 0)

  def test_guidance(self):
    start = os.path.join(self.root, 'unconditional')
    config = digits.get_config('runlocal')
    config.train.update(steps=2, batch=16, warmup=0)
    config.net.update(name='cnn', channels=8, blocks=1, labels='none')
    tasks.run('train', start, config, 'test')
    rows = self.rows(
      guidance, f'--start={start}', '--scales', '0', '1', '--labels=3', '--draws=1', '--steps=2',
      '--count=20', '--seeds', '0', *SET,
      'classifier.channels=8', 'classifier.multipliers=(1.0,)', 'classifier.head_channels=8',
      'classifier.blocks=1',
    )  # fmt: skip
    of = {(row['towards'], row['scale'], row['metric']): row['value'] for row in rows}
    towards = lambda metric, scale: {
      key[0]: value for key, value in of.items() if key[1:] == (scale, metric)
    }
    plain, guided = towards('frechet', 0.0), towards('frechet', 1.0)
    self.assertEqual(plain['classes'], plain['what is rare'])  # no guidance, so the same samples
    self.assertLen({*guided.values(), plain['classes']}, 3)
    self.assertEqual([*towards('recognised as asked', 1.0)], ['classes'])
    self.assertEqual([*towards('rare', 1.0)], ['classes', 'what is rare'])
    for name in ('classes_0.png', 'what_is_rare_1.png'):
      self.assertTrue(os.path.exists(os.path.join(self.workdir, name)))

  def test_denoising_mcmc(self):
    ends = ('published', 'and a step by level')
    with mock.patch.object(denoising_mcmc, 'WAYS', {way: denoising_mcmc.WAYS[way] for way in ends}):
      rows = self.rows(denoising_mcmc, '--chains=32', '--draws=60', '--steps', '0.5', '--items=20')
    of = {(row['problem'], row['way']): row for row in rows}
    self.assertEqual(
      [*of], [(name, way) for name in ('two modes', 'digits') for way in (*ends, 'independent')]
    )
    two = lambda way: of['two modes', way]
    self.assertGreater(two('published')['off'], 3 * two(ends[1])['off'] + 0.05)
    self.assertLess(two('independent')['off'], 0.05)
    self.assertEqual(two('independent')['calls'], two(ends[1])['calls'])


if __name__ == '__main__':
  absltest.main()
