"""The task 'segmentation' from the command line and in its parts."""

import contextlib
import io
import json
import os
from unittest import mock

import numpy as np
from absl.testing import absltest
from PIL import Image

from configs import segmentation as config_lib
from gmm_diffusion import specs, tasks
from gmm_diffusion.engine import build
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.segmentation import (
  benchmark,
  grabcut,
  model,
  modes,
  scenes,
  session,
  training,
)
from gmm_diffusion.tasks.segmentation.annotator import Click
from helpers import cases, segmenter


class SegmentationTest(absltest.TestCase):
  def test_each_record_has_the_hash_of_its_own_network(self):
    workdir = self.create_tempdir().full_path
    spec = specs.from_config(config_lib.get_config('runlocal'))
    known = scenes.load(spec.data, ('test',))
    weights = {'tokens': {'w': np.zeros(3)}, 'channels': {'w': np.ones(3)}}
    course = lambda n: benchmark.Course(
      np.full((n, 3), 0.5), [np.ones((96, 96), bool)] * n, [[Click(1, 2, True)]] * n
    )
    with (
      mock.patch.multiple(
        benchmark,
        courses=lambda spec, workdir, objects, method: {
          name: course(len(objects)) for name in method.rows
        },
        milliseconds=lambda *_: 7.0,
      ),
      mock.patch.object(
        training, 'load', lambda spec, workdir, clicks='tokens': (None, weights[clicks])
      ),
    ):
      modes.evaluate(Run(spec, known, workdir, 'test'))
    with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as file:
      found = {record['sampler']: record['weights'] for record in json.load(file)}
    arms, baseline = (build.tree_hash(weights[kind]) for kind in ('tokens', 'channels'))
    for name in (*model.ARMS, 'both minus none'):
      self.assertEqual(found[name], arms)
    for name in (benchmark.BASELINE, benchmark.BASELINE + ' minus none'):
      self.assertEqual(found[name], baseline)
    if grabcut.available():
      self.assertIsNone(found['GrabCut'])

  def test_a_file_is_decoded_once(self):
    root, opened = self.create_tempdir().full_path, []
    for split in ('train', 'val', 'test'):
      for part, name in (('images', '12.jpg'), ('segmentations', '12_1.png')):
        os.makedirs(os.path.join(root, split, part))
        Image.fromarray(np.indices((96, 96), np.uint8)[0] % 2).save(
          os.path.join(root, split, part, name)
        )
    config = config_lib.get_config('runlocal')
    config.data.path = root
    real = Image.open
    with (
      mock.patch.object(
        Image, 'open', lambda path, *more: opened.append(os.path.relpath(path, root)) or real(path)
      ),
      mock.patch.object(training, 'train'),
      mock.patch.object(modes, 'evaluate'),
    ):
      tasks.run('all', self.create_tempdir().full_path, config, 'test')
    self.assertCountEqual(
      opened,
      [
        os.path.join(split, *file)
        for split in ('train', 'val', 'test')  # what is not evaluated is learnt from
        for file in (('images', '12.jpg'), ('segmentations', '12_1.png'))
      ],
    )

  def test_damaged_and_old_curves_are_found_again(self):
    workdir, made = self.create_tempdir().full_path, []
    spec = specs.from_config(config_lib.get_config('runlocal'))
    examples = scenes.load(spec.data, ('test',)).test

    def predict(clicks, advance):
      return [[np.zeros((96, 96), bool) for _ in row] for row in clicks]

    def courses(weights='one', examples=examples):
      method = benchmark.Method('both', ('both',), weights, lambda: made.append(0) or predict)
      objects = benchmark.Objects(spec, examples)
      return benchmark.courses(spec, workdir, objects, method)['both']

    first, path = courses(), os.path.join(workdir, 'curves', 'both.npz')
    again = courses()
    self.assertLen(made, 1)
    np.testing.assert_array_equal(first.curves, again.curves)
    np.testing.assert_array_equal(first.masks, again.masks)
    self.assertEqual(first.clicks, again.clicks)
    with open(path, 'rb') as file:
      whole = file.read()
    with cases.all_closed():
      for length in (0, 10, len(whole) // 2, len(whole) - 5):
        with open(path, 'wb') as file:
          file.write(whole[:length])
        self.assertEqual(courses().clicks, first.clicks)
    self.assertLen(made, 5)
    courses('two')  # another network
    self.assertLen(made, 6)
    courses('two', [scene._replace(image=255 - scene.image) for scene in examples])
    self.assertLen(made, 7)  # other images of the same names

  def test_masks_are_those_of_sessions(self):
    def scene(shape, seed):
      maps = np.arange(np.prod(shape)).reshape(1, *shape) // (np.prod(shape) // 2)
      return scenes.Scene('', segmenter.image((*shape, 3), seed), maps, ((0, 0), (0, 1)))

    shapes = ((48, 64), (64, 48), (48, 64), (40, 90))  # the last is worked on at another size
    config = config_lib.get_config('runlocal')
    config.segmentation.update(size=64, objects=8)
    objects = benchmark.Objects(
      specs.from_config(config), [scene(shape, seed) for seed, shape in enumerate(shapes)]
    )
    network, arms = segmenter.network(), [(True, True), (False, False)]
    predict = benchmark.predictor(objects, network.module, network.params, arms, 3)
    clicks = [
      [[Click(20 + i, 30 - i, True), Click(5, 6 + row, False)] for i in range(8)]
      for row in range(2)
    ]
    counted = []
    found = predict(clicks, counted.append)
    self.assertEqual(sum(counted), 16)
    for row, arm in enumerate(('both', 'none')):
      for i, one in enumerate(objects.scenes):
        other = session.Session(network.module, network.params, one.image, 64, 4, arm)
        want = other.replay([([click[:2]], click.positive) for click in clicks[row][i]])
        self.assertEqual(found[row][i].shape, want.shape)
        self.assertGreater((found[row][i] == want).mean(), 0.999)  # rounding, in a batch

  def test_more_objects_than_images(self):
    known = scenes.load(specs.Data(), ('test',)).test

    def chosen(count):
      config = config_lib.get_config()
      config.segmentation.objects = count
      return benchmark.Objects(specs.from_config(config), known)

    one, more = chosen(100), chosen(150)
    np.testing.assert_array_equal(one.images, np.arange(100))
    self.assertLen(more.scenes, 150)
    np.testing.assert_array_equal(more.images[:100], one.images)
    for i in range(100):
      np.testing.assert_array_equal(more.masks[i], one.masks[i])
    for k in range(100, 150):  # another object of an image that has more than one
      self.assertTrue((more.masks[k] != more.masks[more.images[k]]).any())
    self.assertLen(
      chosen(10000).scenes, sum(len(scene.objects) for scene in known)
    )  # all there are, each once

  def test_batches_depend_on_seed_and_step_alone(self):
    spec = specs.from_config(config_lib.get_config('runlocal'))
    examples = scenes.load(spec.data).train
    whole = training.make_batch(spec, examples, 3, slice(0, 4))
    half = training.make_batch(spec, examples, 3, slice(2, 4))
    for a, b in zip(whole, half):
      np.testing.assert_array_equal(a[2:], b)
    self.assertTrue((whole[0] != training.make_batch(spec, examples, 4, slice(0, 4))[0]).any())
    image, masks, pixels, labels, _ = whole
    self.assertEqual(image.shape, (4, 48, 64, 3))
    self.assertEqual(masks.shape, (4, training.OBJECTS, 48, 64))
    for i in np.ndindex(masks.shape[:2]):
      self.assertGreater((labels[i] >= 0).sum(), 0)
      for pixel, label in zip(pixels[i], labels[i]):
        if label >= 0:
          self.assertEqual(masks[i][tuple(pixel)] == scenes.OBJECT, label == 1)

  def test_where_the_encoder_comes_from(self):
    run = lambda config: tasks.run('fetch', self.create_tempdir().full_path, config, 'test')
    with self.assertRaisesRegex(UserError, "'scratch' has no released weights to fetch"):
      run(config_lib.get_config('runlocal'))
    config = config_lib.get_config('photographs')
    config.segmentation.encoder_path = os.path.join(self.create_tempdir().full_path, 'none.pth')
    with self.assertRaisesRegex(UserError, 'none.pth'):
      run(config)
    fake = lambda name, path: {'efficientnet_lite2': np.zeros((2, 1234))}[name]
    with (
      mock.patch.object(modes.efficientnet, 'load', fake),
      contextlib.redirect_stdout(io.StringIO()) as out,
    ):
      run(config)
    self.assertRegex(out.getvalue(), r'efficientnet_lite2: 2,468 parameters in .*none.pth')

  def test_bad_settings(self):
    for changes, message in (
      ({'segmentation.crop': (50, 64)}, 'segmentation.crop must be two multiples of 16'),
      ({'segmentation.slots': 2}, 'segmentation.slots 2 must be at least segmentation.clicks 3'),
      ({'data.split': 'dev'}, "unknown data.split 'dev'; valid: val, test"),
      ({'task': 'painting'}, "unknown task 'painting'; valid: diffusion, segmentation"),
      (
        {'train.batch': 3, 'segmentation.channels': 0},
        r'segmentation.channels must be in \[1, 16384\]',
      ),
    ):
      config = config_lib.get_config('runlocal')
      config.update_from_flattened_dict(changes)
      with self.assertRaisesRegex(UserError, message):
        specs.from_config(config)
    workdir = self.create_tempdir().full_path
    with self.assertRaisesRegex(
      UserError, "task 'segmentation' has no mode 'sample'; valid: fetch, train, evaluate"
    ):
      tasks.run('sample', workdir, config_lib.get_config('runlocal'), 'test')
    with self.assertRaisesRegex(UserError, 'no checkpoint in .*train one first'):
      tasks.run('evaluate', workdir, config_lib.get_config('runlocal'), 'test')


if __name__ == '__main__':
  absltest.main()
