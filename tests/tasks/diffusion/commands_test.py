"""End to end, by the real command: train, sample, evaluate, all; toy; resume after kill -9."""

import functools
import glob
import json
import os
import signal
import subprocess
import sys
import time

import chex
import numpy as np
import orbax.checkpoint as ocp
from absl.testing import absltest
from PIL import Image

from gmm_diffusion.checkpoints.store import Store
from helpers import cases, cli


def records(workdir):
  with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as file:
    return json.load(file)


class AllTest(absltest.TestCase):
  def test_digits(self):
    workdir = os.path.join(self.create_tempdir().full_path, 'run')
    pixels = '--config.evaluate.features=identity'  # asks for no training
    code, out, error = cli.main('digits.py:runlocal', 'all', workdir, *cli.CNN[:3], pixels)
    self.assertEqual(code, 0, error[-3000:])
    self.assertNotIn('Warning', error)
    self.assertIn('training', error)  # the progress bar
    for name in (
      'training.png',
      'training.json',
      'report.html',
      'results.json',
    ):
      self.assertTrue(os.path.exists(os.path.join(workdir, name)), name)
    with np.load(cases.sample_set(workdir, 'ddim_gmm')) as file:
      self.assertEqual((file['arr_0'].dtype, file['arr_0'].shape), (np.uint8, (100, 8, 8, 1)))
      np.testing.assert_array_equal(file['arr_1'], np.arange(100) % 10)
    self.assertEqual(Image.open(cases.sample_set(workdir, 'ddim', '.png')).mode, 'L')

    found = {(r.get('sampler'), r.get('metric')): r for r in records(workdir)}
    for sampler in ('ddim', 'ddim_gmm', 'ddim_noise'):  # the control came by itself
      record = found[sampler, 'frechet']
      self.assertBetween(record['value'], *record['interval'])
      self.assertEqual((record['n'], record['nfe'], record['seed']), (100, 10, 0))
      for key in (
        'weights',
        'reference',
        'config',
        'command',
        'versions',
        'seconds',
        'features',
        'settings',
      ):
        self.assertIn(key, record)
    self.assertEqual(found['ddim_gmm', 'frechet']['control'], 'ddim_noise')
    unsteady = [record for record in records(workdir) if record['kind'] == 'unsteady']
    self.assertEqual([record['sampler'] for record in unsteady], ['ddim', 'ddim_gmm'])
    self.assertEqual({record['n'] for record in unsteady}, {100})
    geometry = [record for record in records(workdir) if record['kind'] == 'geometry']
    self.assertLen(geometry, 3 * 6)  # metrics and levels
    self.assertGreater(geometry[0]['value'], 0)
    with open(os.path.join(workdir, 'report.html'), encoding='utf-8') as file:
      text = file.read()
    self.assertIn('Samples that may be made up', text)
    self.assertIn('Geometry of the model', text)
    self.assertIn('Copies of training images', text)

    with open(os.path.join(workdir, 'report.html'), encoding='utf-8') as file:
      page = file.read()
    for text in (
      '--mode=all',
      'ddim_noise',
      'frechet',
      '±',
      'cov. resid.',
      'data:image/png;base64',
    ):
      self.assertIn(text, page)
    self.assertNotIn('src="http', page)

    # a second look: other steps by an override, from the same checkpoint
    code, out, error = cli.here(
      'digits.py:runlocal',
      'sample',
      workdir,
      *cli.CNN[:3],
      '--config.sampler.steps=5',
      '--config.sample.count=20',
    )
    self.assertEqual(code, 0, error[-3000:])
    self.assertIn('20 samples, 5 network evaluations each', out)
    self.assertIn('4 of 5 steps are clipped', out)

    # and again: what is there is not drawn twice
    code, out, error = cli.here(
      'digits.py:runlocal',
      'sample',
      workdir,
      *cli.CNN[:3],
      '--config.sampler.steps=5',
      '--config.sample.count=20',
    )
    self.assertEqual(code, 0, error[-3000:])
    self.assertNotIn('sampling', error)

    # another network than the checkpoint's is refused
    code, out, error = cli.here(
      'digits.py:runlocal', 'sample', workdir, *cli.CNN[:3], '--config.net.channels=24'
    )
    self.assertEqual(code, 1)
    self.assertRegex(
      error.strip().splitlines()[-1],
      r'^error: the checkpoint in .* was made with net.channels = 8, the config says 24',
    )

  def test_which_checkpoints_stay_and_which_is_sampled(self):
    workdir = os.path.join(self.create_tempdir().full_path, 'run')
    own = (
      *cli.CNN, '--config.train.steps=5', '--config.train.checkpoint_every=1',
      '--config.train.keep=1', '--config.train.keep_every=2', '--config.train.averages=(0.1,)',
      '--config.train.learning_rate=0.1', '--config.sample.count=2', '--config.sampler.steps=2',
    )  # fmt: skip
    code, _, error = cli.here('digits.py:runlocal', 'train', workdir, *own)
    self.assertEqual(code, 0, error)
    steps = {name for name in os.listdir(os.path.join(workdir, 'checkpoints')) if name.isdigit()}
    self.assertEqual(steps, {'2', '4', '5'})
    found = []
    for which in ('net.checkpoint=0', 'net.checkpoint=5', 'net.checkpoint=2', 'net.average=1'):
      code, _, error = cli.here('digits.py:runlocal', 'sample', workdir, *own, f'--config.{which}')
      self.assertEqual(code, 0, error)
      found.append(set(glob.glob(os.path.join(workdir, 'samples', '*.npz'))))
    self.assertEqual([len(names) for names in found], [1, 1, 2, 3])  # 0 is the last one
    samples = [np.load(path)['arr_0'].tobytes() for path in found[-1]]
    self.assertLen(set(samples), 3)
    code, _, error = cli.here(
      'digits.py:runlocal', 'sample', workdir, *own, '--config.net.checkpoint=3'
    )
    self.assertEqual(code, 1)
    self.assertRegex(error.splitlines()[-1], '^error: .*2, 4, 5')

  def test_three_at_once_in_a_fresh_workdir(self):
    workdir = os.path.join(self.create_tempdir().full_path, 'run')
    slow_disk = (  # others get time to be in the way
      'import os, runpy, time; replace = os.replace\n'
      'os.replace = lambda *paths: time.sleep(0.2) or replace(*paths)\n'
      'runpy.run_module("gmm_diffusion.main", run_name="__main__")'
    )
    command = (
      *('-c', slow_disk, '--config=configs/digits.py', '--mode=evaluate'),
      f'--workdir={workdir}',
      *('--config.denoiser.name=empirical', '--config.sampler.steps=1'),
      *('--config.evaluate.samplers=("ddim",)', '--config.evaluate.count=40'),
      *('--config.sample.shard=10', '--config.evaluate.features=identity'),
      '--config.evaluate.metrics=("kernel",)',
    )
    processes = [
      subprocess.Popen(
        [sys.executable, *command],
        cwd=cases.ROOT,
        env=dict(os.environ, JAX_PLATFORMS='cpu'),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
      )
      for _ in range(3)
    ]
    for process in processes:
      _, error = process.communicate()
      self.assertEqual(process.returncode, 0, error[-3000:])
    found = [name for _, _, names in os.walk(workdir) for name in names]
    self.assertEmpty([name for name in found if 'partial' in name])
    self.assertIn('report.html', found)
    self.assertEqual(os.path.dirname(cases.sample_set(workdir, 'ddim')), f'{workdir}/samples')

  def test_toy_needs_no_training(self):
    workdir = os.path.join(self.create_tempdir().full_path, 'run')
    code, out, error = cli.main(
      'toy.py',
      'all',
      workdir,
      '--config.evaluate.count=500',
      "--config.evaluate.samplers=('ddim',)",
      '--config.sampler.steps=100',
      optimised=True,
    )
    self.assertEqual(code, 0, error[-3000:])
    with np.load(cases.sample_set(workdir, 'ddim')) as file:
      points = file['arr_0']
    self.assertEqual(points.shape, (500, 2))
    # with the exact denoiser the points end on the circle of radius 0.8
    self.assertAlmostEqual(float(np.median(np.linalg.norm(points, axis=1))), 0.8, delta=0.02)
    self.assertFalse(os.path.exists(os.path.join(workdir, 'checkpoints')))


class ResumeTest(absltest.TestCase):
  def test_kill_and_resume_is_bit_exact(self):
    root = self.create_tempdir().full_path
    overrides = cli.CNN + (
      '--config.train.steps=200',
      '--config.train.checkpoint_every=50',
      '--config.train.log_every=25',
    )
    code, _, error = cli.here('digits.py', 'train', os.path.join(root, 'straight'), *overrides)
    self.assertEqual(code, 0, error[-3000:])

    broken = os.path.join(root, 'broken')
    process = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'gmm_diffusion.main',
        *cli.words('digits.py', 'train', broken, *overrides),
      ],
      cwd=cases.ROOT,
      env=dict(os.environ, JAX_PLATFORMS='cpu'),
      stderr=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
    )
    deadline = time.time() + 300
    while not os.path.isdir(os.path.join(broken, 'checkpoints', '100')):
      self.assertIsNone(process.poll(), 'the run ended before it could be killed')
      self.assertLess(time.time(), deadline)
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    self.assertLess(Store(broken).latest(), 200)
    code, _, error = cli.here('digits.py', 'train', broken, *overrides)
    self.assertEqual(code, 0, error[-3000:])

    states = []
    for name in ('straight', 'broken'):
      store = Store(os.path.join(root, name))
      self.assertEqual(store.latest(), 200)
      states.append(ocp.StandardCheckpointer().restore(os.path.join(store.path, '200', 'train')))
    chex.assert_trees_all_equal(*states)
    curves = [
      json.load(open(os.path.join(root, name, 'training.json'))) for name in ('straight', 'broken')
    ]
    self.assertEqual(curves[0], curves[1])
    self.assertEqual([row['step'] for row in curves[0]], list(range(25, 201, 25)))

    # nothing is left to do, and it says so
    code, out, _ = cli.here('digits.py', 'train', broken, *overrides)
    self.assertEqual((code, out.strip()), (0, 'already trained to step 200'))


DEVICES = """
import sys
import numpy as np
from configs import digits
from gmm_diffusion import parallel, specs
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build, drawing as sample
workdir, out = sys.argv[1:3]
config = digits.get_config('runlocal')
config.net.update(name='cnn', channels=8, blocks=1)
spec = specs.from_config(config)
data = sources.load(spec.data)
weights = build.weights(spec, data, workdir)
ids = np.arange(70, dtype=np.uint32)
made = sample.prepare(spec, specs.Sampler(name='ddim_gmm_ortho', steps=4, eta=0.5), data)
steps = sample.Steps(made.grid, made.plan, np.uint32(spec.seed))

def draw(shared, batch):  # as floats, before they are rounded to images
  arrays, steps = shared
  return sample.sample_batch(made.kernel, made.bind(arrays), steps, *batch, data.shape)[1].x

samples = {}
for batch in sys.argv[3:]:
  shared = parallel.replicate((weights, steps), local=True)
  labels = sample.labels_of(spec, data, ids)
  samples[batch] = parallel.map_batches(draw, int(batch))(shared, (ids, labels))
np.savez(out, **samples)
"""


class DevicesTest(absltest.TestCase):
  def test_samples_do_not_depend_on_batch_or_devices(self):
    root = self.create_tempdir().full_path
    workdir = os.path.join(root, 'run')
    code, _, error = cli.here(
      'digits.py:runlocal', 'train', workdir, *cli.CNN, '--config.train.steps=5'
    )
    self.assertEqual(code, 0, error[-3000:])
    found = {}
    for devices, batches in ((1, ('64', '7', '1')), (4, ('7',))):
      path = os.path.join(root, f'{devices}.npz')
      code, _, error = cases.python('-c', DEVICES, workdir, path, *batches, devices=devices)
      self.assertEqual(code, 0, error[-3000:])
      with np.load(path) as file:
        found.update({(devices, batch): file[batch] for batch in file.files})
    reference = found[1, '64']
    self.assertGreater(np.std(reference), 0.1)
    for (devices, batch), x in found.items():
      self.assertLess(np.abs(x - reference).max(), 1e-5, f'{devices} devices, batches of {batch}')

  def test_training_uses_all_devices(self):
    root = self.create_tempdir().full_path
    overrides = cli.CNN + ('--config.train.steps=3', '--config.train.log_every=1')
    losses = {}
    for devices in (1, 2):
      workdir = os.path.join(root, str(devices))
      run = functools.partial(cli.main, devices=2) if devices == 2 else cli.here
      code, _, error = run('digits.py', 'train', workdir, *overrides)
      self.assertEqual(code, 0, error[-3000:])
      with open(os.path.join(workdir, 'training.json'), encoding='utf-8') as file:
        losses[devices] = [row['loss'] for row in json.load(file)]
    np.testing.assert_allclose(losses[1], losses[2], rtol=1e-4)
    code, _, error = cli.main(
      'digits.py', 'train', os.path.join(root, 'odd'), '--config.train.batch=15', devices=2
    )
    self.assertEqual(code, 1)
    self.assertIn('error: train.batch 15 is not a multiple of the 2 devices', error)


if __name__ == '__main__':
  absltest.main()
