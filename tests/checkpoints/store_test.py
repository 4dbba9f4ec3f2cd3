"""Checkpoints: weights apart from the state of training, in the dtype asked for, whole or
absent."""

import glob
import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl.testing import absltest, parameterized

from gmm_diffusion import files
from gmm_diffusion.checkpoints import store as store_lib
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.errors import UserError
from helpers import cases, cli

WEIGHTS = {
  'net': {'a': np.float32([[1.5, -2.0]]), 'n.0': {'b': np.float32([0.1])}},
  'autoencoder': {'scale': np.float32(0.5)},
}
STATE = {'step': np.int32(7), 'moments': np.float32([3.0])}
shapes = lambda tree, dtype=None: jax.eval_shape(
  lambda: jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
)


class StoreTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = self.create_tempdir().full_path
    store = Store(self.workdir, create=True)
    for step in (1, 2, 3):
      store.save(step, jax.tree.map(lambda x: x * step, WEIGHTS), STATE, {'net': {'width': 3}})
    store.close()

  def test_managers_are_closed(self):
    whole = ocp.CheckpointManager.close
    with mock.patch.object(ocp.CheckpointManager, 'close', autospec=True, side_effect=whole) as end:
      with Store(self.workdir) as store:
        store.weights(shapes(WEIGHTS))
      self.assertEqual(end.call_count, 1)
      with self.assertRaises(ZeroDivisionError), Store(self.workdir):
        raise ZeroDivisionError
      self.assertEqual(end.call_count, 2)

  def test_round_trip(self):
    store = Store(self.workdir)
    self.assertEqual(store.latest(), 3)
    self.assertEqual(store.about(), {'net': {'width': 3}, 'format': 'gmm_diffusion/2'})
    jax.tree.map(
      np.testing.assert_array_equal,
      store.weights(shapes(WEIGHTS)),
      jax.tree.map(lambda x: 3 * x, WEIGHTS),
    )
    jax.tree.map(np.testing.assert_array_equal, store.training(shapes(STATE)), STATE)

  def test_weights_load_without_the_training_state(self):
    folder = os.path.join(self.workdir, 'checkpoints', '3', 'train')
    for root, _, names in os.walk(folder):
      for name in names:
        os.remove(os.path.join(root, name))
    found = Store(self.workdir).weights(shapes(WEIGHTS, jnp.bfloat16))
    self.assertEqual(found['net']['a'].dtype, jnp.bfloat16)
    self.assertIsInstance(found['net']['a'], np.ndarray)  # not yet on any device
    np.testing.assert_array_equal(np.float32(found['net']['a']), [[4.5, -6.0]])

  def test_one_part_loads_without_the_others(self):
    store = Store(self.workdir)
    self.assertEqual(
      store.weights(shapes({'autoencoder': WEIGHTS['autoencoder']})),
      {'autoencoder': {'scale': 1.5}},
    )

  def test_old_steps_go(self):
    self.assertEqual(sorted(os.listdir(os.path.join(self.workdir, 'checkpoints'))), ['2', '3'])

  def test_what_stays(self):
    workdir = self.create_tempdir().full_path
    with Store(workdir, create=True, keep=(1, 2)) as store:
      for step in range(1, 6):
        store.save(step, jax.tree.map(lambda x: x * step, WEIGHTS), STATE, {})
    self.assertEqual(sorted(os.listdir(os.path.join(workdir, 'checkpoints'))), ['2', '4', '5'])
    with Store(workdir, step=4) as store:
      self.assertEqual(store.latest(), 4)
      np.testing.assert_array_equal(store.weights(shapes(WEIGHTS))['autoencoder']['scale'], 2)
    with self.assertRaisesRegex(UserError, 'there is no checkpoint 3 in .*; there are: 2, 4, 5$'):
      Store(workdir, step=3)

  def test_an_unfinished_step_does_not_count(self):
    os.makedirs(os.path.join(self.workdir, 'checkpoints', '9.orbax-checkpoint-tmp'))
    self.assertEqual(Store(self.workdir).latest(), 3)

  def test_other_shapes_are_refused(self):
    for part in (
      {**WEIGHTS['net'], 'a': np.zeros((5, 5), np.float32)},
      {'other': np.zeros(1, np.float32)},
    ):
      with self.assertRaisesRegex(UserError, "cannot read 'net' of checkpoint"):
        Store(self.workdir).weights(shapes({'net': part}))
    with self.assertRaisesRegex(UserError, "cannot read 'classifier' of checkpoint"):
      Store(self.workdir).weights(shapes({'classifier': {'a': np.zeros(1, np.float32)}}))

  def test_every_changed_byte_of_the_arrays_is_noticed(self):
    step = os.path.join(self.workdir, 'checkpoints', '3')
    for item, read in (
      ('net', lambda store: store.weights(shapes(WEIGHTS))),
      ('train', lambda store: store.training(shapes(STATE))),
    ):
      paths = glob.glob(os.path.join(step, item, '**'), recursive=True)
      for path in filter(os.path.isfile, paths):
        with open(path, 'rb') as file:
          content = file.read()
        for damaged in (
          content[: len(content) // 2]
          + bytes([content[len(content) // 2] ^ 4])
          + content[len(content) // 2 + 1 :],
          content[:-1],
          None,
        ):
          os.remove(path)
          if damaged is not None:
            with open(path, 'wb') as file:
              file.write(damaged)
          with Store(self.workdir) as store:
            with self.assertRaisesRegex(
              UserError,
              f"cannot read '{item}' of checkpoint .*/3: {item}/.* is not as it was written",
            ):
              read(store)
          with open(path, 'wb') as file:
            file.write(content)
      with Store(self.workdir) as store:
        read(store)

  def test_steps_without_checksums_are_read(self):
    os.remove(os.path.join(self.workdir, 'checkpoints', '3', 'checksums.json'))
    with Store(self.workdir) as store:
      self.assertEqual(store.weights(shapes(WEIGHTS))['autoencoder']['scale'], 1.5)

  def test_a_step_that_cannot_be_written(self):
    with self.assertRaisesRegex(
      UserError, 'cannot write the checkpoint to .*: No space; free space there, or give another'
    ):
      with Store(self.workdir, create=True) as store:
        with mock.patch.object(store_lib, '_checksums', side_effect=OSError('No space')):
          store.save(4, WEIGHTS, STATE, {})
          store.close()
    self.assertEqual(Store(self.workdir).latest(), 3)
    file = self.create_tempfile('file', 'text').full_path
    with self.assertRaisesRegex(UserError, 'cannot open .*/file/checkpoints: .*; give another'):
      Store(file, create=True)
    os.makedirs(os.path.join(self.workdir, 'other'))
    files.write_text(os.path.join(self.workdir, 'other', 'checkpoints'), '')
    for create in (False, True):
      with self.assertRaisesRegex(
        UserError, 'other/checkpoints is not a folder; remove it, or give'
      ):
        Store(os.path.join(self.workdir, 'other'), create)

  def test_on_several_hosts_another_one_may_be_gone(self):
    with mock.patch.object(store_lib.parallel, 'hosts', return_value=2):
      with self.assertRaisesRegex(UserError, 'give another --workdir; if another machine is gone'):
        with Store(self.workdir, create=True) as store:
          with mock.patch.object(store._manager, 'save', side_effect=RuntimeError('no answer')):
            store.save(4, WEIGHTS, STATE, {})

  def test_none(self):
    empty = self.create_tempdir().full_path
    self.assertIsNone(Store(empty).latest())
    with self.assertRaisesRegex(
      UserError, 'no checkpoint in .*; train one first with --mode=train or --mode=all'
    ):
      Store(empty).about()
    self.assertEqual(os.listdir(empty), [])


class CommandTest(parameterized.TestCase):
  @parameterized.parameters(1, 4)  # it shows at the end, or when the next one is to be saved
  def test_a_disk_that_fills_up_is_one_line(self, steps):
    workdir = self.create_tempdir().full_path
    script = (
      'import os, resource, runpy, signal\n'
      # what it compiles is not for others, since it would be cut off, too
      'os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"\n'
      'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
      'resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n'
      'runpy.run_module("gmm_diffusion.main", run_name="__main__")'
    )
    code, _, error = cases.python(
      *('-c', script, '--config=configs/digits.py:runlocal', '--mode=train'),
      *(f'--workdir={workdir}', f'--config.train.steps={steps}', *cli.CNN),
      '--config.train.checkpoint_every=1',
    )
    self.assertEqual(code, 1)
    last = error.replace('\r', '\n').splitlines()[-1]
    self.assertRegex(last, '^error: cannot write the checkpoint to .*; free space there, or give')
    self.assertNotIn('Traceback', error)
    self.assertIsNone(Store(workdir).latest())


if __name__ == '__main__':
  absltest.main()
