"""Sets of samples: names, nothing is replaced, several runs at once, labels, pictures."""

import glob
import json
import os
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs import digits, toy
from gmm_diffusion import specs, tasks
from gmm_diffusion.data import sources
from gmm_diffusion.engine import drawing, shards
from gmm_diffusion.errors import UserError
from helpers import cases


def sample(workdir, **changes):
  """--mode=sample of digits with the exact denoiser of a few of them."""
  config = digits.get_config()
  config.denoiser.name, config.data.limit = 'empirical', 20
  config.update_from_flattened_dict(
    {'sampler.steps': 2, 'sampler.name': 'ddim', 'sample.count': 12, 'sample.shard': 6, **changes}
  )
  tasks.run('sample', workdir, config, 'test')


def contents(workdir):
  """{path: bytes} of all samples, without locks."""
  out = {}
  for path in glob.glob(os.path.join(workdir, 'samples', '**'), recursive=True):
    if os.path.isfile(path) and not path.endswith('.lock') and not path.endswith('claims'):
      with open(path, 'rb') as file:
        out[path] = file.read()
  return out


class KeptTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = self.create_tempdir().full_path

  def test_other_settings_replace_nothing(self):
    sample(self.workdir)
    for changes in (
      {'sample.count': 3},
      {'sampler.steps': 3},
      {'seed': 1},
    ):
      before = contents(self.workdir)
      sample(self.workdir, **changes)
      after = contents(self.workdir)
      self.assertEqual({path: after.get(path) for path in before}, before, changes)
      self.assertGreater(len(after), len(before))
      with open(os.path.join(self.workdir, 'results.json'), encoding='utf-8') as file:
        found = [record for record in json.load(file) if record['kind'] == 'samples']
      self.assertLen(found, len(glob.glob(os.path.join(self.workdir, 'samples', '*.png'))))
    before = contents(self.workdir)
    with mock.patch.object(shards, 'fill', side_effect=AssertionError('drawn again')):
      sample(self.workdir)
    self.assertEqual(contents(self.workdir), before)

  def test_a_larger_count_adds_to_what_is_there(self):
    sample(self.workdir)
    ids, draw = [], drawing.Model.drawer

    def counting(model, *arguments):
      one = draw(model, *arguments)
      return one._replace(draw=lambda part, advance: (ids.extend(part), one.draw(part, advance))[1])

    with mock.patch.object(drawing.Model, 'drawer', counting):
      sample(self.workdir, **{'sample.count': 18})
    self.assertEqual(ids, list(range(12, 18)))
    with np.load(cases.sample_set(self.workdir, 'ddim', '-n18.npz')) as grown:
      with np.load(cases.sample_set(self.workdir, 'ddim', '-n12.npz')) as first:
        np.testing.assert_array_equal(grown['arr_0'][:12], first['arr_0'])

  def test_two_runs_with_other_seeds_at_once(self):
    fill, inside = shards.fill, []

    def while_another_runs(*arguments):
      fill(*arguments)
      if not inside:
        inside.append(True)
        sample(self.workdir, seed=1)

    with mock.patch.object(shards, 'fill', while_another_runs):
      sample(self.workdir)
    first, second = (np.load(path) for path in sorted(self.sets()))
    self.assertFalse(np.array_equal(first['arr_0'], second['arr_0']))

  def sets(self):
    return glob.glob(os.path.join(self.workdir, 'samples', '*.npz'))

  def test_sets_of_before_are_left_alone(self):
    folder = os.path.join(self.workdir, 'samples')
    os.makedirs(os.path.join(folder, 'ddim'))
    for name in ('ddim.npz', 'ddim.json', 'ddim/00000000-00000005.npz'):
      with open(os.path.join(folder, name), 'wb') as file:
        file.write(b'of before')
    before = contents(self.workdir)
    sample(self.workdir)
    after = contents(self.workdir)
    self.assertEqual({path: after.get(path) for path in before}, before)


class NamesTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(name='unipc', order=3), 0, 'unipc-10-order3-'),
    (dict(name='ddim'), 0, 'ddim-10-'),
    (dict(name='ddim', times=(900.0, 400.0)), 0, 'ddim-2-times900_400-'),
    (
      dict(name='ddim', eta=0.5, grid='leading', end='first'),
      7,
      'ddim-10-leading-first-eta0.5-seed7-',
    ),
    (dict(name='ddim', order=3, components=4), 0, 'ddim-10-'),  # it takes neither
    (dict(name='ddim_gmm_rand', offsets='ortho'), 0, 'ddim_gmm_rand-10-'),  # the variant decides
    (dict(name='ddim_gmm', shared=False, steps=5), 0, 'ddim_gmm-5-no_shared-'),
    (dict(name='ddim_gmm', scale_interval=(0.5, 2.0)), 0, 'ddim_gmm-10-scale_interval0.5_2-'),
    (dict(name='ddim_gmm', components=8, priors=(0.125,) * 8), 0, 'ddim_gmm-10-components8-'),
  )
  def test_names(self, options, seed, start):
    spec = specs.from_config({'denoiser': {'name': 'empirical'}, 'seed': seed})
    data = sources.load(spec.data)
    model = drawing.Model(spec, data, np.zeros(1, np.float32))
    made = drawing.prepare(spec, specs.Sampler(**options), data)
    self.assertRegex(model.drawer(made, 1).name, f'^{start}[0-9a-f]{{8}}$')

  def test_the_hash_is_of_what_samples_depend_on(self):
    spec = specs.from_config({'denoiser': {'name': 'empirical'}})
    data = sources.load(spec.data)

    def mark(weights=0.0, seed=0, **options):
      model = drawing.Model(spec, data, np.full(1, weights, np.float32))
      made = drawing.prepare(spec, specs.Sampler(**options), data)
      return model.drawer(made, 1, seed).mark

    same = mark(name='ddim')
    self.assertEqual(mark(name='ddim', eta=0.0), same)  # set to what it is anyway
    self.assertEqual(mark(name='ddim', order=3), same)
    for other in (
      mark(name='ddim', weights=1.0),
      mark(name='ddim', seed=1),
      mark(name='ddim', eta=0.1),
      mark(name='ddim', grid='leading'),
      mark(name='ddim', steps=9),
      mark(name='euler'),
    ):
      self.assertNotEqual(other, same)


class ArraysTest(absltest.TestCase):
  def test_no_classes_where_the_model_takes_none(self):
    workdir = self.create_tempdir().full_path
    sample(workdir)
    with np.load(glob.glob(os.path.join(workdir, 'samples', '*.npz'))[0]) as file:
      self.assertEqual(file.files, ['arr_0'])


class PicturesTest(absltest.TestCase):
  def test_png_and_gif(self):
    workdir = self.create_tempdir().full_path
    sample(workdir, **{'sample.png': True, 'sample.gif': True, 'sampler.steps': 4})
    folder = cases.sample_set(workdir, 'ddim', '-n12-images')
    self.assertEqual(sorted(os.listdir(folder)), [f'{i:08d}.png' for i in range(12)])
    with np.load(cases.sample_set(workdir, 'ddim')) as file:
      for i in range(12):
        found = np.asarray(Image.open(os.path.join(folder, f'{i:08d}.png')))
        np.testing.assert_array_equal(found, file['arr_0'][i, ..., 0])
    with Image.open(cases.sample_set(workdir, 'ddim', '.gif')) as found:
      self.assertEqual(found.n_frames, 4)

  def test_an_image_that_was_lost(self):
    workdir = self.create_tempdir().full_path
    sample(workdir, **{'sample.png': True})
    folder = cases.sample_set(workdir, 'ddim', '-n12-images')
    before = contents(workdir)
    os.remove(os.path.join(folder, '00000007.png'))
    sample(workdir, **{'sample.png': True})
    self.assertEqual(contents(workdir), before)

  def test_a_file_in_the_place_of_the_images(self):
    workdir = self.create_tempdir().full_path
    sample(workdir)
    folder = cases.sample_set(workdir, 'ddim').replace('.npz', '-images')
    with open(folder, 'wb'):
      pass
    with self.assertRaisesRegex(UserError, 'cannot write .*-images/00000000.png: .* in the way'):
      sample(workdir, **{'sample.png': True})

  def test_vectors_are_no_images(self):
    for key in ('png', 'gif'):
      config, workdir = toy.get_config(), self.create_tempdir().full_path
      config.sample[key] = True
      with self.assertRaisesRegex(UserError, f"sample.{key} needs images, but data 'toy' are vec"):
        tasks.run('sample', workdir, config, 'test')
      self.assertFalse(os.path.exists(os.path.join(workdir, 'samples')))


if __name__ == '__main__':
  absltest.main()
