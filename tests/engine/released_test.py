"""Released weights, from a file in the released layout to images: fetch, convert, sample, and
everything that can be wrong."""

import functools
import http.server
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from experiments.lib import released_layout
from gmm_diffusion import specs, tasks
from gmm_diffusion.checkpoints import fetch, importers, tensor_files
from gmm_diffusion.checkpoints.importers import recipe as recipes
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.engine import build, drawing, released
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import inception
from helpers import cases
from helpers.released_files import config_of, spec_of, tensors_of, write

MODELS = (
  ('imagenet256', 'adm'),
  ('imagenet256', 'adm_guided'),
  ('imagenet256', 'ldm'),
  ('imagenet256', 'dit'),
  ('imagenet64', 'adm'),
  ('celebahq256', 'ldm_diffusers'),
  ('cifar10', 'ddpm'),
)


class ConvertTest(parameterized.TestCase):
  @parameterized.parameters(*MODELS)
  def test_file_to_weights(self, name, variant):
    workdir = self.create_tempdir().full_path
    config = config_of(name, variant)
    spec, data = spec_of(config)
    write(spec, data, workdir)
    tasks.run('convert', workdir, config, 'test')
    found = build.weights(spec, data, workdir)
    for part, (module, template, weights) in build.parts(spec, data).items():
      # every number of the file arrives, none twice
      with tensor_files.open_tensors(released.place(weights, workdir)) as source:
        given = {key: source.read(key) for key in source.shapes}
      variables = found[part]['params'] if part == 'autoencoder' else found[part]
      total = sum(
        float(np.abs(leaf).astype(np.float64).sum()) for leaf in jax.tree.leaves(variables)
      )
      recipe, _ = importers.recipe_of(
        weights.format, part, module, template, given, build.sample_shape(spec, data)[0]
      )
      names = {
        entry.names if 'embedder' not in entry.names[0] else entry.names[:1]
        for entry in recipe.parts.values()
      }
      expected = sum(
        float(np.abs(given[key]).astype(np.float64).sum()) for entry in names for key in entry
      )
      self.assertAlmostEqual(total / expected, 1, 9)

  @parameterized.parameters(('imagenet256', 'adm'), ('imagenet256', 'ldm'))
  def test_round_trip_and_a_second_time(self, name, variant):
    workdir = self.create_tempdir().full_path
    config = config_of(name, variant)
    spec, data = spec_of(config)
    (path,) = write(spec, data, workdir)
    direct = {}
    for part, (module, template, weights) in build.parts(spec, data).items():
      with tensor_files.open_tensors(path) as source:
        recipe, _ = importers.recipe_of(
          weights.format, part, module, template, source.shapes, build.sample_shape(spec, data)[0]
        )
        direct[part] = recipes.read(recipe, source, path, part)
      if part == 'autoencoder':
        direct[part]['latent_scale'] = np.float32(spec.autoencoder.scale)
    made = drawing.prepare(spec, spec.sampler, data)
    expected = drawing.Model(spec, data, direct).sample(made, 2).x

    tasks.run('sample', workdir, config, 'test')  # converts what is there
    with np.load(cases.sample_set(workdir, 'ddim_gmm')) as file:
      np.testing.assert_array_equal(file['arr_0'], expected)
    self.assertEqual(expected.shape, (2, 32, 32, 3))
    before = os.stat(os.path.join(workdir, 'checkpoints', '0')).st_mtime_ns
    tasks.run('convert', workdir, config, 'test')
    self.assertEqual(os.stat(os.path.join(workdir, 'checkpoints', '0')).st_mtime_ns, before)
    os.remove(path)  # nothing of it is needed any more
    tasks.run('sample', workdir, config_of(name, variant, **{'sampler.name': 'ddim'}), 'test')

  def test_moving_average_scale_and_leftovers(self):
    workdir = self.create_tempdir().full_path
    config = config_of('celebahq256', 'ldm')
    spec, data = spec_of(config)

    def change(values):
      unet = {key: value for key, value in values.items() if key.startswith('model.')}
      average = {
        'model_ema.' + key.removeprefix('model.').replace('.', ''): value + 1
        for key, value in unet.items()
      }
      more = {
        'model_ema.decay': np.float32(0.9999),
        'model_ema.num_updates': np.int64(7),
        'scale_factor': np.float32(0.25),
        'betas': np.ones(3, np.float32),
        'first_stage_model.loss.weight': np.ones(2, np.float32),
      }
      return {**values, **average, **more}

    write(spec, data, workdir, change)
    tasks.run('convert', workdir, config, 'test')
    found = build.weights(spec, data, workdir)
    self.assertEqual(found['autoencoder']['latent_scale'], 0.25)
    given = tensors_of(spec, data)['net']['model.diffusion_model.input_blocks.0.0.bias'] + 1
    np.testing.assert_array_equal(found['net']['params']['input_blocks.0.0']['bias'], given)

  def test_counters_without_an_average(self):
    workdir = self.create_tempdir().full_path
    config = config_of('celebahq256', 'ldm')
    counters = {'model_ema.decay': np.float32(0.9999), 'model_ema.num_updates': np.int64(7)}
    write(*spec_of(config), workdir, lambda values: {**values, **counters})
    tasks.run('convert', workdir, config, 'test')

  def test_another_model_of_the_same_size(self):
    workdir = self.create_tempdir().full_path
    config = config_of('celebahq256', 'ldm')
    write(*spec_of(config), workdir)
    tasks.run('convert', workdir, config, 'test')
    for mode, other, says in (
      ('sample', config_of('ffhq256', 'ldm'), '.*ffhq.zip'),
      (
        'convert',
        config_of('celebahq256', 'ldm', **{'net.weights.path': '/data/mine.ckpt'}),
        '/data/mine.ckpt',
      ),
    ):
      with self.assertRaisesRegex(
        UserError,
        rf'was made with net.weights = .*celeba.zip \(sha256 \w{{12}}\), the config says {says}, '
        f'which is another file; use its config, or another --workdir',
      ):
        tasks.run(mode, workdir, other, 'test')
    with self.assertRaisesRegex(
      UserError, 'was made with autoencoder.scale = 1.0, the config says 2.0'
    ):
      tasks.run(
        'sample', workdir, config_of('celebahq256', 'ldm', **{'autoencoder.scale': 2.0}), 'test'
      )

  def test_a_model_is_known_by_the_hash_of_its_file(self):
    workdir, folder = self.create_tempdir().full_path, self.create_tempdir().full_path
    moved, other = (os.path.join(folder, name) for name in ('moved.pt', 'other.pt'))
    config = config_of('imagenet256', 'adm')
    (path,) = write(*spec_of(config), workdir)
    tasks.run('convert', workdir, config, 'test')
    shutil.copyfile(path, moved)
    shutil.copyfile(path, other)
    with open(other, 'ab') as file:
      file.write(b'0')
    convert = lambda **changes: tasks.run(
      'convert', workdir, config_of('imagenet256', 'adm', **changes), 'test'
    )
    convert(**{'net.weights.path': moved})
    with self.assertRaisesRegex(UserError, 'the config says .*other.pt, which is another file'):
      convert(**{'net.weights.path': other})
    convert(**{'net.weights.path': '/nowhere.pt', 'net.weights.sha256': fetch.sha256_of(path)[:9]})
    with self.assertRaisesRegex(UserError, 'which is another file'):
      convert(**{'net.weights.sha256': 'abc'})
    os.replace(other, path)  # under the same name
    with self.assertRaisesRegex(UserError, 'which is another file'):
      convert()
    os.remove(path)
    convert()

  def test_conversions_of_before_hashes_were_stored(self):
    workdir = self.create_tempdir().full_path
    config = config_of('imagenet256', 'adm')
    spec, data = spec_of(config)
    (path,) = write(spec, data, workdir)
    converted, about = released._read(spec, data, workdir), build.about(spec, data)
    about['net']['weights'] = config.net.weights.url
    with Store(workdir, create=True) as store:
      store.save(0, converted, None, about)
    os.remove(path)
    tasks.run('convert', workdir, config, 'test')
    with self.assertRaisesRegex(
      UserError, r'\(sha256 not known\), the config says /x.pt, which is'
    ):
      tasks.run(
        'convert', workdir, config_of('imagenet256', 'adm', **{'net.weights.path': '/x.pt'}), 'test'
      )

  def test_files_of_one_name_have_places_of_their_own(self):
    places = [
      released.place(weights, 'w')
      for name, variant in (*MODELS, ('celebahq256', 'ddpm'), ('lsun_church256', 'ddpm'))
      for _, _, weights in build.parts(*spec_of(config_of(name, variant))).values()
    ]
    self.assertLen(set(places), len(places) - 2)  # adm and adm_guided share one, ldm is one file

  def test_old_names_and_a_folder(self):
    workdir, folder = self.create_tempdir().full_path, self.create_tempdir().full_path
    config = config_of('cifar10', 'ddpm')
    spec, data = spec_of(config)
    old = {'.to_q.': '.query.', '.to_k.': '.key.', '.to_v.': '.value.', '.to_out.0.': '.proj_attn.'}

    def rename(name):
      for new, before in old.items():
        name = name.replace(new, before)
      return name

    values = {rename(name): value for name, value in tensors_of(spec, data)['net'].items()}
    released_layout.write_safetensors(
      os.path.join(folder, importers.WEIGHT_FILES[0]), released_layout.made(values)
    )
    config.net.weights.path = folder
    tasks.run('convert', workdir, config, 'test')
    spec = specs.from_config(config)
    found = build.weights(spec, data, workdir)['net']['params']['middle_block.1']['proj_out'][
      'kernel'
    ]
    np.testing.assert_array_equal(found, values['mid_block.attentions.0.proj_attn.weight'].T)

  def test_disk_that_fills_up(self):
    workdir = self.create_tempdir().full_path
    spec, data = spec_of(config_of('imagenet256', 'adm'))
    write(spec, data, workdir)
    script = (
      'import resource, signal, sys; sys.path.insert(0, "tests"); from helpers import '
      'released_files as p\nfrom gmm_diffusion import tasks\nfrom gmm_diffusion.errors import '
      f'UserError\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
      f'resource.setrlimit(resource.RLIMIT_FSIZE, (200000, 200000))\ntry: tasks.run("convert", '
      f'{workdir!r}, p.config_of("imagenet256", "adm"), "test")\nexcept UserError as error: '
      f'print("refused:", error)'
    )
    code, out, error = cases.python('-c', script)
    self.assertEqual(code, 0, error[-2000:])
    self.assertRegex(
      out,
      r'refused: cannot write the checkpoint to .*; free space there, or give another --workdir',
    )
    self.assertEqual(os.listdir(os.path.join(workdir, 'checkpoints')), [])

  def test_no_space(self):
    workdir = self.create_tempdir().full_path
    write(*spec_of(config_of('imagenet256', 'adm')), workdir)
    with mock.patch.object(released.shutil, 'disk_usage', lambda path: mock.Mock(free=1000)):
      with self.assertRaisesRegex(
        UserError, r'the checkpoint needs 0\.\d+ GB, but 0.00 GB are free in'
      ):
        tasks.run('convert', workdir, config_of('imagenet256', 'adm'), 'test')
    self.assertFalse(os.path.exists(os.path.join(workdir, 'checkpoints')))

  def test_killed_conversion(self):
    workdir = self.create_tempdir().full_path
    spec, data = spec_of(config_of('imagenet256', 'adm'))
    write(spec, data, workdir)
    script = (
      'import sys; sys.path.insert(0, "tests"); from helpers import released_files as p; from '
      f'gmm_diffusion import tasks; tasks.run("convert", {workdir!r}, p.config_of("imagenet256", '
      f'"adm"), "test")'
    )
    environment = dict(os.environ, JAX_PLATFORMS='cpu')
    process = subprocess.Popen(
      [sys.executable, '-c', script],
      cwd=cases.ROOT,
      env=environment,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    folder = os.path.join(workdir, 'checkpoints')
    deadline = time.time() + 120
    while (
      time.time() < deadline
      and process.poll() is None
      and not (os.path.isdir(folder) and os.listdir(folder))
    ):
      time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    self.assertTrue(os.path.isdir(folder))
    self.assertIsNone(Store(workdir).latest())  # nothing that looks complete
    tasks.run('convert', workdir, config_of('imagenet256', 'adm'), 'test')
    self.assertEqual(Store(workdir).latest(), 0)

  def test_two_conversions_at_once(self):
    workdir = self.create_tempdir().full_path
    write(*spec_of(config_of('imagenet256', 'adm')), workdir)
    script = (
      'import sys; sys.path.insert(0, "tests"); from helpers import released_files as p; '
      'from gmm_diffusion import tasks; print("ready", flush=True); sys.stdin.readline(); '
      f'tasks.run("convert", {workdir!r}, p.config_of("imagenet256", "adm"), "test")'
    )
    processes = [
      subprocess.Popen(
        [sys.executable, '-c', script],
        cwd=cases.ROOT,
        env=dict(os.environ, JAX_PLATFORMS='cpu'),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for _ in range(2)
    ]
    for process in processes:
      process.stdout.readline()
    for process in processes:
      process.stdin.write('\n')
      process.stdin.flush()
    said = ''
    for process in processes:
      out, error = process.communicate()
      self.assertEqual(process.returncode, 0, error[-3000:])
      said += out
    self.assertLen(re.findall('^already converted', said, re.MULTILINE), 1, said)
    self.assertLen(re.findall('^converted to', said, re.MULTILINE), 1, said)
    self.assertEqual(sorted(os.listdir(workdir)), ['checkpoints', 'config.json', 'released'])
    self.assertEqual(os.listdir(os.path.join(workdir, 'checkpoints')), ['0'])

  def test_leftovers_of_killed_conversions_go(self):
    workdir = self.create_tempdir().full_path
    write(*spec_of(config_of('imagenet256', 'adm')), workdir)
    os.makedirs(os.path.join(workdir, 'checkpoints', '0.orbax-checkpoint-tmp', 'net'))
    os.makedirs(os.path.join(workdir, 'checkpoints', '7.orbax-checkpoint-tmp', 'net'))
    tasks.run('convert', workdir, config_of('imagenet256', 'adm'), 'test')
    self.assertEqual(os.listdir(os.path.join(workdir, 'checkpoints')), ['0'])

  def test_fetch_convert_sample(self):
    served, workdir = self.create_tempdir().full_path, self.create_tempdir().full_path
    config = config_of('imagenet256', 'adm', **{'sample.label': 'golden retriever, 3'})
    spec, data = spec_of(config)
    (path,) = write(spec, data, served)
    handler = functools.partial(
      http.server.SimpleHTTPRequestHandler, directory=os.path.dirname(path)
    )
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
      threading.Thread(target=server.serve_forever, daemon=True).start()
      config.net.weights.url = (
        f'http://127.0.0.1:{server.server_address[1]}/{os.path.basename(path)}'
      )
      config.net.weights.size = os.path.getsize(path)
      with self.assertRaisesRegex(
        UserError, 'no weights at .*256x256_diffusion.pt; use --mode=fetch, or download http'
      ):
        tasks.run('sample', workdir, config, 'test')
      tasks.run('fetch', workdir, config, 'test')
      server.shutdown()
    tasks.run('fetch', workdir, config, 'test')  # is there
    tasks.run('sample', workdir, config, 'test')
    with np.load(cases.sample_set(workdir, 'ddim_gmm')) as file:
      np.testing.assert_array_equal(file['arr_1'], [207, 3])


class BadInputTest(parameterized.TestCase):
  def refused(self, pattern, config, workdir=None):
    workdir = workdir or self.create_tempdir().full_path
    with self.assertRaisesRegex(UserError, pattern) as caught:
      tasks.run('sample', workdir, config, 'test')
    self.assertNotIn('\n', str(caught.exception))
    self.assertFalse(os.path.exists(os.path.join(workdir, 'checkpoints')))
    self.assertFalse(os.path.exists(os.path.join(workdir, 'samples')))

  def damaged(self, pattern, change, name='imagenet256', variant='adm'):
    workdir = self.create_tempdir().full_path
    config = config_of(name, variant)
    write(*spec_of(config), workdir, change)
    self.refused(pattern, config, workdir)

  def test_half_the_tensors(self):
    half = lambda values: dict(list(values.items())[::2])
    self.damaged(
      r'256x256_diffusion.pt does not fit the network of the config; tensors \d+ missing: .*, '
      r'\.\.\.; check the config',
      half,
    )

  def test_surplus_and_wrong_shape(self):
    def change(values):
      return {
        **values,
        'time_embed.0.bias': np.zeros(3, np.float32),
        'extra.weight': np.zeros(3, np.float32),
      }

    self.damaged(
      r'1 not expected: extra.weight; 1 of another shape: time_embed.0.bias is 3 instead of 128',
      change,
    )

  def test_another_architecture(self):
    workdir = self.create_tempdir().full_path
    write(*spec_of(config_of('imagenet256', 'adm')), workdir)
    self.refused(
      'does not fit the network of the config',
      config_of('imagenet256', 'adm', **{'net.channels': 64}),
      workdir,
    )

  def test_overflow_of_half_precision(self):
    def change(values):
      with np.errstate(over='ignore'):
        return {
          name: (value * 1e6 if name == 'time_embed.2.weight' else value).astype(np.float16)
          for name, value in values.items()
        }

    self.damaged(
      r"tensor 'time_embed.2.weight' of .* \(float16\) has values that are not finite", change
    )

  def test_another_table_of_positions(self):
    self.damaged(
      "tensor 'pos_embed' of .* has other values than the fixed table",
      lambda v: {k: x + (k == 'pos_embed') for k, x in v.items()},
      variant='dit',
    )

  def test_truncated_file(self):
    workdir = self.create_tempdir().full_path
    config = config_of('imagenet256', 'adm')
    (path,) = write(*spec_of(config), workdir)
    os.truncate(path, os.path.getsize(path) // 2)
    self.refused('256x256_diffusion.pt.*truncated', config, workdir)

  def test_code_in_the_file(self):
    workdir = self.create_tempdir().full_path
    config = config_of('imagenet256', 'adm')
    path = released.place(specs.from_config(config).net.weights, workdir)
    os.makedirs(os.path.dirname(path))
    marker = os.path.join(workdir, 'ran')
    with open(path, 'wb') as file:
      file.write(
        b'\x80\x02cposix\nsystem\n(X'
        + len(f'touch {marker}').to_bytes(4, 'little')
        + f'touch {marker}'.encode()
        + b'tR.'
      )
    self.refused('256x256_diffusion.pt', config, workdir)
    with zipfile.ZipFile(path, 'w') as archive:  # the same program in the newer layout
      archive.writestr('archive/data.pkl', b'\x80\x02cposix\nsystem\n(X\x05\x00\x00\x00falsetR.')
    self.refused('256x256_diffusion.pt refers to posix.system', config, workdir)
    self.assertFalse(os.path.exists(marker))

  def test_a_file_that_is_not_the_released_one(self):
    workdir = self.create_tempdir().full_path
    config = config_of('imagenet256', 'adm', **{'net.weights.sha256': 'abc123'})
    write(*spec_of(config), workdir)
    self.refused('has sha256 [0-9a-f]{64}, not abc123; remove it and run again', config, workdir)

  @parameterized.parameters(
    (
      {'sample.label': 'golden retreiver'},
      "no class 'golden retreiver'; valid: 0..999, or a name such as 'golden retriever'",
    ),
    ({'sample.label': '1000'}, "no class '1000'; valid: 0..999"),
    (
      {'denoiser.guidance': 2.0},
      r'guidance 2 needs a conditional network that knows "no class"; with net.labels \'plain\' '
      r'and 1000 classes',
    ),
    (
      {'net.weights.format': 'onnx'},
      "unknown net.weights.format 'onnx'; valid: guided_diffusion, compvis, diffusers, dit",
    ),
    ({'net.weights.url': ''}, 'has neither path nor url'),
    (
      {'net.weights.path': '/nowhere/x.pt'},
      'no weights at /nowhere/x.pt; use --mode=fetch, or download https',
    ),
  )
  def test_settings(self, changes, message):
    self.refused(message, config_of('imagenet256', 'adm', **changes))

  @parameterized.parameters(
    ('celebahq256', 'ldm', {'sample.label': '3'}, "sample.label '3' needs a conditional model"),
    (
      'celebahq256',
      'ldm',
      {'denoiser.guidance': 2.0},
      "with net.labels 'none' and 0 classes the only valid value is 1",
    ),
    ('celebahq256', 'ldm', {'net.context_dim': 8}, 'net.context_dim 8 needs labels'),
    (
      'celebahq256',
      'ldm',
      {'classifier.scale': 2.0},
      'classifier guidance needs a model of images with classes',
    ),
    (
      'imagenet256',
      'ldm',
      {'data.size': 30},
      'the autoencoder halves images 2 times, which data of shape 30 x 30 x 3 does not allow',
    ),
    ('imagenet256', 'dit', {'denoiser.guidance_interval': (3.0, 1.0)}, 'guidance_interval must be'),
  )
  def test_settings_of_others(self, name, variant, changes, message):
    self.refused(message, config_of(name, variant, **changes))

  @parameterized.parameters('train', 'evaluate', 'all')
  def test_modes_that_need_data(self, mode):
    with self.assertRaisesRegex(
      UserError, 'has no images to compare with|this config is for a pretrained model'
    ):
      tasks.run(mode, self.create_tempdir().full_path, config_of('imagenet256', 'adm'), 'test')

  @parameterized.parameters('fetch', 'convert')
  def test_nothing_to_fetch(self, mode):
    config = importlib.import_module('configs.digits').get_config('runlocal')
    with self.assertRaisesRegex(UserError, f'nothing to {mode}: net.weights.format is'):
      tasks.run(mode, self.create_tempdir().full_path, config, 'test')

  @parameterized.parameters('', '~/some/folder')
  def test_fetch_of_the_features(self, cache):
    workdir = self.create_tempdir().full_path
    config = importlib.import_module('configs.digits').get_config('runlocal')
    config.evaluate.update(features='inception', cache=cache)
    with mock.patch.object(fetch, 'fetch') as download:
      tasks.run('fetch', workdir, config, 'test')
    place = os.path.join(os.path.expanduser(cache) or workdir, inception.NAME)
    download.assert_called_once_with(inception.URL, place, inception.SIZE, inception.SHA256)


if __name__ == '__main__':
  absltest.main()
