"""Task 'masked' as its users run it, and the pieces that the package adds to discrete/."""

import dataclasses
import glob
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import specs, task_specs, tasks
from gmm_diffusion.data import sources, streams
from gmm_diffusion.discrete import pixels, predictors, process
from gmm_diffusion.engine import measuring
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import noise
from gmm_diffusion.metrics import features
from gmm_diffusion.tasks.masked import evaluate, models, modes, report
from helpers import cases, cli

SMALL = (
  '--config.net.name=cnn',
  '--config.net.channels=8',
  '--config.train.batch=16',
  '--config.train.warmup=0',
  '--config.train.steps=2',
)
FEW = ('--config.masked.compared=(4,2)', '--config.masked.draws=2', '--config.evaluate.count=20')
NET = specs.Net(name='cnn', channels=8, labels='none')


def spec_of(**sections):
  settings = dict(task='masked', net=NET, train=specs.Train(batch=6))
  return specs.Spec(**{**settings, **sections})


def records(workdir):
  with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as file:
    return json.load(file)


class CommandTest(absltest.TestCase):
  """One workdir through all modes."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(cases.folder())
    cls.enterClassContext(absltest.mock.patch.dict(features.SETTINGS, steps=10))
    cls.first = cli.here('masked.py:runlocal', 'all', cls.workdir, *SMALL, *FEW)

  def test_all(self):
    code, out, error = self.first
    self.assertEqual(code, 0, error[-500:])
    found = records(self.workdir)
    bits = {record['sampler']: record for record in found if record['kind'] == 'bits'}
    self.assertAlmostEqual(bits['nothing']['value'], np.log2(17), places=12)
    self.assertAlmostEqual(bits['each pixel by itself']['value'], 2.431, places=3)
    self.assertAlmostEqual(bits['training images, smoothed']['value'], 2.564, places=3)
    self.assertBetween(bits['network']['value'], 3.0, 6.0)  # it has learnt nearly nothing
    samples = {
      (record['sampler'], record['nfe']) for record in found if record.get('metric') == 'frechet'
    }
    plain = {(scheme, n) for scheme in ('first hitting', 'ancestral') for n in (4, 2)}
    self.assertContainsSubset(plain, samples)
    self.assertIn(('first hitting, cosine counts', 4), samples)
    lost = {
      (record['sampler'], record['nfe']): record['nats_lost']
      for record in found
      if record.get('metric') == 'frechet'
    }
    self.assertLess(lost['first hitting', 4], lost['first hitting', 2])
    self.assertIsNone(lost['ancestral', 4])
    best = min(lost[key] for key in lost if key[1] == 4 and key[0] != 'ancestral')
    self.assertEqual(lost.get(('first hitting, best counts', 4), lost['first hitting', 4]), best)
    with open(os.path.join(self.workdir, 'report.html'), encoding='utf-8') as file:
      page = file.read()
    for words in ('filled in', 'Bits of a token', 'first hitting, 2 calls'):
      self.assertIn(words, page)
    self.assertIn('report:', out)

  def test_goes_on_where_it_was(self):
    code, out, _ = cli.here('masked.py:runlocal', 'train', self.workdir, *SMALL)
    self.assertEqual((code, out.count('already trained to step 2')), (0, 1))

  def stored(self, pattern):
    (path,) = glob.glob(os.path.join(self.workdir, 'samples', pattern))
    return path

  def test_samples(self):
    settings = (
      '--config.sample.count=5', '--config.masked.calls=3', '--config.masked.counts=cosine',
    )  # fmt: skip
    code, out, error = cli.here('masked.py:runlocal', 'sample', self.workdir, *SMALL, *settings)
    self.assertEqual(code, 0, error[-500:])
    self.assertIn('5 samples, 3 calls of the predictor each', out)
    with np.load(self.stored('first_hitting-3-network-cosine-*-n5.npz')) as file:
      x = file['arr_0']
    self.assertEqual((x.shape, x.dtype), ((5, 8, 8, 1), np.uint8))
    self.assertTrue(np.isin(x, np.round(np.arange(17) * 255 / 16)).all())

  def test_what_is_seen_stays(self):
    settings = (
      '--config.sample.count=4', '--config.inverse.operator=mask', '--config.masked.calls=2',
      '--config.inverse.hidden=bottom', '--config.inverse.draws=2',
    )  # fmt: skip
    code, _, error = cli.here('masked.py:runlocal', 'sample', self.workdir, *SMALL, *settings)
    self.assertEqual(code, 0, error[-500:])
    with np.load(self.stored('first_hitting-2-network-uniform-restored-*-n4.npz')) as file:
      x = file['arr_0']
    true = sources.load(specs.Data()).test[[0, 0, 1, 1]]
    np.testing.assert_array_equal(x[:, :4], true[:, :4])
    self.assertGreater(np.abs(x[:, 4:].astype(int) - true[:, 4:]).max(), 0)

  def test_another_number_of_levels_is_another_network(self):
    code, _, error = cli.here(
      'masked.py:runlocal', 'sample', self.workdir, *SMALL, '--config.masked.levels=5'
    )
    self.assertEqual(code, 1)
    self.assertIn('was made with masked.levels = 17, the config says 5', error)


class ExactTest(absltest.TestCase):
  def test_needs_no_training(self):
    workdir = self.create_tempdir().full_path
    code, out, error = cli.here(
      'masked.py', 'sample', workdir, '--config.masked.predictor=exact', '--config.data.limit=20',
      '--config.sample.count=3', '--config.masked.calls=4', '--config.masked.epsilon=0.01',
    )  # fmt: skip
    self.assertEqual(code, 0, error[-500:])
    self.assertIn('3 samples, 4 calls of the predictor each', out)

  def test_is_that_of_the_training_images(self):
    own = task_specs.Masked(predictor='exact')
    spec = spec_of(masked=own, data=specs.Data(limit=7))
    data = sources.load(spec.data)
    model = models.Model(Run(spec, data, '', ''))
    x = pixels.tokens(data.test[:3], 17)
    x = np.where(np.arange(64)[None] < 40, x, 17)
    known = pixels.tokens(data.train, 17)
    expected = predictors.exact(known, 17, own.epsilon, own.width).predictor(x)
    found = jax.jit(lambda weights: model.predictor(weights)(x))(known)
    np.testing.assert_allclose(found, expected, atol=1e-5)


class PiecesTest(parameterized.TestCase):
  @parameterized.parameters(2, 17, 256)
  def test_tokens_and_back(self, levels):
    x = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    tokens = pixels.tokens(x, levels)
    self.assertEqual((tokens.min(), tokens.max(), tokens.dtype), (0, levels - 1, np.int32))
    back = pixels.pictures(tokens, levels, (8, 8, 1))
    self.assertLessEqual(np.abs(back.astype(int) - x).max(), 127.5 / (levels - 1) + 0.5)
    np.testing.assert_array_equal(pixels.tokens(back, levels), tokens)
    np.testing.assert_array_equal(jax.jit(lambda x: pixels.tokens(x, levels))(x), tokens)

  def test_bad_levels(self):
    with self.assertRaisesRegex(UserError, r'levels must be in \[2, 256\], got 1'):
      pixels.tokens(np.zeros((1, 2, 2, 1), np.uint8), 1)

  def test_loss_of_a_network_that_knows_nothing(self):
    """Zeros as logits: log2 of the number of levels, however many are masked."""
    spec = spec_of(masked=task_specs.Masked(levels=5))
    data = sources.load(spec.data)
    params = jax.tree.map(jnp.zeros_like, models.init(spec, data))
    batch = data.train[:6], data.train_labels[:6], np.arange(6, dtype=np.int32)
    np.testing.assert_allclose(models.loss(spec, data)(params, 3, batch), np.log2(5), rtol=1e-6)

  def test_loss_is_the_bound_of_the_network(self):
    spec = spec_of()
    data = sources.load(spec.data)
    params = models.init(spec, data)
    params = jax.tree.map(
      lambda leaf: jnp.asarray(np.random.RandomState(0).randn(*leaf.shape) * 0.2, leaf.dtype),
      params,
    )
    batch = data.train[:6], data.train_labels[:6], np.arange(6, dtype=np.int32)
    root = jax.random.fold_in(jax.random.key(spec.seed), 3)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(root, i), 3)[0])(np.arange(6))
    apply = lambda hot, t, labels: models.net(spec, data).apply(params, hot, t, labels)
    predictor = predictors.network(apply, data.shape, 17)
    x = pixels.tokens(data.train[:6], 17)
    expected = np.mean(process.bits_per_token(process.bound(predictor, x, keys, 17), 64))
    np.testing.assert_allclose(models.loss(spec, data)(params, 3, batch), expected, rtol=1e-5)

  def test_dropout_and_mirror_images(self):
    net = specs.Net(
      channels=8, multipliers=(1.0,), blocks=1, attention=(), head_channels=8, labels='none',
      dropout=0.5,
    )  # fmt: skip
    data = sources.load(specs.Data())
    batch = data.train[:6], data.train_labels[:6], np.arange(6, dtype=np.int32)
    values = []
    for flip in (False, True):
      spec = spec_of(net=net, data=specs.Data(flip=flip))
      params = models.init(spec, data)
      params = jax.tree.map(
        lambda leaf: jnp.asarray(np.random.RandomState(0).randn(*leaf.shape) * 0.1, leaf.dtype),
        params,
      )
      of = jax.jit(models.loss(spec, data))
      values += [float(of(params, step, batch)) for step in (0, 1)]
    self.assertLen(set(values), 4)  # each draws its own masks, dropout and mirror images

  def test_pixels_by_themselves(self):
    train = np.array([[0, 255], [0, 255], [255, 255]], np.uint8).reshape(3, 1, 2, 1)
    counted = evaluate.levels_of(train, 2)
    np.testing.assert_array_equal(counted, [[2, 1], [0, 3]])
    found = evaluate.independent(counted, np.array([[0, 0]]))
    np.testing.assert_allclose(found, -np.log(3 / 5) - np.log(1 / 5))

  def test_bits_do_not_depend_on_the_batch(self):
    spec = spec_of(masked=task_specs.Masked(draws=3, predictor='exact'))
    spec = dataclasses.replace(spec, data=specs.Data(limit=5))
    data = sources.load(spec.data)
    images, labels = data.test[:5], np.zeros(5, np.int32)
    found = []
    for batch in (2, 5):
      one = dataclasses.replace(spec, sample=specs.Sample(batch=batch))
      found.append(models.Model(Run(one, data, '', '')).bits(images, labels))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    keys = noise.sample_keys(0, np.arange(5, dtype=np.uint32))
    own = spec.masked
    exact = predictors.exact(pixels.tokens(data.train, 17), 17, own.epsilon, own.width)
    nats = process.bound(exact.predictor, pixels.tokens(images, 17), keys, 17, 3)
    np.testing.assert_allclose(found[0], process.bits_per_token(nats, 64), rtol=1e-5)

  def test_what_is_filled_in_has_the_class_of_its_image(self):
    spec = spec_of(net=dataclasses.replace(NET, labels='plain'))
    data = sources.load(spec.data)
    given = report.hide(spec, data, data.test[:3])
    model, seen = models.Model.__new__(models.Model), []
    model.spec, model.data, model.levels, model.tokens = spec, data, 17, 64
    model.hash, model._weights, model._kept, model.workdir = 'x', {}, {}, ''
    model._mapped = lambda *_: (
      lambda weights, batch, advance: seen.append(batch) or given[[0, 1, 2]]
    )
    source = model.drawer('ancestral', 1, 3, given, 'uniform', data.test_labels[:3])
    source.draw(np.arange(3), lambda n: None)
    np.testing.assert_array_equal(seen[0][1], data.test_labels[:3])
    np.testing.assert_array_equal(source.labels(np.arange(4)), data.test_labels[[0, 1, 2, 0]])
    other = model.drawer('ancestral', 1, 3, given, 'uniform', data.test_labels[1:4])
    self.assertNotEqual(source.mark, other.mark)

  def test_data_have_the_levels_of_the_samples(self):
    data = sources.load(specs.Data())
    found = modes.rounded(data.train, 3)
    self.assertEqual(set(np.unique(found)), {0, 128, 255})
    stream = streams.Stream(lambda n: data.train[n], str, 5)
    np.testing.assert_array_equal(modes.rounded(stream, 3).read(), found[:5])

  def test_hides_what_it_is_told(self):
    spec = spec_of(inverse=specs.Inverse(hidden='right'))
    data = sources.load(spec.data)
    tokens = report.hide(spec, data, data.test[:2]).reshape(2, 8, 8)
    np.testing.assert_array_equal(tokens[:, :, 4:], 17)
    known = measuring.known('right', data.shape)[..., 0].astype(bool)
    np.testing.assert_array_equal(
      tokens[:, known], pixels.tokens(data.test[:2], 17).reshape(2, 8, 8)[:, known]
    )

  @parameterized.parameters(
    ('train', dict(masked=task_specs.Masked(predictor='exact')), 'has nothing to train'),
    ('train', dict(net=specs.Net()), "needs net.labels 'none' or 'plain'"),
    ('train', dict(data=specs.Data(name='toy')), "data 'toy' has no images"),
    ('sample', dict(inverse=specs.Inverse(operator='blur')), "must be '' or 'mask', got 'blur'"),
    ('all', dict(evaluate=specs.Evaluate(metrics=('fid',))), "unknown evaluate.metrics 'fid'"),
    ('all', dict(inverse=specs.Inverse(hidden='rihgt')), "unknown inverse.hidden 'rihgt'"),
    ('all', dict(masked=task_specs.Masked(compared=())), 'at least one number of calls'),
    ('all', dict(sample=specs.Sample(label='3')), "sample.label '3' needs a conditional model"),
    ('all', dict(train=specs.Train(batch=6, accumulate=4)), 'train.accumulate 4 does not divide'),
    (
      'sample',
      dict(
        masked=task_specs.Masked(predictor='exact'), net=dataclasses.replace(NET, labels='plain')
      ),
      "'exact' knows no classes",
    ),
    ('train', dict(net=specs.Net(name='dit', labels='none')), "net 'dit' needs classes"),
  )
  def test_bad_settings(self, mode, sections, words):
    with self.assertRaisesRegex(UserError, words):
      workdir = self.create_tempdir().full_path
      tasks.run(mode, workdir, dataclasses.asdict(spec_of(**sections)), '')

  def test_keys_without_effect(self):
    for key, mode, words in (
      ('masked.calls', 'evaluate', 'reads masked.compared'),
      ('masked.counts', 'evaluate', 'compares all of them'),
      ('inverse.operator', 'evaluate', 'reads inverse.hidden'),
      ('sample.count', 'all', 'reads evaluate.count'),
      ('masked.width', 'train', "masked.predictor is 'network'"),
      ('inverse.hidden', 'sample', 'nothing is measured'),
      ('train.loss', 'train', "task 'masked' has one loss"),
      ('sample.gif', 'sample', "task 'masked' reads sample.count"),
      ('sampler.steps', 'sample', "does not read the section 'sampler'"),
    ):
      with self.assertRaisesRegex(UserError, words):
        workdir = self.create_tempdir().full_path
        tasks.run(mode, workdir, dataclasses.asdict(spec_of()), '', [key])


if __name__ == '__main__':
  absltest.main()
