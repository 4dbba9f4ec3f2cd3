"""Restoration as diffusion of the residual: the published trajectories, and what theory says of
exact denoisers."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.denoisers import exact, guidance, inverse, network, residual
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, marginals, schedules
from gmm_diffusion.samplers.run import run
from gmm_diffusion.types import Prediction, StepGrid, Time
from helpers import cases

GOLDEN = cases.golden('g12_rddm')
SHAPE = (3, 3, 1)


def grid_through(a, b):
  """Steps through given levels; the time is the number of the step."""
  a, b, t = np.asarray(a, float), np.asarray(b, float), np.arange(len(a), 0, -1.0)
  return StepGrid(t[:-1], t[1:], a[:-1], b[:-1], a[1:], b[1:])


def data(count=5):
  return np.random.RandomState(3).uniform(-1, 1, (count, *SHAPE))


def deterministic(denoiser, grid, x, cond=None):
  kernel = samplers.make('ddim', {})
  plan, _ = kernel.plan(grid, x.shape[1:])
  return np.asarray(run(kernel, denoiser, grid, plan, jnp.asarray(x), lambda n: None, cond).x)


def published(case, kind):
  """(Denoiser of y, steps, states of y, x_in) of a published trajectory; of its network nothing but
  the first output."""

  def denoise(y, time, x_in):
    f = jnp.tanh(0.6 * (y + x_in) - 0.4 * x_in + 0.1 * jnp.cos(time.t / 50))
    if kind == 'eps':
      return marginals.from_eps(y, f, time)
    return marginals.from_x0(y, -f, time)  # the residual with the other sign

  t, scale = GOLDEN[f'{case}_times'], case.split('_')[-2]
  rows = lambda name, clean: np.append(GOLDEN[name].astype(float), clean)[t]  # -1 is the clean end
  a, b = 1 - rows('alpha_bar', 0), rows(f'beta_bar_{scale}', 0)
  grid = StepGrid(*(part.astype(float) for part in (t[:-1], t[1:], a[:-1], b[:-1], a[1:], b[1:])))
  return denoise, grid, GOLDEN[case] - GOLDEN['xin'], jnp.asarray(GOLDEN['xin'])


class GoldenTest(parameterized.TestCase):
  @parameterized.parameters('pred_res_1_5', 'pred_res_0.01_2')
  def test_trajectory(self, case):
    denoise, grid, path, x_in = published(case, 'x0')
    kernel = samplers.make('ddim', {})
    plan, _ = kernel.plan(grid, x_in.shape[1:])
    start = jnp.asarray(grid.b_t[0] * GOLDEN['noise'], jnp.float32)
    np.testing.assert_allclose(start, path[0], atol=3.5e-7)
    found = run(kernel, denoise, grid, plan, start, lambda n: None, x_in, keep='all').path
    np.testing.assert_allclose(found, path[1:], atol=3.5e-7)

  def test_steps_of_predicted_noise(self):
    """One by one, since the source clips x_0 and its residual to +-1 without another eps, in a sum
    that is no longer a sum of the two: ours is the same where neither is clipped, and at the end,
    which is x_0 itself. At the first step a = 0, and all of it is clipped."""
    denoise, grid, path, x_in = published('pred_noise_1_5', 'eps')
    ours = guidance.clip_x0(denoise, -1 - x_in, 1 - x_in)
    free = 0
    for n in range(1, len(grid.t)):
      step = StepGrid(*(part[n : n + 1] for part in grid))
      y = jnp.asarray(path[n])
      time = Time(*(np.float32(part[0]) for part in step.now))
      y0 = np.asarray(denoise(y, time, x_in).x0)
      same = (np.abs(y0) <= 1) & (np.abs(y0 + GOLDEN['xin']) <= 1)
      free += np.sum(same)
      if n == len(grid.t) - 1:
        same[:] = True
      found = deterministic(ours, step, y, x_in)
      np.testing.assert_allclose(found[same], path[n + 1][same], atol=3.5e-7)
    self.assertEqual(free, 34)


class NetworkTest(cases.X64TestCase):
  def apply(self, x, t, labels):
    del labels
    return jnp.tanh(x[..., :1] + 0.3 * jnp.cos(t)[:, None, None, None])

  def test_without_a_degraded_image_it_is_the_plain_network(self):
    schedule = schedules.linear()
    grid = grids.make(schedule, 5, 'trailing')
    x, none = np.random.RandomState(0).randn(4, *SHAPE), np.zeros((4, *SHAPE))
    for clip in (False, True):
      one = residual.network(self.apply, schedule, 'eps', clip)
      other = residual.conditional(self.apply, schedule, 'eps', clip)
      found = deterministic(one, grid, x, (None, none))
      np.testing.assert_array_equal(found, deterministic(other, grid, x, (None, none)))
      if not clip:
        plain = network.network(self.apply, schedule, 'eps')
        np.testing.assert_array_equal(found, deterministic(plain, grid, x))

  def test_sees_both_images_and_clips_the_restored_one(self):
    seen = []

    def apply(x, t, labels):
      seen.append(x)
      return 3 * jnp.ones_like(x[..., :1])

    schedule = schedules.power()
    y, x_in = np.full((2, *SHAPE), 0.25), np.full((2, *SHAPE), -0.5)
    time = schedule.at(0.5)
    found = residual.network(apply, schedule)(y, time, (None, x_in))
    np.testing.assert_array_equal(seen[0][..., 0], -0.25)
    np.testing.assert_array_equal(seen[0][..., 1], -0.5)
    np.testing.assert_allclose(found.x0, 1.5)  # from -0.5 up to 1, more than the range of images
    np.testing.assert_allclose(time.a * found.x0 + time.b * found.eps, y, atol=1e-12)

  def test_bad_input(self):
    one = residual.network(self.apply, schedules.power())
    with self.assertRaisesRegex(UserError, r'shape of the image, \[2, 3, 3, 1\], got \[2, 2, 3, 1'):
      one(np.zeros((2, *SHAPE)), schedules.power().at(1.0), (None, np.zeros((2, 2, 3, 1))))
    for prediction in ('eps', 'score'):
      with self.assertRaisesRegex(UserError, 'a = 0; valid: x0, v, velocity'):
        residual.network(self.apply, schedules.power(), prediction)


class ExactTest(cases.X64TestCase):
  def setUp(self):
    super().setUp()
    self.known = data()
    self.x_in = np.random.RandomState(1).uniform(-1, 1, (6, *SHAPE))
    self.noise = np.random.RandomState(2).randn(6, *SHAPE)
    self.of_x = exact.mixture(self.known, 0.02)
    self.of_y = residual.of(self.of_x)

  def test_shifts_the_data(self):
    """Equation (2): the denoiser of data that are shifted by x_in."""
    x_in = self.x_in[:1]
    of_shifted = exact.mixture(self.known - x_in, 0.02)
    time = schedules.power().at(0.6)
    found = self.of_y(self.noise, time, (None, np.broadcast_to(x_in, self.noise.shape)))
    wanted = of_shifted(self.noise, time, None)
    for one, other in ((found.x0, wanted.x0), (found.eps, wanted.eps)):
      np.testing.assert_allclose(one, other, atol=1e-12)

  def test_only_the_noise_level_matters(self):
    """Equal b / a on any schedule: the same image."""
    sigma = np.concatenate([np.geomspace(20, 0.05, 8), [0.0]])
    curves = {
      'variance exploding': np.ones(9),
      'variance preserving': 1 / np.sqrt(1 + sigma**2),
      'flow': 1 / (1 + sigma),
    }
    powers = schedules.power()
    t = powers.time_of_log_snr(-2 * np.log(np.maximum(sigma, 1e-200)))
    curves['powers'] = np.where(sigma > 0, powers.signal(t), 1)
    ends = []
    for a in curves.values():
      b = a * sigma
      ends.append(
        deterministic(self.of_y, grid_through(a, b), b[0] * self.noise, (None, self.x_in))
      )
    for end in ends[1:]:
      np.testing.assert_allclose(end, ends[0], atol=2e-12)

  def test_the_order_of_residual_and_noise_does_not_matter(self):
    """Residual first, then noise, or both together: apart by the error of the steps."""
    apart = []
    for N in (100, 400):
      u = np.linspace(0, 1, N // 2 + 1)
      first = grid_through(
        np.concatenate([0.05 + 0.95 * u, np.ones(N // 2)]),
        np.concatenate([np.ones(len(u)), 1 - u[1:]]),
      )
      u = np.linspace(0, 1, N + 1)
      both = grid_through(0.05 + 0.95 * u, 1 - u)
      one, other = (
        deterministic(self.of_y, g, self.noise, (None, self.x_in)) for g in (first, both)
      )
      apart.append(np.abs(one - other).max())
    self.assertLess(apart[1], 0.02)
    self.assertBetween(apart[0] / apart[1], 2.5, 6.5)  # 4 for an error as 1 / N

  def test_the_posterior_of_known_images(self):
    """x_in = mask of x_0 with noise: weights of both, in the form of the sheet."""
    s, mask = 0.3, np.arange(9).reshape(SHAPE) % 2
    seen = np.random.RandomState(4).randn(6, *SHAPE) * mask
    x_in = seen + (1 - mask) * 0.1
    time = Time(0.0, 0.4, 0.7)
    inner = inverse.empirical(self.known, inverse.mask(mask), seen, s)
    found = residual.of(inner)(self.noise, time, (None, x_in)).x0
    total = lambda x: np.sum(x**2, (-3, -2, -1))
    y0 = self.known[None] - x_in[:, None]
    log_w = -total(self.noise[:, None] - time.a * y0) / (2 * time.b**2)
    log_w = log_w - total(seen[:, None] - mask * self.known[None]) / (2 * s**2)
    w = np.exp(log_w - log_w.max(1, keepdims=True))
    w /= w.sum(1, keepdims=True)
    np.testing.assert_allclose(found, np.einsum('bj,bjhwc->bhwc', w, y0), atol=1e-12)

  def test_noise_of_the_published_kernel(self):
    """eta = 1 adds the variance b_s^2 (b_t^2 - b_s^2) / b_t^2 and keeps the marginals."""
    count, y0 = 50_000, 0.7
    known = lambda y, time, cond: Prediction(jnp.full_like(y, y0), (y - time.a * y0) / time.b)
    grid = grid_through([0.1, 0.6], [1.0, 0.4])
    for eta in (0.5, 1.0):
      kernel = samplers.make('residual', {'eta': eta})
      plan, _ = kernel.plan(grid, (1,))
      np.testing.assert_allclose(plan.rows.std**2, eta * 0.4**2 * (1 - 0.4**2))
      x = cases.sample(kernel, known, grid, (1,), np.arange(count))
      x = np.asarray(x.x) - 0.6 * y0
      mean = -0.1 * y0 * plan.rows.weight[0]  # the start has no signal
      np.testing.assert_allclose([x.mean(), x.std()], [mean, 0.4], atol=5 * 0.4 / np.sqrt(count))

  def test_eta_0_is_ddim(self):
    grid = grids.make(schedules.power(), 6, 'uniform')
    one, other = (
      samplers.make(name, {}).plan(grid, SHAPE)[0].rows for name in ('ddim', 'residual')
    )
    for a, b in zip(one, other):
      np.testing.assert_array_equal(a, b)


if __name__ == '__main__':
  absltest.main()
