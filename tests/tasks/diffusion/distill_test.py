"""--mode=distill: its gradients in closed form, its fixed point, and the command."""

import os
import signal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import specs, task_specs
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import sources
from gmm_diffusion.denoisers import exact
from gmm_diffusion.engine import build
from gmm_diffusion.maths import marginals
from gmm_diffusion.tasks.diffusion import distill
from gmm_diffusion.types import Time
from helpers import cases, cli

M, V = 0.4, 0.3  # the teacher's Gaussian
NET = specs.Net(channels=8, multipliers=(1.0,), blocks=1, attention=(), head_channels=8)


class GaussianTest(cases.X64TestCase):
  """G(z) = c + theta z; all answers are known."""

  def gradient(self, c, theta, sigma, count=200_000, weighted=False):
    """By (c, theta), with the standard error; summed over draws as means."""
    random = np.random.RandomState(0)
    z, eps = (jnp.asarray(random.randn(count, 1)) for _ in range(2))
    a = 1 / np.sqrt(1 + sigma**2)
    time = Time(*(np.float64(part) for part in (0, a, a * sigma)))
    fake, teacher = (
      exact.gaussian(np.array([mean]), np.array([variance]))
      for mean, variance in ((c, theta**2), (M, V))
    )

    def of(parameters):
      x0 = parameters[0] + parameters[1] * z
      x = marginals.diffuse(jax.lax.stop_gradient(x0), eps, time)
      pair = fake(x, time, None), teacher(x, time, None)
      return distill.matching(x0, *pair, weighted)

    return jax.grad(of)(jnp.asarray([c, theta])), time

  @parameterized.parameters((0.1, 0.4, 0.5), (0.4, 0.9, 2.0), (-0.3, 0.2, 1.0))
  def test_is_that_of_the_divergence(self, c, theta, sigma):
    found, time = self.gradient(c, theta, sigma)
    a, b = time.a, time.b
    spread, own = a**2 * V + b**2, a**2 * theta**2 + b**2
    # d KL / d c = a^2 (c - m) / (a^2 v + b^2) and so on, times b^2 / a^2
    expected = (
      b**2 / a**2 * np.array([a**2 * (c - M) / spread, a**2 * theta * (1 / spread - 1 / own)])
    )
    np.testing.assert_allclose(found, expected, atol=4 * 1.5 / np.sqrt(200_000))
    self.assertGreater(np.abs(expected).max(), 0.02)

  @parameterized.parameters(False, True)
  def test_the_law_of_the_teacher_is_a_fixed_point(self, weighted):
    found, _ = self.gradient(M, np.sqrt(V), 0.7, 1000, weighted)
    np.testing.assert_allclose(found, 0, atol=1e-12)

  def test_each_sample_has_its_own_size(self):
    x0 = jnp.asarray([[1.0, 3.0], [10.0, -30.0]])
    zero = lambda y: marginals.from_x0(x0, y, Time(*np.ones(3)))
    fake, teacher = zero(x0 - 1), zero(jnp.zeros_like(x0))
    found = jax.grad(lambda x: distill.matching(x, fake, teacher))(x0)
    size = np.array([[2.0], [20.0]])
    np.testing.assert_allclose(found, (np.asarray(x0) - 1) / size / 4, rtol=1e-12)


class LossesTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.spec = specs.Spec(net=NET, distill=task_specs.Distill(batch=6))
    data = sources.load(cls.spec.data)
    cls.weights = [
      build.random_weights(build.template(cls.spec, data), seed)['net'] for seed in (0, 1, 2)
    ]
    cls.losses = distill.Losses(cls.spec, data)

  def test_labels(self):
    self.assertLen(np.unique(np.concatenate([self.losses.labels(n) for n in range(20)])), 10)
    data = sources.load(self.spec.data)._replace(classes=0)
    np.testing.assert_array_equal(distill.Losses(self.spec, data).labels(0), 0)

  def test_nothing_flows_through_the_judges(self):
    keys = self.losses.keys(0, np.arange(6, dtype=np.uint32))
    labels = self.losses.labels(0)
    by_all = jax.jit(jax.grad(self.losses.matching, (0, 1, 2)))(*self.weights, keys, labels)
    sizes = [max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree)) for tree in by_all]
    self.assertGreater(sizes[0], 1e-6)
    self.assertEqual(sizes[1:], [0, 0])

  def test_draws_belong_to_ids(self):
    whole = self.losses.keys(3, np.arange(6, dtype=np.uint32))
    part = self.losses.keys(3, np.arange(4, 6, dtype=np.uint32))
    for one, other in zip(whole, part):
      np.testing.assert_array_equal(jax.random.key_data(one)[4:], jax.random.key_data(other))
    other = self.losses.keys(4, np.arange(6, dtype=np.uint32))
    self.assertFalse(np.any(jax.random.key_data(whole[0]) == jax.random.key_data(other[0])))
    ratio = self.losses.row.b_t[0] / self.losses.row.a_t[0]
    self.assertAlmostEqual(ratio, 5, delta=0.1)

  def test_denoising_is_least_for_the_noise(self):
    # a network that answers 0 has the loss E eps^2 = 1, whatever x_0 is
    zero = jax.tree.map(jnp.zeros_like, self.weights[0])
    keys = self.losses.keys(0, np.arange(6, dtype=np.uint32))
    x0, labels = jnp.zeros((6, 8, 8, 1)), self.losses.labels(0)
    found = jax.jit(self.losses.denoising)(zero, x0, keys, labels)
    self.assertAlmostEqual(float(found), 1, delta=4 * np.sqrt(2 / 384))


class CommandTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = cls.enterClassContext(cases.folder())
    cls.start = cli.trained(cls.root)

  def distill(self, folder, *overrides, mode='distill'):
    return cli.here(
      'digits.py:runlocal',
      mode,
      os.path.join(self.root, folder),
      *cli.CNN[:3],
      *([f'--config.distill.start={self.start}', '--config.distill.batch=8'] * (mode == 'distill')),
      *overrides,
    )

  def draw(self, folder):
    code, said, error = cli.here(
      'digits.py:runlocal',
      'sample',
      os.path.join(self.root, folder),
      *cli.CNN[:3],
      '--config.sampler.name=one_step',
      '--config.sample.count=20',
    )
    self.assertEqual(code, 0, error)
    self.assertIn('20 samples, 1 network evaluations each', said)
    with np.load(cases.sample_set(os.path.join(self.root, folder), 'one_step')) as file:
      return file['arr_0'].astype(np.float32)

  def test_goes_on_where_it_was_and_is_sampled(self):
    nodes = '--config.distill.nodes=2', '--config.distill.record=4'
    code, said, error = self.distill('whole', '--config.distill.steps=4', *nodes)
    self.assertEqual(code, 0, error)
    self.assertIn('--config.sampler.name=one_step', said)
    with Store(os.path.join(self.root, 'whole')) as store:
      self.assertEqual((store.latest(), store.about()['distilled']['nodes']), (4, 2))
    whole, start = self.draw('whole'), self.draw('start')
    for key, words in (('denoiser.guidance=2', 'set denoiser.guidance to 1'),
                       ('sampler.level=3', 'distilled for sampler.level 5, got 3')):  # fmt: skip
      code, _, error = self.distill(
        'whole', f'--config.{key}', '--config.sampler.name=one_step', mode='sample'
      )
      self.assertEqual(code, 1)
      self.assertIn(words, error.splitlines()[-1])
    self.assertGreater(np.abs(whole - start).mean(), 0.1)
    code, _, error = self.distill('again', '--config.distill.steps=2')
    self.assertEqual(code, 0, error)
    code, _, error = self.distill('again', '--config.distill.steps=4')
    self.assertEqual(code, 0, error)
    code, _, error = self.distill('once', '--config.distill.steps=4')
    self.assertEqual(code, 0, error)
    np.testing.assert_array_equal(self.draw('again'), self.draw('once'))

  def test_goes_on_within_each_network_of_the_way_back(self):
    # stopped within the first half of the steps, in its last step, and within the second half
    options = '--config.distill.steps=6', '--config.distill.nodes=2', '--config.distill.record=2'
    code, _, error = self.distill('whole_way', *options)
    self.assertEqual(code, 0, error)
    labels, left = distill.Losses.labels, [1, 2, 4]

    def stop(losses, step):
      if left and step == left[0]:
        left.pop(0)
        os.kill(os.getpid(), signal.SIGTERM)
      return labels(losses, step)

    with mock.patch.object(distill.Losses, 'labels', stop):
      for done in (2, 3, 5):
        code, _, error = self.distill('in_parts', *options)
        self.assertEqual(code, 75, error)
        with Store(os.path.join(self.root, 'in_parts')) as store:
          self.assertEqual(store.latest(), done)
      code, _, error = self.distill('in_parts', *options)
      self.assertEqual(code, 0, error)
    np.testing.assert_array_equal(self.draw('in_parts'), self.draw('whole_way'))

  @parameterized.parameters(
    (('--config.distill.start=',), 'distill.start is not set'),
    (('--config.distill.record=5',), 'distill.nodes is 0'),
    (('--config.distill.nodes=9', '--config.distill.record=5'), 'must be at least distill.nodes 9'),
    (('--config.sampler.steps=5',), 'reads sampler.level'),
    (('--config.distill.nodes=3', '--config.distill.steps=2'), 'must be at least distill.nodes 3'),
    (('--config.sampler.level=10.5',), 'too noisy for a network that predicts eps'),
    (('--config.sampler.level=0',), 'sampler.level'),
    (('--config.denoiser.name=empirical',), 'exact'),
    (('--config.train.learning_rate=1e-3',), 'reads the section distill'),
  )
  def test_refuses(self, overrides, words):
    code, _, error = self.distill('never', *overrides)
    self.assertEqual(code, 1)
    self.assertIn(words, error.splitlines()[-1])
    self.assertFalse(os.path.exists(os.path.join(self.root, 'never', 'checkpoints')))

  def test_the_noisiest_level_of_predicted_noise(self):
    data, limits = sources.load(specs.Data()), {'eps': 10, 'score': 10, 'x0': 500, 'v': 500}
    for prediction, level in limits.items():
      spec = specs.Spec(
        net=NET,
        sampler=specs.Sampler(name='one_step', level=float(level)),
        denoiser=specs.Denoiser(prediction=prediction),
        distill=task_specs.Distill(start=self.start),
      )
      distill._check(spec, data, os.path.join(self.root, 'never'))

  def test_options_without_effect(self):
    code, _, error = cli.here(
      'digits.py:runlocal',
      'sample',
      os.path.join(self.root, 'start'),
      *cli.CNN[:3],
      '--config.sampler.name=one_step',
      '--config.sampler.steps=3',
    )
    self.assertEqual(code, 1)
    self.assertIn('has one step, at sampler.level', error)


if __name__ == '__main__':
  absltest.main()
