"""The experiments on networks and their derivatives, at a small size."""

import json
import os
import sys
import types
from unittest import mock

import numpy as np
from absl.testing import absltest

from configs import digits
from experiments.benchmarks import attention_lengths, quantised_memory, tune_memory
from experiments.studies import (
  attention_kinds,
  geometry,
  last_step,
  learned_variance,
  masked,
  mixture_scales,
  posterior_kernels,
  quantisation,
  restoration,
  score_ranks,
  transfer,
  tune_recipes,
)
from gmm_diffusion import files, tasks
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.metrics import features
from gmm_diffusion.samplers import tuned
from gmm_diffusion.tasks.diffusion import bound, tune
from gmm_diffusion.tune import local_errors, race
from helpers import cases

CNN = dict(name='cnn', channels=32, blocks=1)  # compiles in less time
SET = ('--set', *(f'net.{key}={value}' for key, value in CNN.items()))


def digits_cnn(arg=''):
  """As configs/digits.py:runlocal."""
  del arg
  config = digits.get_config('runlocal')
  config.net.update(CNN)
  return config


def record(workdir, name):
  with open(os.path.join(workdir, f'{name}.json'), encoding='utf-8') as file:
    return json.load(file)


class NetworksTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = cls.enterClassContext(cases.folder())
    cls.enterClassContext(mock.patch.dict(features.SETTINGS, steps=10))
    small = types.SimpleNamespace(get_config=digits_cnn)
    cls.enterClassContext(mock.patch.dict(sys.modules, {'configs.digits_cnn': small}))
    cls.cnn = os.path.join(cls.root, 'cnn')
    config = digits_cnn()
    config.train.steps = 2
    tasks.run('train', cls.cnn, config, 'test')

  def folder(self, name):
    return os.path.join(self.root, name)

  def test_quantisation(self):
    workdir = self.folder('quantisation')
    cases.call(
      quantisation.main, f'--workdir={workdir}', f'--start={self.cnn}',
      '--config=digits:runlocal', '--count=30', '--calibration=8', '--rows', 'W8', 'W3',
      *SET, 'sampler.steps=2',
    )  # fmt: skip
    whole, near, far = record(workdir, 'quantisation')['rows']
    self.assertLess(near['bytes'], whole['bytes'] / 3)
    self.assertGreater(far['rms']['value'], 3 * near['rms']['value'])

  def test_attention_kinds(self):
    workdir = self.folder('kinds')
    cases.call(
      attention_kinds.main, f'--workdir={workdir}', '--config=digits:runlocal', '--count=30',
      '--kinds', 'dot', 'soft, rows', '--trainings=1',
      '--set', 'train.steps=2', 'train.log_every=1', 'sampler.steps=2',
        'net.channels=8', 'net.multipliers=(1,)', 'net.head_channels=8',
    )  # fmt: skip
    dot, soft = record(workdir, 'attention_kinds')['rows']
    self.assertLess(soft['parameters'], dot['parameters'])  # one projection for queries and keys
    self.assertEqual((dot['kind'], soft['kind']), ('dot', 'soft, rows'))
    self.assertGreater(soft['frechet']['value'], 0)

  def test_masked(self):
    workdir = self.folder('masked')
    with mock.patch.multiple(masked, EPSILONS=(0.2,), WIDTHS=(0.5,), DRAWS=2):
      cases.call(masked.main, f'--workdir={workdir}', '--count=6', '--steps=2')
    found = record(workdir, 'masked_exact')
    self.assertLen(found['lsd'], 7)
    self.assertLess(max(found['lsd']), 0.7)  # of an exact predictor, which has no errors
    of = {(row['problem'], row['method'], row['metric']): row['value'] for row in found['rows']}
    misfit = [
      of['2 x super-resolution', f'anchors, {n} gradient steps', 'misfit'] for n in (100, 0)
    ]
    self.assertLess(misfit[0], misfit[1] / 2)

  def test_restoration(self):
    workdir = self.folder('restoration')
    with mock.patch.object(restoration, 'METHODS', ('exact', 'pigdm')):
      cases.call(
        restoration.main, f'--workdir={workdir}', f'--start={self.cnn}',
        '--config=restore:runlocal', '--unconditional=digits_cnn', '--count=8', '--draws=2',
        '--steps', '1', '--guided-steps=2', '--problems', 'super-resolution, 2 x',
        '--set', 'train.steps=2', 'net.name=cnn', 'net.channels=8',
      )  # fmt: skip
    rows = record(workdir, 'restoration_methods')['rows']
    of = {(row['method'], row['metric']): row for row in rows}
    methods = {method for method, _ in of}
    self.assertContainsSubset(
      {'degraded', 'regression', 'residual ddim 1', 'guided, pigdm', 'training images, exact'},
      methods,
    )
    self.assertGreater(
      of['training images, exact', 'PSNR']['value'], of['guided, pigdm', 'PSNR']['value']
    )

  def test_posterior_kernels(self):
    workdir = self.folder('posterior')
    few = {kind: posterior_kernels.KINDS[kind] for kind in posterior_kernels.PARTS}
    with (
      mock.patch.object(posterior_kernels, 'KINDS', few),
      mock.patch.object(race, 'RUNNERS', {'unipc': {}}),
    ):
      cases.call(
        posterior_kernels.main, f'--workdir={workdir}', f'--start={self.cnn}',
        '--config=digits:runlocal', '--calls', '2', '--etas', '1', '--grids', 'trailing',
        '--scales', '1', '--directions=2', '--items=20', '--choose=16', '--count=20', '--seeds=2',
        *SET,
      )  # fmt: skip
    rows = {row['what']: row for row in record(workdir, 'posterior_kernels')['rows']}
    self.assertIn('the best other', rows)
    self.assertContainsSubset(few, rows)
    parts = [row for what, row in rows.items() if what.endswith('at the settings of the mixture')]
    self.assertLen(parts, 3)
    self.assertAlmostEqual(
      sum(row['difference']['value'] for row in parts),
      rows['mixture, axes']['mean'] - rows['DDIM']['mean'],
    )

  def test_transfer(self):
    workdir, there = self.folder('transfer'), self.folder('tuned elsewhere')
    # in two steps all multistep samplers with the line over the last one are the same
    table = lambda name: (
      race.embedded(
        name, {'extrapolate': False}, schedules.linear(), np.array([999.0, 400.0]), ''
      ).table
    )
    best, fixed = (tuned.content(table(name), (8, 8, 1), '') for name in ('unipc', 'deis'))
    files.write_json(
      tune.path_of(there, 2), {'calls': 2, **best, 'fixed': {'table': fixed['table']}}
    )
    words = (
      f'--workdir={workdir}', f'--tuned={there}', f'--start={self.cnn}',
      '--config=digits:runlocal', '--count=60', '--seeds=2', *SET,
    )  # fmt: skip
    out = cases.call(transfer.main, '--calls=2', *words)
    self.assertIn('2 calls, tuned, gradients: ', out)
    rows = {row['what']: row for row in record(workdir, 'transfer')['rows']}
    self.assertEqual(list(rows), ['DDIM', 'best untuned', 'tuned'])
    for judge in posterior_kernels.JUDGES:
      own, other = (rows[what][judge] for what in ('tuned', 'best untuned'))
      self.assertAlmostEqual(own['minus_untuned']['value'], own['mean'] - other['mean'])
      self.assertNotEqual(own['mean'], other['mean'])
    with self.assertRaisesRegex(
      UserError, 'there is no tuned sampler .*/3.json; make it with --mode=tune'
    ):
      cases.call(transfer.main, '--calls=3', *words)

  def test_score_ranks(self):
    workdir = self.folder('ranks')
    with mock.patch.object(race, 'RUNNERS', {'ddim': {'eta': (0.0, 1.0)}}):
      out = cases.call(
        score_ranks.main, f'--workdir={workdir}', f'--start={self.cnn}', '--config=digits:runlocal',
        '--calls=2', '--count=20', '--samplers=8', '--samples=16', *SET,
      )  # fmt: skip
    self.assertIn('2 calls, better half, 16 samples, weight 1: ', out)
    rows = record(workdir, 'score_ranks')['rows']
    self.assertLen(rows, 2 * len(score_ranks.WEIGHTS))
    for row in rows:
      self.assertBetween(row['value'], -1, 1)
    with self.assertRaisesRegex(UserError, '--samplers must be at least 8, got 7'):
      cases.call(
        score_ranks.main, f'--workdir={workdir}', f'--start={self.cnn}', '--config=digits:runlocal',
        '--calls=2', '--samplers=7', *SET,
      )  # fmt: skip
    same = score_ranks.rank(np.arange(9.0), np.arange(9.0) ** 3)
    self.assertAlmostEqual(same['value'], 1)

  def test_mixture_scales(self):
    workdir = self.folder('scales')
    out = cases.call(
      mixture_scales.main, f'--workdir={workdir}', f'--start={self.cnn}',
      '--config=digits:runlocal', '--calls=2', '--grids=trailing', '--scales=3', '--count=200',
      '--seeds=2', '--last-steps=source', *SET,
    )  # fmt: skip
    self.assertIn('ddim_noise_ortho, scale 3, offset in the last step  classifier ', out)
    rows = record(workdir, 'mixture_scales')['rows']
    self.assertEqual(
      [(row['sampler'], row.get('last_step')) for row in rows],
      [('ddim', None), ('ddim_gmm_ortho', 'source'), ('ddim_noise_ortho', 'source')],
    )
    for judge in posterior_kernels.JUDGES:
      ddim, mixture, control = [row[judge] for row in rows]
      self.assertLen({one['mean'] for one in (ddim, mixture, control)}, 3)
      for key, other in (('minus_ddim', ddim), ('minus_control', control)):
        self.assertAlmostEqual(mixture[key]['value'], mixture['mean'] - other['mean'])
      self.assertNotIn('minus_control', control)
      self.assertNotIn('minus_ddim', ddim)

  def test_last_step(self):
    workdir = self.folder('last')
    out = cases.call(
      last_step.main, f'--workdir={workdir}', f'--start={self.cnn}', '--config=digits:runlocal',
      '--calls=3', '--grids', 'trailing', 'karras', '--samplers', 'UniPC 2', '--count=200',
      '--seeds=2', *SET,
    )  # fmt: skip
    self.assertIn('3 calls, UniPC 2, gradients: ', out)
    (row,) = record(workdir, 'last_step')['rows']
    for part in (row['True'], row['False']):
      self.assertEqual(part['grid'], min(part['choosing'], key=part['choosing'].get))
      self.assertEqual(set(part['choosing']), {'trailing', 'karras'})
    for judge in posterior_kernels.JUDGES:
      ends = [np.mean(row[end][judge]) for end in ('True', 'False')]
      self.assertNotEqual(*ends)
      self.assertAlmostEqual(row[f'{judge} minus']['value'], ends[0] - ends[1])

  def test_recipes_of_others(self):
    workdir = self.folder('recipes')
    # the line over the last of two steps makes recipes alike
    with (
      mock.patch.object(
        race, 'RUNNERS', {'unipc': {'extrapolate': (False,)}, 'ddim': {'eta': (1.0,)}}
      ),
      mock.patch.dict(grids.GRIDS, {'log_snr': grids.GRIDS['log_snr']}, clear=True),
      mock.patch.object(tune_recipes, 'BANK', 8),
      mock.patch.object(local_errors, 'FINE', 6),
      mock.patch.dict(tune_recipes.RECIPES) as recipes,
    ):
      del recipes['grid and coefficients, to a teacher']
      cases.call(
        tune_recipes.main, f'--workdir={workdir}', f'--start={self.cnn}',
        '--config=digits:runlocal',
        '--calls=2', '--count=60', '--seeds=2', '--samples=16', '--budget=2000', '--batch=8', *SET,
      )  # fmt: skip
    start, *rows = record(workdir, 'tune_recipes')['rows']
    self.assertRegex(start['what'], '^unipc')
    self.assertEqual(
      [row['what'] for row in rows], ['grid, to a teacher', 'all numbers, energy distance']
    )
    found = {row['classifier']['mean'] for row in (start, *rows)}
    self.assertLen(found, 3)  # three samplers

  def test_learned_variance(self):
    workdir = self.folder('learned_variance')
    with mock.patch.multiple(bound, COUNT=8, EXACT=2, PARTS=2):
      cases.call(
        learned_variance.main, f'--workdir={workdir}', '--config=digits:runlocal', '--steps', '2',
        '--count=20', '--seeds', '5', '6', *SET, 'train.steps=2',
      )  # fmt: skip
    found = record(workdir, 'learned_variance')
    self.assertContainsSubset(learned_variance.VARIANCES, found['bits'])
    self.assertEqual(
      [(row['network'], row['variance']) for row in found['rows']],
      [('learned', 'small'), ('learned', 'large'), ('learned', 'learned'), ('fixed', 'small'),
       ('fixed', 'large')],
    )  # fmt: skip

  def test_geometry(self):
    small = {name: geometry.MACHINES[name] for name in ('IS', 'ELS 3')}
    with (
      mock.patch.multiple(geometry, MACHINES=small, SIGNALS=(0.5,), GAUGES=(0.0, 3.0), STEPS=(20,)),
      mock.patch.multiple(geometry.jacobian, COUNT=4, RATIOS=np.array([0.2, 2.0])),
    ):
      cases.call(
        geometry.main, f'--workdir={self.cnn}', '--config=digits:runlocal', '--count=2',
        '--training=20', *SET, 'data.limit=100',
      )  # fmt: skip
    found = record(self.cnn, 'geometry')
    of = {row['model']: row['value'] for row in found['machines'] if row['metric'] == 'asymmetry'}
    self.assertLess(of['IS'], 1e-9)
    self.assertGreater(of['ELS 3'], 1e-3)
    self.assertEqual({row['model'] for row in found['networks']}, {'U-Net', 'training images'})
    plain, turned = [row['value'] for row in found['gauge'] if row['metric'] == 'rms distance']
    self.assertGreater(turned, 3 * plain)

  def test_lengths_and_memory(self):
    workdir = self.folder('benchmarks')
    out = cases.call(
      attention_lengths.main, f'--workdir={workdir}', '--tokens', '256', '--repeats=1'
    )
    self.assertRegex(out, r'256 tokens, soft, 64 landmarks +[\d.]+ s')
    cases.call(
      quantised_memory.main, f'--workdir={workdir}', '--variant=runlocal', '--forms', 'float32',
      'W4', '--steps=2',
    )  # fmt: skip
    whole, few = record(workdir, 'quantised_memory')['rows']
    self.assertLess(few['weights_bytes'], whole['weights_bytes'] / 3)  # tables of classes stay
    cases.call(
      tune_memory.main, f'--workdir={workdir}', '--batch=8', '--calls', '2', '6', *SET,
    )  # fmt: skip
    few, many = record(workdir, 'tune_memory')['rows']
    growth = {name: many[name] - few[name] for name in ('checkpointed', 'kept')}
    self.assertLess(growth['checkpointed'], growth['kept'] / 4)  # only states stay


if __name__ == '__main__':
  absltest.main()
