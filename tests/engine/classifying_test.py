"""A classifier of noisy images: what it learns against the best there is, and the commands that
train it and guide by it."""

import dataclasses
import json
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from configs import digits
from gmm_diffusion import specs
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import base, sources
from gmm_diffusion.engine import build, classifying, drawing
from gmm_diffusion.maths import grids
from helpers import cases, cli

LEVELS = 76, 179  # of all pixels of an image, by its class
SIDE = 4


def two_classes(count=64):
  labels = np.arange(count, dtype=np.int32) % 2
  images = np.broadcast_to(np.uint8(LEVELS)[labels, None, None, None], (count, SIDE, SIDE, 1))
  return base.Data(images, labels, images, labels, 2)


class AccuracyTest(absltest.TestCase):
  def test_is_that_of_the_best_classifier(self):
    """Of two constant images +m and -m with D pixels, the sign of the mean is right with
    probability Phi(m sqrt(D) a / b), and no classifier does better."""
    spec = specs.Spec(
      classifier=specs.Classifier(
        channels=8, multipliers=(1.0,), blocks=1, attention=(), head_channels=8
      ),
      train=specs.Train(what='classifier', steps=150, batch=64, warmup=0, learning_rate=3e-3),
    )
    data = two_classes(1024)
    with cases.folder() as folder:
      classifying.train(spec, data, folder)
      params = build.own_classifier(spec, data, folder)
    self.is_brighter_towards_the_bright_class(spec, data, params)
    found = classifying.accuracy(spec, data, params, data.test, data.test_labels)
    self.assertLen(found, len(classifying.RATIOS))
    for row in found:
      best = stats.norm.cdf(base.LEVELS[LEVELS[1]] * SIDE / row['ratio'])
      error = np.sqrt(best * (1 - best) / len(data.test))
      self.assertLess(row['value'], best + 4 * error + 1e-3, row)
      self.assertGreater(row['value'], best - 4 * error - 0.02, row)

  def is_brighter_towards_the_bright_class(self, spec, data, params):
    net = specs.Net(channels=8, multipliers=(1.0,), blocks=1, attention=(), labels='none')
    guide = dataclasses.replace(spec.classifier, scale=1.0, trained='there')
    spec = dataclasses.replace(
      spec, net=dataclasses.replace(net, head_channels=8), classifier=guide
    )
    weights = {'net': build.init(build.net(spec, data), data.shape, 0), 'classifier': params}
    denoiser = jax.jit(build.denoiser(spec, data)(weights))
    process = build.schedule(spec.schedule)
    time = process.at(grids.nearest(process, [1.0])[0])
    x = jnp.asarray(np.random.RandomState(0).randn(8, SIDE, SIDE, 1), jnp.float32)
    dark, bright = (denoiser(x, time, jnp.full(8, label)).x0.mean() for label in (0, 1))
    self.assertGreater(bright, dark + 0.1)


SIZE = (
  '--config.classifier.channels=8',
  '--config.classifier.multipliers=(1.0,)',
  '--config.classifier.head_channels=8',
)


class CommandTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = cls.enterClassContext(cases.folder())
    cls.start = cli.trained(cls.root)
    cls.trained = os.path.join(cls.root, 'classifier')
    code, cls.said, error = cls.train(cls.trained)
    assert not code, error

  @classmethod
  def train(cls, folder, *overrides, mode='train'):
    few = '--config.train.batch=16', '--config.train.steps=3', '--config.train.warmup=0'
    size = () if any('multipliers' in word for word in overrides) else SIZE  # given once
    what = '--config.train.what=classifier', *few, *size, *overrides
    return cli.here('digits.py:runlocal', mode, folder, *what)

  def sample(self, *overrides, workdir=''):
    code, out, error = cli.here(
      'digits.py:runlocal', 'sample', workdir or self.start, *cli.CNN,
      '--config.sample.count=4', '--config.sampler.name=ddim', '--config.sampler.steps=2',
      *overrides,
    )  # fmt: skip
    if code:
      return error
    with np.load(out.split(': ')[-1].split(',')[0]) as found:
      return found['arr_0'].astype(int), found['arr_1'] if 'arr_1' in found else None

  def guided(self, scale, *overrides, trained=''):
    own = f'--config.classifier.trained={trained or self.trained}', *SIZE
    return self.sample(f'--config.classifier.scale={scale}', *own, *overrides)

  def test_reports_its_accuracy(self):
    with open(os.path.join(self.trained, 'accuracy.json')) as file:
      found = json.load(file)
    self.assertEqual((found['images'], found['classes']), ('297 held-out images', 10))
    self.assertTrue(all(0 <= row['value'] <= 1 for row in found['rows']))
    self.assertTrue(os.path.exists(os.path.join(self.trained, 'accuracy.png')))
    self.assertIn('of 297 held-out images named rightly', self.said)

  def test_guides_by_name(self):
    self.assertIn('classifier.scale is 0, so that there is no classifier', self.guided(0.0))
    x, labels = self.guided(30, '--config.sample.label=7')
    np.testing.assert_array_equal(labels, 7)
    self.assertEqual(x.shape, (4, 8, 8, 1))
    self.assertIn('already trained', self.train(self.trained)[1])

  def test_sizes_of_a_classifier_that_is_off_do_not_count(self):
    marks = [
      drawing.denoiser_mark(specs.Spec(classifier=specs.Classifier(**own)), 'weights')
      for own in ({}, {'channels': 32}, {'channels': 32, 'scale': 1.0})
    ]
    self.assertEqual(marks[0], marks[1])
    self.assertNotEqual(marks[0], marks[2])

  def test_fine_tuning_and_quantising(self):
    own = f'--config.classifier.trained={self.trained}', '--config.classifier.scale=1', *SIZE
    folder = os.path.join(self.root, 'other')
    start = f'--config.finetune.start={self.start}'
    error = cli.here('digits.py:runlocal', 'finetune', folder, *cli.CNN[:3], start, *own)[2]
    self.assertIn('fine-tuned without a classifier that guides; set classifier.scale to 0', error)
    start = f'--config.quantise.start={self.start}'
    code, _, error = cli.here(
      'digits.py:runlocal', 'quantise', folder, *cli.CNN, start, *own,
      '--config.quantise.activations=8', '--config.quantise.count=4',
      '--config.sampler.name=ddim', '--config.sampler.steps=2',
    )  # fmt: skip
    self.assertFalse(code, error)
    with Store(folder) as store:
      self.assertNotIn('classifier', store.about())

  def test_a_classifier_is_found_before_a_training(self):
    code, out, error = cli.here(
      'digits.py:runlocal', 'all', os.path.join(self.root, 'late'), *cli.CNN,
      '--config.classifier.trained=nowhere', '--config.classifier.scale=1',
    )  # fmt: skip
    self.assertIn('no checkpoint in', error)
    self.assertFalse(os.path.exists(os.path.join(self.root, 'late', 'checkpoints')))

  def test_previews_of_a_denoiser_are_not_guided(self):
    code, _, error = cli.here(
      'digits.py:runlocal', 'train', os.path.join(self.root, 'shown'), *cli.CNN,
      f'--config.classifier.trained={self.trained}', '--config.classifier.scale=1', *SIZE,
      '--config.train.steps=1', '--config.train.sample_every=1', '--config.sampler.steps=1',
      '--config.net.labels=none', '--config.sample.label=3',
    )  # fmt: skip
    self.assertFalse(code, error)

  @parameterized.named_parameters(
    ('no classifier', 'start', 'holds no classifier; make one with --mode=train'),
    ('nothing', 'nowhere', 'no checkpoint in'),
  )
  def test_bad_workdirs(self, trained, message):
    error = self.guided(1, trained=os.path.join(self.root, trained))
    self.assertRegex(error, message)
    self.assertEqual(error.count('\n'), 1)

  def test_none(self):
    error = self.sample('--config.classifier.scale=1')
    self.assertRegex(error, 'classifier.scale 1 needs a classifier; set classifier.trained to the')

  def test_a_classifier_beside_a_denoiser(self):
    """As in a workdir that released weights were converted in."""
    found = self.weights(self.trained)
    with Store(self.trained) as store:
      about = store.about()
    folder, other = os.path.join(self.root, 'both'), {'net': {'other': np.zeros(3, np.float32)}}
    with Store(folder, create=True) as store:
      store.save(0, {**other, 'classifier': found}, None, {**about, 'net': {}})
    chex.assert_trees_all_equal(self.weights(folder), found)

  def weights(self, folder):
    config = digits.get_config('runlocal')
    config.classifier.update(channels=8, multipliers=(1.0,), head_channels=8)
    spec = specs.from_config(config)
    return build.own_classifier(spec, sources.load(spec.data), folder)

  def test_another_size(self):
    error = self.guided(1, '--config.classifier.channels=24')
    self.assertRegex(error, 'made with classifier.channels = 8, the config says 24')

  def test_a_classifier_is_no_denoiser(self):
    error = self.sample(workdir=self.trained)
    self.assertRegex(error, 'holds a classifier and no denoiser; set --workdir')

  @parameterized.named_parameters(
    ('loss', ('--config.train.loss=p2',), "it belongs to a denoiser, and train.what is 'cl"),
    ('scale', ('--config.classifier.scale=1',), 'it guides, and train.what'),
    ('no classes', ('--config.data.name=toy',), 'classifier guidance needs a model of images'),
    ('averages', ('--config.train.averages=(0.5,)',), 'it belongs to a denoiser'),
    ('net', ('--config.net.channels=8',), 'it belongs to a denoiser'),
    ('prediction', ('--config.denoiser.prediction=v',), 'it belongs to a denoiser'),
    ('batch', ('--config.train.accumulate=3',), 'train.accumulate 3 does not divide'),
    (
      'levels', ('--config.classifier.multipliers=(1,1,1,1,1)',),
      r'cannot be halved 4 times; use fewer classifier.multipliers',
    ),
  )  # fmt: skip
  def test_bad_settings(self, overrides, message):
    code, _, error = self.train(os.path.join(self.root, 'bad'), *overrides)
    self.assertTrue(code)
    self.assertRegex(error, message)

  def test_is_not_for_all(self):
    error = self.train(os.path.join(self.root, 'bad'), mode='all')[2]
    self.assertIn('--mode=all trains a denoiser', error)


if __name__ == '__main__':
  absltest.main()
