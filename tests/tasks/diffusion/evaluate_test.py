"""--mode=evaluate on stored images: nothing is sampled and no checkpoint is needed; what does not
fit is refused before that."""

import glob
import json
import os
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs import digits
from gmm_diffusion import metrics, specs, tasks
from gmm_diffusion.data import base, sources
from gmm_diffusion.engine import sample_sets
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import features as features_lib

DATA = sources.load(specs.Data('digits'))
LOOK = (DATA.test.astype(int) * 3 // 4).astype(np.uint8)  # images for which no metric is 0


def evaluate(workdir, **changes):
  """Runs the mode; features of pixels, so that nothing is trained."""
  config = digits.get_config()
  config.evaluate.update({'features': 'identity', **changes})
  tasks.run('evaluate', workdir, config, 'command')


def records(workdir):
  with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as file:
    return {
      (record['sampler'], record['metric']): record
      for record in json.load(file)
      if record['kind'] == 'metric'
    }


class ImagesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder, self.workdir = (
      self.create_tempdir().full_path,
      os.path.join(self.create_tempdir().full_path, 'run'),
    )
    self.pngs, self.npz = os.path.join(self.folder, 'pngs'), os.path.join(self.folder, 'x.npz')
    os.makedirs(self.pngs)
    for i, image in enumerate(LOOK):
      Image.fromarray(image[..., 0]).save(os.path.join(self.pngs, f'{i:04d}.png'))
    np.savez(self.npz, LOOK, DATA.test_labels)

  def test_folder_and_npz(self):
    with mock.patch.object(sample_sets, 'write', side_effect=AssertionError('sampled')):
      for path in (self.pngs, self.npz):
        evaluate(self.workdir, images=path)
    found = records(self.workdir)
    x, y = (
      base.to_model(images).reshape(len(images), -1).astype(np.float64)
      for images in (LOOK, DATA.train)
    )
    expected = metrics.frechet.frechet_distance(x, y)
    for path in (self.pngs, self.npz):
      record = found[f'images {path}', 'frechet']
      np.testing.assert_allclose((record['value'], *record['interval']), expected, rtol=1e-6)
      self.assertEqual(
        (record['n'], record['n_reference'], record['seed'], record['features']),
        (297, 1500, None, 'identity-64'),
      )
      for key in (
        'reference',
        'images',
        'preprocessing',
        'interval_is',
        'config',
        'command',
        'versions',
        'seconds',
      ):
        self.assertTrue(record[key], key)
    self.assertEqual({metric for _, metric in found}, {'frechet', 'kernel', 'precision', 'recall'})
    with open(os.path.join(self.workdir, 'report.html'), encoding='utf-8') as file:
      page = file.read()
    for text in (
      'x.npz',
      '1500 training items',
      'jackknife',
      'identity-64',
      'data:image/png;base64',
    ):
      self.assertIn(text, page)
    for text in ('Moment report', 'Same seeds', 'its control'):
      self.assertNotIn(text, page)

  def test_references_of_one_set_agree(self):
    # the images themselves as the reference, in three forms; the distance to themselves is 0
    known = metrics.frechet.statistics(base.to_model(LOOK).reshape(297, -1))
    stats = os.path.join(self.folder, 'stats.npz')
    np.savez(stats, mu=known.mean, sigma=known.covariance)
    for reference, names in (
      (self.pngs, ('frechet', 'precision')),
      (self.npz, ('frechet', 'precision')),
      (stats, ('frechet',)),
    ):
      evaluate(self.workdir, images=self.npz, reference=reference, metrics=names)
      found = records(self.workdir)
      self.assertAlmostEqual(found[f'images {self.npz}', 'frechet']['value'], 0, places=5)
      self.assertEqual(found[f'images {self.npz}', 'precision']['value'], 1)
    self.assertIsNone(found[f'images {self.npz}', 'frechet']['n_reference'])
    self.assertLen([name for name in os.listdir(self.workdir) if name.startswith('reference-')], 2)

  def test_number_of_training_items(self):
    evaluate(self.workdir, images=self.npz, reference_count=100)
    self.assertEqual(records(self.workdir)[f'images {self.npz}', 'frechet']['n_reference'], 100)

  def test_skipped_image(self):
    with open(os.path.join(self.pngs, '0100.png'), 'wb') as file:
      file.write(b'not an image')
    with self.assertRaisesRegex(UserError, 'cannot read image .*0100.png'):
      evaluate(self.workdir, images=self.pngs)
    with mock.patch('builtins.print') as said:
      evaluate(self.workdir, images=self.pngs, skip_unreadable=True)
    self.assertIn(
      'skipped 1 unreadable images, the first is 0100.png',
      [call.args[0] for call in said.call_args_list],
    )
    record = records(self.workdir)[f'images {self.pngs}', 'frechet']
    self.assertEqual((record['n'], record['skipped']), (296, 1))

  @parameterized.parameters(
    (
      dict(reference='big'),
      'reference .*big.npz has images of 16 x 16 x 1, the samples are 8 x 8 x 1; give a reference',
    ),
    (
      dict(images='big'),
      "training items of data 'digits', has images of 8 x 8 x 1, the samples are 16 x 16 x 1; set "
      'evaluate.reference',
    ),
    (
      dict(images='big', reference='big'),
      'big.npz has images of 16 x 16 x 1, the features identity-64 need 8 x 8 x 1',
    ),
    (dict(images='floats'), r'arr_0 of .*floats.npz is float32 \[297, 8, 8, 1\]; valid: uint8'),
    (
      dict(images='few'),
      "metric 'frechet': 7 samples are too few for a Frechet distance on 64 features",
    ),
    (dict(metrics=('fid',)), "unknown evaluate.metrics 'fid'; valid: frechet, "),
    (
      dict(features='inception', inception='few.npz'),
      'no Inception weights at few.npz; download https://',
    ),
  )
  def test_refused(self, changes, message):
    np.savez(os.path.join(self.folder, 'big.npz'), LOOK.repeat(2, 1).repeat(2, 2))
    np.savez(os.path.join(self.folder, 'floats.npz'), LOOK.astype(np.float32) / 255)
    np.savez(os.path.join(self.folder, 'few.npz'), LOOK[:7])
    for key in ('images', 'reference'):
      if key in changes:
        changes = {**changes, key: os.path.join(self.folder, changes[key] + '.npz')}
    with self.assertRaisesRegex(UserError, message) as caught:
      evaluate(self.workdir, **{'images': self.npz, 'metrics': ('frechet',), **changes})
    self.assertNotIn('\n', str(caught.exception))
    self.assertEqual(
      [name for name in os.listdir(self.workdir) if not name.startswith('reference')], []
    )

  def test_nothing_to_compare_with(self):
    config = digits.get_config()
    config.data.update(name='none', size=8)
    config.evaluate.update(images=self.npz, features='identity')
    with self.assertRaisesRegex(
      UserError, "data 'none' has no images to compare with; set evaluate.reference to a folder"
    ):
      tasks.run('evaluate', self.workdir, config, 'command')


class SamplersTest(absltest.TestCase):
  def test_with_and_without_stored_samples(self):
    found = {}
    for store in (True, False):
      workdir = os.path.join(self.create_tempdir().full_path, 'run')
      config = digits.get_config()
      config.denoiser.name = 'empirical'
      config.sampler.steps = 3
      config.sample.shard = 25
      config.evaluate.update(features='identity', samplers=('ddim',), count=60, store=store)
      tasks.run('evaluate', workdir, config, 'command')
      found[store] = {key: record['value'] for key, record in records(workdir).items()}
      self.assertEqual(os.path.exists(os.path.join(workdir, 'samples')), store)
      (folder,) = glob.glob(os.path.join(workdir, 'features', '*', 'ddim-3-*'))
      parts = sorted(name for name in os.listdir(folder) if name.endswith('.npz'))
      self.assertEqual(
        parts, ['00000000-00000024.npz', '00000025-00000049.npz', '00000050-00000059.npz']
      )
      # what is there is not extracted again, but for a part that was lost
      os.remove(os.path.join(folder, parts[1]))
      load = features_lib.load
      extracted = []

      def counting(*arguments, load=load, extracted=extracted):
        one = load(*arguments)
        return one._replace(extract=lambda x: (extracted.append(len(x)), one.extract(x))[1])

      with mock.patch.object(features_lib, 'load', counting):
        tasks.run('evaluate', workdir, config, 'command')
      self.assertIn(25, extracted)
      self.assertNotIn(10, extracted)
      self.assertEqual(
        {key: record['value'] for key, record in records(workdir).items()}, found[store]
      )
    self.assertEqual(found[True], found[False])


if __name__ == '__main__':
  absltest.main()
