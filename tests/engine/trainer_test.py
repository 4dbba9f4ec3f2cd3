"""ELBO weights, and that training with them learns."""

import dataclasses
import importlib.util
import json
import os
import signal
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from configs import digits
from gmm_diffusion import files, parallel, specs, tasks
from gmm_diffusion.checkpoints.store import AVERAGES, Store
from gmm_diffusion.data import base, sources
from gmm_diffusion.engine import build, loss, trainer
from gmm_diffusion.errors import Stopped, UserError
from gmm_diffusion.maths import schedules, training
from gmm_diffusion.types import Time

T = 100
BETAS = np.linspace(1e-3, 0.1, T)
SMALL = {'name': 'cnn', 'channels': 8, 'blocks': 1}  # compiles in less time than a U-Net


def weights(**sampler):
  process = schedules.from_betas(BETAS)
  return loss.elbo_weights(
    specs.Sampler(**sampler), process, process.at(process.training_times), 16
  )


class ElboTest(parameterized.TestCase):
  def test_ddpm_weights_are_the_known_ones(self):
    # DDPM eq. 12 without its constant beta^2 / alpha: with eq. 40 the weight is (1 - abar) / (2
    # abar beta~)
    abar = np.cumprod(1 - BETAS)
    before = np.append(1.0, abar[:-1])
    variance = BETAS * (1 - before) / (1 - abar)
    variance[0] = variance[1]  # the last step has none, and takes the weight of the next
    expected = (1 - abar) / (2 * abar * variance)
    np.testing.assert_allclose(weights(name='ddpm'), expected / expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(weights(name='ddim', eta=1.0), expected / expected.mean(), rtol=1e-6)

  @parameterized.parameters(
    'dpmpp', 'dpmpp_sde', 'deis', 'unipc', 'heun', 'bdia', 'time_shift', 'euler', 'ddim_noise'
  )
  def test_samplers_without_weights_are_refused(self, name):
    with self.assertRaisesRegex(
      UserError,
      f"'elbo' has no weights for sampler '{name}'; valid: ddpm, ddim, ddim_gmm, rfim, rfim_gmm",
    ):
      weights(name=name)

  def test_the_large_variance_is_refused(self):
    with self.assertRaisesRegex(UserError, "no weights for sampler.variance 'large'; valid: small"):
      weights(name='ddpm', variance='large')

  def test_the_step_to_clean_data_changes_nothing(self):
    weight = lambda last: weights(
      name='ddim_gmm_ortho', eta=1.0, scale=0.01, components=4, last_step=last
    )
    np.testing.assert_array_equal(weight('mean'), weight('source'))

  def test_mixture_without_offsets_is_ddim(self):
    np.testing.assert_allclose(
      weights(name='ddim_gmm', eta=0.5, scale=0.0, components=4),
      weights(name='ddim', eta=0.5),
      rtol=1e-5,
    )

  def test_offsets_raise_the_weight_where_variance_is_small(self):
    plain, mixed = (
      weights(name='ddim', eta=1.0),
      weights(name='ddim_gmm', eta=1.0, scale=0.02, components=4),
    )
    ratio = mixed / plain
    self.assertGreater(ratio[1], ratio[-1])  # the smallest variances are at small t


class LossTest(parameterized.TestCase):
  @parameterized.parameters(
    dict(net=dict(dropout=0.5)),
    dict(
      net=dict(name='cnn', final='gumbel', labels='none'),
      train=dict(times='log_normal', low_discrepancy=True, loss='min_snr', gamma=3.0),
    ),
  )
  def test_what_is_drawn_for_an_item_depends_on_its_position_alone(self, net, train=None):
    config = digits.get_config('runlocal')
    config.net.update(channels=8, multipliers=(1,), head_channels=8, **net)
    config.train.update(train or {})
    spec = specs.from_config(config)
    data = sources.load(spec.data)
    params = build.init(build.net(spec, data), data.shape, 0)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # no layer starts from zero
    batch = (base.to_model(data.train[:4]), data.train_labels[:4], np.arange(4))
    loss_fn = jax.jit(loss.denoising_loss(spec, data))
    halves = [loss_fn(params, 3, [part[rows] for part in batch]) for rows in ([0, 1], [2, 3])]
    value, errors = loss_fn(params, 3, batch)
    np.testing.assert_allclose(np.mean([half[0] for half in halves]), value, rtol=1e-5)
    both = jax.tree.map(np.add, *(half[1] for half in halves))
    chex.assert_trees_all_close(both, errors, rtol=1e-5)
    total, count = np.sum(list(errors.values()), 0)
    self.assertEqual(count, 4)
    if spec.train.loss == 'simple':
      np.testing.assert_allclose(total / count, value, rtol=1e-6)

  @parameterized.parameters(0.0, 0.25, 0.999)
  def test_as_many_labels_are_left_out_as_wanted(self, share):
    config = digits.get_config('runlocal')
    config.train.label_dropout = share
    spec, seen = specs.from_config(config), []
    data = sources.load(spec.data)
    kinds = np.arange(4000) % data.classes
    items = np.zeros((4000, *data.shape), np.float32)

    def output(spec, module, params, step, inputs, t, labels, keys):
      seen.append(labels)
      return inputs

    with mock.patch.object(loss, '_output', output):
      loss.denoising_loss(spec, data)({}, 0, (items, kinds, np.arange(4000)))
    left_out = seen[0] == data.classes
    self.assertBetween(np.mean(left_out), share - 0.03, share + 0.03)
    np.testing.assert_array_equal(seen[0][~left_out], kinds[~left_out])

  def test_times_of_low_discrepancy(self):
    spec = specs.Spec(train=specs.Train(batch=1000, low_discrepancy=True))
    process = build.schedule(spec.schedule)
    times = process.at(process.training_times)
    draw = loss.time_sampler(spec, times)
    index = draw(jax.random.key(0), jax.random.split(jax.random.key(1), 1000), np.arange(1000))
    # each of 1000 times once, up to a rounding at the edges between them
    self.assertGreaterEqual(len(set(index.tolist())), 990)
    self.assertFalse(np.array_equal(index[:9], draw(jax.random.key(2), None, np.arange(9))))

  @parameterized.parameters(
    (specs.Schedule(), specs.Train()),
    (specs.Schedule(name='edm'), specs.Train(times='log_normal')),
    (specs.Schedule(name='rectified_flow'), specs.Train()),
  )
  def test_parts_are_drawn_equally_often(self, schedule, train):
    process, spec = build.schedule(schedule), specs.Spec(train=train)
    times = process.at(process.training_times)
    chance = loss.chances(spec, times)
    names, part = loss.parts_of(chance, times)
    self.assertLen(names, loss.LEVELS)
    sums = np.bincount(part, chance)
    np.testing.assert_allclose(sums, 1 / loss.LEVELS, atol=2 * chance.max())
    with np.errstate(divide='ignore'):
      ratio = times.b / times.a
    for k, name in enumerate(names):  # in the middle of its part
      inside = ratio[part == k]
      self.assertBetween(float(name), 0.99 * inside.min(), 1.01 * inside.max())

  def test_times_of_a_log_normal(self):
    spec = specs.Spec(train=specs.Train(times='log_normal', log_mean=-1.0, log_deviation=0.5))
    process = schedules.edm()
    times = process.at(process.training_times)
    keys = jax.random.split(jax.random.key(0), 2000)
    level = np.log(times.b)[loss.time_sampler(spec, times)(None, keys, np.arange(2000))]
    self.assertAlmostEqual(level.mean(), -1.0, delta=5 * 0.5 / 2000**0.5)  # 6e-7 by chance
    self.assertAlmostEqual(level.std(), 0.5, delta=5 * 0.5 / 4000**0.5)

  def test_noisy_items_teach_noisier_times(self):
    spec = specs.Spec(train=specs.Train(noisy=0.5, noise_level=0.4))
    times = build.schedule(spec.schedule).at(np.arange(1000))
    level = loss.level_of(spec, times)
    self.assertAlmostEqual(times.b[level] / times.a[level], 0.4, delta=0.003)
    keys = jax.random.split(jax.random.key(0), 3000)
    index = np.asarray(loss.time_sampler(spec, times, level + 1)(None, keys, np.arange(3000)))
    self.assertGreater(index.min(), level)
    middle = (level + 1 + 999) / 2
    self.assertAlmostEqual(index.mean(), middle, delta=5 * 300 / 3000**0.5)
    log_normal = dataclasses.replace(
      spec, train=dataclasses.replace(spec.train, times='log_normal')
    )
    index = loss.time_sampler(log_normal, times, level + 1)(None, keys, np.arange(3000))
    self.assertGreater(np.min(index), level)
    with self.assertRaisesRegex(UserError, 'train.noise_level 1000 is beyond the noisiest time'):
      beyond = dataclasses.replace(spec.train, noise_level=1000.0)
      loss.level_of(dataclasses.replace(spec, train=beyond), times)

  def test_which_items_are_noisy_never_changes(self):
    spec = specs.Spec(train=specs.Train(noisy=0.9))
    items = loss.noisy_items(spec, 1000)
    self.assertEqual(np.sum(items >= 0), 900)
    np.testing.assert_array_equal(items[items >= 0], np.flatnonzero(items >= 0))
    np.testing.assert_array_equal(items, loss.noisy_items(dataclasses.replace(spec, seed=5), 1000))

  def test_loss_of_items_that_are_all_clean_is_the_plain_loss(self):
    config = digits.get_config('runlocal')
    config.net.update(SMALL)
    plain = specs.from_config(config)
    config.train.noisy = 0.5
    noisy, data = specs.from_config(config), sources.load(plain.data)
    params = build.init(build.net(plain, data), data.shape, 0)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    batch = data.train[:8], data.train_labels[:8], np.arange(8)
    # not compiled as a whole, where other operations are fused and rounded otherwise
    of = lambda spec, *more: jax.value_and_grad(loss.denoising_loss(spec, data), has_aux=True)(
      params, 0, (*batch, *more)
    )
    (value, parts), slopes = of(plain)
    clean = of(noisy, np.full(8, -1, np.int32))
    jax.tree.map(np.testing.assert_array_equal, clean, ((value, parts), slopes))  # bit for bit
    (other, _), _ = of(noisy, np.arange(8, dtype=np.int32))
    self.assertNotAlmostEqual(float(other), float(value), delta=1e-3)

  def test_a_mirrored_item_shows_the_same_noise(self):
    """Where the noise of each item makes it one picture that is its own mirror image, mirroring
    cannot change the loss: all that is seen of an item is its noisy version."""
    config = digits.get_config('runlocal')
    config.net.update(SMALL)
    config.train.update(noisy=1.0, noise_level=0.5)
    data, values = sources.load(specs.Data()), []
    x0 = jnp.asarray(base.to_model(data.train[:8]))
    batch = data.train[:8], data.train_labels[:8], np.arange(8), np.arange(8, dtype=np.int32)
    for flip in (False, True):
      config.data.flip = flip
      spec = specs.from_config(config)
      params = build.init(build.net(spec, data), data.shape, 0)
      params = jax.tree.map(lambda leaf: leaf + 0.03, params)  # no layer starts from zero
      times = build.schedule(spec.schedule).at(np.arange(1000))
      a, b = (level[loss.level_of(spec, times)] for level in (times.a, times.b))
      to_zero = lambda shape, item: -jnp.asarray(a / b, jnp.float32) * x0[item]
      with mock.patch.object(loss, '_own_noise', to_zero):
        values.append(float(jax.jit(loss.denoising_loss(spec, data))(params, 0, batch)[0]))
    self.assertAlmostEqual(*values, delta=1e-5)

  def test_weight_of_noisy_items(self):
    """The noise in the target of a noisy item is z / sqrt(kappa). So a network that outputs 0 has
    on average the loss kappa^2 / kappa, which no clean item has."""
    config = digits.get_config('runlocal')
    config.net.update(SMALL)
    config.train.update(noisy=1.0, noise_level=0.5)
    spec, data = specs.from_config(config), sources.load(specs.Data())
    params = build.init(build.net(spec, data), data.shape, 0)
    params = jax.tree.map(jnp.zeros_like, params)
    times = build.schedule(spec.schedule).at(np.arange(1000))
    number = loss.level_of(spec, times)
    level = Time(*(one[number] for one in times))
    kappa = training.kappa(Time(*(one[number + 1 :] for one in times)), level)
    N = 1000
    batch = data.train[:N], data.train_labels[:N], np.arange(N), np.arange(N, dtype=np.int32)
    value = float(jax.jit(loss.denoising_loss(spec, data))(params, 0, batch)[0])
    # 64,000 squares, and 1,000 times
    error = np.mean(kappa) * np.sqrt(2 / 64_000) + np.std(kappa) / np.sqrt(N)
    self.assertAlmostEqual(value, np.mean(kappa), delta=5 * error)
    self.assertGreater(np.mean(1 / kappa) - np.mean(kappa), 10 * error)

  def test_the_gradient_of_the_bound_does_not_pass_through_the_mean(self):
    config = digits.get_config('runlocal')
    config.net.update(SMALL, learn_sigma=True)
    config.denoiser.prediction = 'x0'  # there the last layer is the mean
    spec, data = specs.from_config(config), sources.load(specs.Data())
    params = build.init(build.net(spec, data), data.shape, 0)
    batch = data.train[:8], data.train_labels[:8], np.arange(8)
    slopes = []
    for weight in (0.0, 0.001, 1.0):
      one = dataclasses.replace(spec, train=dataclasses.replace(spec.train, vlb=weight))
      slope, _ = jax.jit(jax.grad(loss.denoising_loss(one, data), has_aux=True))(params, 0, batch)
      last = [leaf for leaf in jax.tree.leaves(slope) if leaf.shape == (2,)]
      self.assertLen(last, 1)  # the bias of the output
      slopes.append(np.asarray(last[0]))
    none, some, much = slopes
    np.testing.assert_allclose(some[0], none[0], rtol=1e-5)
    np.testing.assert_allclose(much[0], none[0], rtol=1e-3)
    self.assertEqual(none[1], 0)
    self.assertGreater(np.abs(some[1]), 0)
    np.testing.assert_allclose(much[1], 1000 * some[1], rtol=1e-3)

  @parameterized.parameters(
    {'train.times': 'log_normal'}, {'train.noisy': 0.5}, {'schedule.name': 'rectified_flow'},
  )  # fmt: skip
  def test_the_bound_needs_all_times(self, **changes):
    config = digits.get_config('runlocal')
    config.net.learn_sigma = True
    config.update_from_flattened_dict(changes)
    spec = specs.from_config(config)
    with self.assertRaisesRegex(UserError, 'net.learn_sigma needs train.times'):
      loss.denoising_loss(spec, sources.load(specs.Data()))

  def test_half_precision_keeps_its_weights_in_single(self):
    config = digits.get_config('runlocal')
    config.net.update(channels=8, multipliers=(1,), head_channels=8, dtype='bfloat16')
    spec = specs.from_config(config)
    data = sources.load(spec.data)
    params = jax.eval_shape(lambda: build.init(build.net(spec, data), data.shape, 0))
    batch = (data.train[:4], data.train_labels[:4], np.arange(4))
    grad = jax.make_jaxpr(jax.grad(loss.denoising_loss(spec, data), has_aux=True))(params, 0, batch)
    self.assertIn('bf16', str(grad))
    for tree in (jax.tree.leaves(params), grad.out_avals):
      self.assertEqual({leaf.dtype for leaf in tree}, {jnp.dtype('float32')})

  @parameterized.parameters(
    {'train.loss': 'simple', 'denoiser.prediction': 'v'},
    {'train.loss': 'elbo', 'sampler.name': 'ddpm', 'denoiser.prediction': 'eps'},
    {'train.loss': 'simple', 'schedule.name': 'rectified_flow', 'denoiser.prediction': 'velocity'},
    {
      'train.loss': 'simple',
      'schedule.name': 'edm',
      'denoiser.prediction': 'x0',
    },
    {'train.loss': 'simple', 'denoiser.prediction': 'eps', 'net.learn_sigma': True},
  )
  def test_loss_falls(self, **changes):
    config = digits.get_config('runlocal')
    config.update(
      net=SMALL,
      train=dict(steps=50, batch=32, warmup=10, learning_rate=1e-2, log_every=10),
    )
    config.update_from_flattened_dict(changes)
    workdir = self.create_tempdir().full_path
    tasks.run('train', workdir, config, 'test')
    with open(os.path.join(workdir, 'training.json'), encoding='utf-8') as file:
      rows = json.load(file)
    self.assertLess(rows[-1]['loss'], 0.8 * rows[0]['loss'])
    levels = np.array([float(level) for level in rows[0]['errors']])
    self.assertLen(levels, loss.LEVELS)
    self.assertTrue(np.all(np.diff(levels) > 0))


SHOWN = []  # what `fit` showed on the way


def fit(workdir, steps=4, stop=None, ahead=False, signal_at=None, came=signal.SIGTERM, **options):
  """Trains one number to be near others; ends with an error before step `stop`."""
  options = {'warmup': 0, 'log_every': 2, 'checkpoint_every': 2, **options}
  spec = specs.Train(steps=steps, batch=4, **options)
  optimiser = trainer.make_optimiser(spec)

  def batch(step, mine):
    if step == stop:
      raise KeyboardInterrupt
    if step == signal_at:
      os.kill(os.getpid(), came)
    return np.arange(4.0)[mine] + step

  def fresh():
    params = {'x': jnp.ones(())}
    return trainer.State(jnp.zeros((), jnp.int32), params, params, optimiser.init(params))

  loss_fn = lambda params, step, batch: jnp.mean((params['x'] - batch) ** 2)
  make = lambda: trainer.updater(spec, optimiser, loss_fn)
  show = lambda step, ema: SHOWN.append((step, float(ema['x'])))
  trainer.fit(spec, fresh, make, batch, {}, workdir, ahead, show)
  with Store(workdir) as store:
    names = AVERAGES[: len(spec.averages)]
    state = jax.eval_shape(fresh)
    return store.training(state._replace(averages=dict.fromkeys(names, state.ema)).stored())


class OptionsTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'warmup': 4}, [0, 0.25, 0.5, 0.75, 1, 1, 1]),
    (
      {'warmup': 2, 'decay': 'cosine'},
      [0, 0.5, 1, *(0.5 + 0.5 * np.cos(np.pi * np.arange(1, 5) / 4))],
    ),
    ({'warmup': 0, 'decay': 'cosine', 'steps': 2}, [1, 0.5, 0]),
    ({'warmup': 2, 'decay': 'rsqrt'}, [0, 0.5, 1, (2 / 3) ** 0.5, 0.5**0.5]),
    ({'warmup': 0, 'decay': 'rsqrt', 'decay_from': 4}, [1, 1, 1, 1, 1, 0.8**0.5]),
  )
  def test_learning_rates(self, options, expected):
    rate = trainer.learning_rate(specs.Train(**{'learning_rate': 1.0, 'steps': 6, **options}))
    np.testing.assert_allclose([rate(n) for n in range(len(expected))], expected, atol=1e-6)

  def test_checkpoints_that_stay_must_be_written(self):
    with self.assertRaisesRegex(UserError, 'train.keep_every 30 must be a multiple of .*_every 20'):
      specs.Spec(train=specs.Train(keep_every=30, checkpoint_every=20))

  def test_cosine_needs_steps_after_the_warmup(self):
    with self.assertRaisesRegex(UserError, 'train.warmup 9 must be below train.steps 9'):
      trainer.learning_rate(specs.Train(steps=9, warmup=9, decay='cosine'))

  def test_half_life_in_images(self):
    spec = specs.Train(batch=100, ema_half_life=1000.0)
    self.assertAlmostEqual(float(trainer.decay_of(spec, 1000.0, 10**6)) ** 10, 0.5, places=5)

  @parameterized.parameters(
    ({'ema': 0.3}, {'ema': 0.1}, 0.1),
    ({'ema_half_life': 1.0}, {'ema_half_life': 2.0}, 2.0),
    ({'ema_width': 0.25}, {'ema_width': 0.1}, 0.1),
  )
  def test_several_averages_are_those_of_several_runs(self, first, other, number):
    folders = [self.create_tempdir().full_path for _ in range(3)]
    both = fit(folders[0], **first, averages=(number,))
    alone = [fit(folder, **one) for folder, one in zip(folders[1:], (first, other))]
    self.assertEqual(both['ema'], alone[0]['ema'])
    self.assertEqual(both['averages']['average_1'], alone[1]['ema'])
    self.assertNotEqual(alone[0]['ema'], alone[1]['ema'])
    with Store(folders[0]) as store:
      part = store.average(1)
      found = store.weights({part: jax.tree.map(jnp.asarray, both['ema'])})[part]
      self.assertEqual(found, alone[1]['ema'])
      with self.assertRaisesRegex(UserError, 'net.average 2 is not in .* valid: 0, 1'):
        store.average(2)

  def test_other_averages_are_refused(self):
    folder = self.create_tempdir().full_path
    fit(folder, steps=2)
    with self.assertRaisesRegex(UserError, 'with other averages; set .* train.averages'):
      fit(folder, steps=4, averages=(0.5,))

  @parameterized.parameters(
    ({'averages': (0.9, 1.0)}, 'three numbers like train.ema, below 1'),
    ({'averages': (0.1, 0.2, 0.3, 0.4)}, 'at most three numbers'),
    ({'ema_width': 0.1, 'averages': (0.3,)}, 'like train.ema_width, below 0.288'),
    ({'ema_width': 0.1, 'ema_half_life': 5.0}, 'are both set'),
  )
  def test_bad_averages(self, options, message):
    with self.assertRaisesRegex(UserError, message):
      specs.Spec(train=specs.Train(**options))

  def test_parts_add_up(self):
    state = trainer.State(jnp.zeros((), jnp.int32), {'x': jnp.array([1.0, 2.0])}, None, None)
    batch = np.random.RandomState(0).randn(6, 2).astype(np.float32), np.arange(6)
    loss_fn = lambda params, step, rows: jnp.mean(
      (1.0 + rows[1])[:, None] * (params['x'][None] - rows[0]) ** 2
    )
    whole, parts = (trainer.in_parts(loss_fn, n, state, batch) for n in (1, 3))
    chex.assert_trees_all_close(whole, parts, rtol=1e-6)
    seen = lambda *args: (loss_fn(*args), {'1': jnp.stack([jnp.sum(args[2][0]), len(args[2][1])])})
    (value, errors), slope = trainer.in_parts(seen, 3, state, batch)
    chex.assert_trees_all_close(((value, {}), slope), parts)
    total, count = errors['1']
    self.assertAlmostEqual(total / count, np.sum(batch[0]) / 6, places=5)
    with self.assertRaisesRegex(UserError, 'accumulate 4 does not divide the 6 items .* divisor'):
      trainer.check_batch(specs.Train(batch=6, accumulate=4))

  def test_weight_decay_shrinks_weights(self):
    spec = specs.Train(optimiser='adamw', weight_decay=0.5, learning_rate=0.1, warmup=0)
    optimiser, x = trainer.make_optimiser(spec), jnp.array([2.0])
    updates, _ = optimiser.update(jnp.zeros(1), optimiser.init(x), x)
    np.testing.assert_allclose(updates, -0.1 * 0.5 * 2, rtol=1e-6)

  @parameterized.parameters(
    {'warmup': 3},
    {'accumulate': 2, 'optimiser': 'adamw', 'decay': 'cosine', 'ema_half_life': 8.0},
    {'warmup': 2, 'decay': 'rsqrt', 'ahead': True},
    {'ema_width': 0.2, 'averages': (0.1, 0.05)},
  )
  def test_going_on_is_exact(self, **options):
    if options.get('ahead') and importlib.util.find_spec('grain') is None:
      self.skipTest('reading ahead needs grain')
    whole, broken = self.create_tempdir().full_path, self.create_tempdir().full_path
    expected = fit(whole, steps=5, **options)
    with self.assertRaises(KeyboardInterrupt):
      fit(broken, steps=5, stop=3, **options)
    chex.assert_trees_all_equal(fit(broken, steps=5, **options), expected)

  @parameterized.product(came=(signal.SIGTERM, signal.SIGINT), done=(3, 5))
  def test_a_signal_saves_and_leaves(self, came, done):
    whole, broken = self.create_tempdir().full_path, self.create_tempdir().full_path
    expected, before = fit(whole, steps=5), signal.getsignal(came)
    with self.assertRaisesRegex(
      Stopped, f'stopped by {came.name} after step {done} of 5, which is saved'
    ):
      fit(broken, steps=5, signal_at=done - 1, came=came, checkpoint_every=100)
    self.assertEqual(signal.getsignal(came), before)
    chex.assert_trees_all_equal(fit(broken, steps=5), expected)

  def test_a_signal_during_the_last_save(self):
    """Nothing looks at it in another step, and more may follow, such as another network."""
    workdir, real = self.create_tempdir().full_path, trainer._save

    def save(store, step, *rest):
      real(store, step, *rest)
      if step == 4:
        os.kill(os.getpid(), signal.SIGTERM)

    with mock.patch.object(trainer, '_save', save):
      with self.assertRaisesRegex(Stopped, 'stopped by SIGTERM after step 4 of 4, which is saved'):
        fit(workdir)

  def test_a_gradient_that_is_not_finite(self):
    """The loss is finite, and the weights after the step would not be: they are not saved."""
    workdir, real = self.create_tempdir().full_path, trainer.updater

    def updater(spec, optimiser, loss_fn):
      nothing = lambda x: x - jax.lax.stop_gradient(x)
      steep = lambda params, step: jnp.sqrt(nothing(params['x']) + (step != 3))
      wild = lambda params, step, batch: loss_fn(params, step, batch) + steep(params, step)
      return real(spec, optimiser, wild)

    with mock.patch.object(trainer, 'updater', updater):
      with self.assertRaisesRegex(
        UserError, 'gradient is (inf|nan) between steps 2 and 4; lower .*; checkpoint 2 is kept'
      ):
        fit(workdir)
    self.assertEqual(Store(workdir).latest(), 2)

  def test_one_training_at_a_time(self):
    workdir = self.create_tempdir().full_path
    with files.claimed(os.path.join(workdir, 'training')):
      with self.assertRaisesRegex(UserError, 'another process trains in .*; wait for its end'):
        fit(workdir)
    fit(workdir)
    with files.claimed(os.path.join(workdir, 'training')):
      fit(workdir)  # there is nothing left to do

  def test_a_large_gradient_is_shortened(self):
    with mock.patch.object(optax, 'adam', lambda rate: optax.identity()):
      optimiser = trainer.make_optimiser(specs.Train(clip_norm=2.0))
    for gradient, wanted in (([3.0, 4.0], [1.2, 1.6]), ([0.3, 0.4], [0.3, 0.4])):
      found, _ = optimiser.update(jnp.array(gradient), optimiser.init(jnp.zeros(2)))
      np.testing.assert_allclose(found, wanted, rtol=1e-6)

  def test_too_little_memory(self):
    def full(state, batch):
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')

    with mock.patch.object(trainer, 'updater', lambda *_: full):
      with self.assertRaisesRegex(UserError, 'too little memory for a step; raise train.accumul'):
        fit(self.create_tempdir().full_path)

  def test_rows_of_metrics(self):
    workdir = self.create_tempdir().full_path
    options = {'steps': 5, 'log_every': 1, 'learning_rate': 0.5, 'warmup': 2, 'sample_every': 2}
    SHOWN.clear()
    with self.assertRaises(KeyboardInterrupt):
      fit(workdir, stop=3, **options)  # the row of step 3 is written again
    fit(workdir, **options)
    self.assertEqual([step for step, _ in SHOWN], [2, 4])
    with open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as file:
      rows = [json.loads(line) for line in file]
    self.assertEqual([row['step'] for row in rows], [1, 2, 3, 4, 5])
    self.assertEqual([row['images'] for row in rows], [4, 8, 12, 16, 20])
    self.assertEqual([row['learning_rate'] for row in rows], [0, 0.25, 0.5, 0.5, 0.5])
    # the mean of (x - n)^2 over n = 0..3 at x = 1, and its slope 2 (1 - 1.5)
    self.assertAlmostEqual(rows[0]['loss'], 1.5)
    self.assertAlmostEqual(rows[0]['gradient_norm'], 1.0)
    self.assertGreater(rows[0]['images_per_second'], 0)

  def test_the_checkpoint_of_another_optimiser(self):
    workdir = self.create_tempdir().full_path
    fit(workdir)
    with self.assertRaisesRegex(
      UserError, 'trained by another optimiser or with .*; set train.optimiser'
    ):
      fit(workdir, steps=6, optimiser='adamw')


class FitTest(absltest.TestCase):
  def test_a_curve_that_is_none(self):
    workdir = self.create_tempdir().full_path
    fit(workdir)
    for text in ('{}', '[3]', '[{"step": "2", "loss": 1}]', '[{"step": 2, "loss": null}]', '['):
      files.write_text(os.path.join(workdir, 'training.json'), text)
      with self.assertRaisesRegex(UserError, 'training.json.*; remove the file to start it anew'):
        fit(workdir, steps=6)
    os.remove(os.path.join(workdir, 'training.json'))
    fit(workdir, steps=6)

  def test_only_the_first_host_writes_what_hosts_share(self):
    first, other = self.create_tempdir().full_path, self.create_tempdir().full_path
    fit(first)
    self.assertContainsSubset({'training.json', 'training.png'}, os.listdir(first))
    with mock.patch.object(parallel, 'is_main', lambda: False):
      fit(other)
    self.assertNotIn('training.json', os.listdir(other))
    self.assertNotIn('training.png', os.listdir(other))


if __name__ == '__main__':
  absltest.main()
