"""Consistency of a denoiser with itself, where its answer is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from configs import digits
from gmm_diffusion import specs
from gmm_diffusion.data import sources
from gmm_diffusion.denoisers import exact
from gmm_diffusion.engine import build, consistency, loss
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals, schedules, training
from gmm_diffusion.types import Time

PROCESS = schedules.linear()


def along(numbers, count):
  """The times of these numbers, each for all of a batch."""
  times = PROCESS.at(np.array(numbers))
  return [
    Time(*(np.full(count, part[k], np.float32) for part in times)) for k in range(len(times.t))
  ]


def keys_of(seed, count):
  return jax.random.split(jax.random.key(seed), count)


class DisagreementTest(parameterized.TestCase):
  def test_the_exact_denoiser_agrees_with_itself(self):
    """D(x_t) is a martingale along the way back if D is E[x_0 | x_t]."""
    count, path = 10_000, list(range(600, 250, -14))  # b / a from 4 to .7
    denoiser = exact.mixture(jnp.array([[-1.0], [0.5], [1.0]]), 0.2**2)
    truth = np.random.RandomState(0)
    x0 = np.array([-1.0, 0.5, 1.0])[truth.randint(3, size=(count, 1))]
    x0 += 0.2 * truth.randn(count, 1)
    times = along(path, count)
    x = marginals.diffuse(jnp.asarray(x0, jnp.float32), truth.randn(count, 1), times[0])
    predict = jax.vmap(lambda x, time: denoiser(x[None], time, None).x0[0])
    keys = keys_of(1, count), keys_of(2, count)
    found = np.asarray(
      jax.jit(lambda x: consistency.disagreement(predict, x, times, keys))(x), np.float64
    )
    error = found.std() / np.sqrt(count)
    self.assertLess(abs(found.mean()), 4 * error)
    one = jax.jit(lambda x: consistency.walk(predict, x, times, keys[0]))(x)
    apart = np.mean((predict(one, times[-1]) - predict(x, times[0])) ** 2)
    self.assertGreater(apart, 20 * error)  # what the square of one end would call amiss

  def test_a_denoiser_of_gaussians_by_hand(self):
    """Of a linear denoiser the mean of x_s is known, and with it what is amiss."""
    count, gain = 20_000, 0.6
    now, end = along([500, 300], count)
    predict = lambda x, time: gain * x
    x = jnp.full((count, 1), 0.7)
    found = np.asarray(consistency.disagreement(
      predict, x, [now, end], (keys_of(3, count), keys_of(4, count))
    ), np.float64)  # fmt: skip
    kappa = training.kappa(now, end)[0]
    back = (now.a * end.b**2 / (end.a * now.b**2))[0]
    mean = (end.a[0] * kappa * gain + back) * 0.7
    known = (gain * mean - gain * 0.7) ** 2
    error = found.std() / np.sqrt(count)
    self.assertAlmostEqual(found.mean(), known, delta=4 * error)
    self.assertGreater(known, 8 * error)

  def test_no_gradient_passes_through_the_way(self):
    now, end = along([500, 300], 3)
    keys = keys_of(0, 3)
    predict = lambda scale: lambda x, time: scale * x
    way = lambda scale: jnp.sum(
      consistency.walk(predict(scale), jnp.ones((3, 2)), [now, end], keys)
    )
    self.assertEqual(jax.grad(way)(0.5), 0.0)
    self.assertNotEqual(way(0.5), way(0.6))


class LossTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    config = digits.get_config('runlocal')
    config.net.update(name='cnn', channels=8, blocks=1)  # compiles in less time than a U-Net
    config.train.update(noisy=1.0, noise_level=0.5)
    self.spec, self.data = specs.from_config(config), sources.load(specs.Data())

  def with_weight(self, weight, **train):
    own = dataclasses.replace(self.spec.train, consistency=weight, **train)
    return dataclasses.replace(self.spec, train=own)

  def value(self, weight, params, count=16):
    batch = self.data.train[:count], self.data.train_labels[:count], np.arange(count)
    noisy = np.arange(count, dtype=np.int32)
    made = loss.denoising_loss(self.with_weight(weight), self.data)
    return float(jax.jit(made)(params, 0, (*batch, noisy))[0])

  def test_its_weight(self):
    params = build.init(build.net(self.spec, self.data), self.data.shape, 0)
    params = jax.tree.map(lambda leaf: leaf + 0.03, params)  # no layer starts from zero
    plain, one, three = (self.value(weight, params) for weight in (0.0, 1.0, 3.0))
    self.assertNotAlmostEqual(one, plain, delta=1e-3)
    self.assertAlmostEqual(three - plain, 3 * (one - plain), delta=1e-3 * abs(three))

  def test_an_item_is_alone(self):
    """What an item adds does not depend on the others of its batch."""
    times, level = PROCESS.at(np.arange(1000)), 300
    x, keys = jax.random.normal(jax.random.key(1), (6, 4)), keys_of(2, 6)
    predict = lambda x, time: x * time.a[:, None] * 0.3
    of = lambda part: float(consistency.loss(predict, x[part], times, level, keys[part]))
    both = of(slice(0, 2)) * 2 + of(slice(2, 6)) * 4
    self.assertAlmostEqual(of(slice(None)) * 6, both, delta=1e-4 * abs(both))

  def test_there_must_be_times_below(self):
    spec = self.with_weight(1.0, noise_level=1e-4)
    with self.assertRaisesRegex(UserError, 'is the least of the schedule, and train.consistency'):
      loss.denoising_loss(spec, self.data)
    loss.denoising_loss(self.with_weight(0.0, noise_level=1e-4), self.data)


if __name__ == '__main__':
  absltest.main()
