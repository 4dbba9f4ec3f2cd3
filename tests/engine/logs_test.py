"""Rows of metrics and where they go."""

import json
import os
import types
from unittest import mock

import jax
import jax.numpy as jnp
from absl.testing import absltest

from gmm_diffusion import files, parallel, specs
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.engine import logs
from gmm_diffusion.errors import UserError

ROW = {'step': 3, 'loss': 0.5, 'time': 7.0}
IS_PAIR = lambda x: isinstance(x, tuple)
ABOUT = {'net': {'width': 3}, 'train': {'steps': 4}}


class WritersTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = self.create_tempdir('mine').full_path

  def write(self, names, row=ROW, **modules):
    with mock.patch.dict('sys.modules', modules):
      with logs.writers(names, self.workdir, 2, ABOUT) as write:
        write(row)

  def test_tensorboard(self):
    module = mock.MagicMock()
    self.write(('tensorboard',), {**ROW, logs.ERRORS: {'0.1': 2.0}}, tensorboardX=module)
    module.SummaryWriter.assert_called_once_with(f'{self.workdir}/tensorboard', purge_step=3)
    writer = module.SummaryWriter.return_value.__enter__.return_value
    self.assertEqual(
      writer.add_scalar.mock_calls,
      [mock.call('loss', 0.5, 3, walltime=7.0), mock.call('errors/0.1', 2.0, 3, walltime=7.0)],
    )

  def test_wandb_goes_on_with_its_run(self):
    module = mock.MagicMock()
    self.write(('wandb',), wandb=module)
    self.write(('wandb',), wandb=module)
    first, second = module.init.call_args_list
    self.assertEqual(first, second)
    self.assertEqual((first.kwargs['name'], first.kwargs['config']), ('mine', ABOUT))
    module.init.return_value.log.assert_called_with(ROW, step=3)
    self.assertEqual(module.init.return_value.finish.call_count, 2)

  def test_wandb_without_a_key(self):
    module = mock.MagicMock(Error=LookupError)
    module.init.side_effect = LookupError('No API key\nand more')
    with self.assertRaisesRegex(UserError, r'refuses \(No API key\); run wandb login .*=offline$'):
      self.write(('wandb',), wandb=module)

  def test_the_first_host_alone(self):
    module = mock.MagicMock()
    with mock.patch.object(parallel, 'is_main', lambda: False):
      self.write(('wandb', 'tensorboard'), wandb=module, tensorboardX=module)
    module.init.assert_not_called()
    module.SummaryWriter.assert_not_called()

  def test_not_installed(self):
    with self.assertRaisesRegex(UserError, r"'wandb' needs wandb .* pip install -e '\.\[wandb\]'"):
      self.write(('wandb',), wandb=None)


class LogTest(absltest.TestCase):
  def test_share_of_what_the_devices_can_do(self):
    """A product of two matrices of 64 takes 2 x 64^3 operations."""
    fn = parallel.over_devices(lambda shared, batch: shared @ batch)
    arguments = jnp.ones((1, 64, 64)), jnp.ones((1, 64, 64))
    self.assertEqual(parallel.work(fn, *arguments), 0)  # nobody knows what this processor can do
    with mock.patch.dict(parallel._PEAKS, {jax.devices()[0].device_kind[:3]: 1e6}):
      self.assertAlmostEqual(parallel.work(fn, *arguments), 2 * 64**3 / 1e6, delta=1e-3)
    seen, workdir = [], self.create_tempdir().full_path
    log = logs.Log(specs.Train(batch=4), workdir, 0, 'train', 0.1, seen.append)
    log.expect(3.0)
    there = lambda x: types.SimpleNamespace(addressable_data=lambda device: jnp.asarray([x]))
    errors = [{'10': (n, 1.0), '2': (2.0 * n, 4.0), '0.1': (0.0, 0.0)} for n in (1.0, 2.0)]
    log.values = [
      (there(1.0), there(1.0), jax.tree.map(there, one, is_leaf=IS_PAIR)) for one in errors
    ]
    with (
      Store(self.create_tempdir().full_path) as store,
      mock.patch.object(logs.time, 'perf_counter', lambda: log._then + 10),
    ):
      row = log.row(2, store)
    self.assertAlmostEqual(row['flops_share'], 0.6)  # two updates of 3 s, in 10 s
    self.assertAlmostEqual(row['images_per_second'], 0.8)
    self.assertEqual(list(row[logs.ERRORS].items()), [('2', 6 / 8), ('10', 3 / 2)])  # where any is
    self.assertEqual(seen, [row])
    with open(os.path.join(workdir, logs.METRICS), encoding='utf-8') as file:
      self.assertEqual(json.load(file), row)

  def test_a_row_that_was_cut_off(self):
    workdir = self.create_tempdir().full_path
    path = os.path.join(workdir, logs.METRICS)
    files.write_text(path, '{"step": 1}\n{"step": 5}\n{"st')
    logs.Log(specs.Train(), workdir, 4, 'train', 0.1, lambda row: None)
    with open(path, encoding='utf-8') as file:
      self.assertEqual(file.read(), '{"step": 1}\n')


if __name__ == '__main__':
  absltest.main()
