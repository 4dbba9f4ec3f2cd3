"""Tiers on denoisers with closed forms: race, search, fits, coefficients, gradient."""

import itertools
from unittest import mock

import hypothesis
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies

from gmm_diffusion import samplers
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import bands as bands_lib
from gmm_diffusion.maths import grids, marginals, schedules
from gmm_diffusion.samplers import linear
from gmm_diffusion.tune import (
  calibrate,
  descend,
  fit,
  local_errors,
  race,
  scores,
  search,
  subject,
)

LINEAR = schedules.linear()
SHAPE = (4, 4, 1)
BANDS = bands_lib.make(SHAPE, 4)
# a Gaussian whose variance falls as 1 / k^2, constant within each band of the transform's corners
SPECTRUM = 1 / (1 + 40 * bands_lib.frequency(SHAPE[:2]) ** 2)[None, ..., None]

FEW_GRIDS = {name: grids.GRIDS[name] for name in ('trailing', 'log_snr')}


def gaussian(weights):
  """The exact denoiser of N(0, U^T diag S U)."""
  spectrum = weights

  def denoise(x, time, cond):
    del cond
    gain = time.a * spectrum / (time.a**2 * spectrum + time.b**2)
    return marginals.from_x0(x, BANDS.synthesise(gain * BANDS.analyse(x)), time)

  return denoise


def items(n, seed=0):
  z = np.random.RandomState(seed).standard_normal((n, *SHAPE)).astype(np.float32)
  root = np.sqrt(SPECTRUM).astype(np.float32)
  return np.asarray(BANDS.synthesise(root * BANDS.analyse(z)))


def image_subject(**more):
  return subject.Subject(gaussian, SPECTRUM.astype(np.float32), LINEAR, SHAPE, batch=32, **more)


def embedded(name='ddim', steps=4, grid='log_snr', **options):
  times = grids.make(LINEAR, steps, grid).t
  return race.embedded(name, options, LINEAR, times, grid)


class SubjectTest(absltest.TestCase):
  def test_a_table_draws_what_its_sampler_draws(self):
    one, it, ids = embedded('unipc', order=3), image_subject(), np.arange(5)
    grid = grids.from_times(LINEAR, one.table.time.t)
    start = it.start(grid.b_t[0], 7, ids)
    wanted = it.path('unipc', {'order': 3}, grid, start, ids, 7)[-1]
    np.testing.assert_allclose(it.draw(one.table, 7, ids), wanted, atol=2e-5)
    np.testing.assert_allclose(it.end('unipc', {'order': 3}, grid, 7, ids), wanted, atol=2e-5)
    self.assertEqual(it.calls, 3 * 4 * 5)

  @hypothesis.settings(max_examples=30, deadline=None)
  @hypothesis.given(strategies.lists(strategies.floats(-5, 1200), min_size=1, max_size=8))
  def test_whole_times_are_distinct_and_fall(self, times):
    found = image_subject(whole_times=True).times(np.sort(times)[::-1])
    np.testing.assert_array_equal(found, np.round(found))
    self.assertTrue(np.all(np.diff(found) < 0))
    self.assertTrue(0 <= found[-1] and found[0] <= 999)


class RaceTest(parameterized.TestCase):
  @parameterized.parameters(3, 4)
  def test_candidates_make_exactly_so_many_calls_and_are_different(self, calls):
    self.enter_context(mock.patch.dict(grids.GRIDS, FEW_GRIDS, clear=True))
    found = race.candidates(LINEAR, calls, lambda t: t)
    keys = {race._key(one.table) for one in found}
    self.assertLen(keys, len(found))
    self.assertEqual({len(one.table.keep) for one in found}, {calls})
    names = {one.name for one in found}
    self.assertEqual('heun' in names, calls % 2 == 1)
    self.assertTrue({'ddim', 'unipc', 'deis', 'ipndm', 'dpmpp', 'bdia'} <= names)
    self.assertTrue(all(race.is_finite(one.table) for one in found))

  def test_tables_that_hardly_differ_count_once(self):
    """From the cleanest time of the schedule, an extrapolated last step is like a plain one."""
    runners = {'dpmpp': {'order': (2,), 'extrapolate': (False, True)}}
    self.enter_context(mock.patch.object(race, 'RUNNERS', runners))
    for name, count in (('uniform', 1), ('trailing', 2)):
      with mock.patch.dict(grids.GRIDS, {name: grids.GRIDS[name]}, clear=True):
        self.assertLen(race.candidates(LINEAR, 5, lambda t: t), count)

  @hypothesis.settings(max_examples=50, deadline=None)
  @hypothesis.given(
    strategies.integers(1, 500), strategies.integers(1, 64), strategies.integers(1, 5000)
  )
  def test_halvings(self, count, least, most):
    rounds = race.halvings(count, least, most)
    self.assertEqual(rounds[0][0], count)
    self.assertEqual(rounds[-1][1], most)
    for (before, few), (after, many) in zip(rounds, rounds[1:], strict=False):
      self.assertLess(few, many)
      self.assertTrue(min(before, 4) <= after <= before)

  def test_the_best_wins_and_time_may_end(self):
    field = [embedded(steps=n) for n in range(2, 9)]
    value = {id(one): abs(i - 3) for i, one in enumerate(field)}
    score = lambda one, samples: scores.Score(value[id(one)] + 1 / samples, None, None)
    best = race.run(field, race.halvings(7, 4, 64), score)
    self.assertIs(best[0][0], field[3])
    asked = []

    def limited(one, samples):
      asked.append(samples)
      return score(one, samples) if len(asked) < 9 else None

    self.assertIs(race.run(field, race.halvings(7, 4, 64), limited)[0][0], field[3])


class SearchTest(parameterized.TestCase):
  @hypothesis.settings(max_examples=20, deadline=None)
  @hypothesis.given(strategies.lists(strategies.floats(-4, 4), min_size=4, max_size=4))
  def test_moved_times_fall(self, moves):
    for schedule in (LINEAR, schedules.rectified_flow()):
      t = grids.make(schedule, 4, 'log_snr').t
      one = race.embedded('ddim', {}, schedule, t, 'log_snr')
      found = search.moved(one, np.array(moves), schedule, lambda t: t).table.time.t
      self.assertTrue(np.all(np.diff(found) < 0))
      self.assertGreaterEqual(found[-1], schedule.first)
      self.assertLessEqual(found[0], schedule.last)
      if moves[0] <= 0:
        self.assertEqual(found[0], schedule.last)

  def test_moves_are_logarithms_of_factors_of_steps(self):
    parent = embedded('ddim')
    one = search.moved(parent, np.log([1, 2, 0.5, 0.25]), LINEAR, lambda t: t)
    old, new = (LINEAR.log_snr(it.table.time.t) for it in (parent, one))
    np.testing.assert_allclose(np.diff(new) / np.diff(old), [2, 0.5, 0.25], rtol=1e-6)

  def test_the_first_time_moves_by_mean_steps(self):
    parent = embedded('ddim')
    one = search.moved(parent, np.array([0.3, 0, 0, 0]), LINEAR, lambda t: t)
    old, new = (LINEAR.log_snr(it.table.time.t) for it in (parent, one))
    np.testing.assert_allclose(new[0], old[0] + 0.3 * np.mean(np.diff(old)))
    back = search.moved(one, np.array([-0.6, 0, 0, 0]), LINEAR, lambda t: t)
    self.assertEqual(back.table.time.t[0], LINEAR.last)

  @parameterized.parameters('ddim', 'unipc', 'heun')
  def test_no_moves_change_nothing(self, name):
    parent = embedded(name, steps=3)
    one = search.moved(parent, np.zeros(search.free_numbers(parent)), LINEAR, lambda t: t)
    for old, new in zip((*parent.table.time, *parent.table[1:]), (*one.table.time, *one.table[1:])):
      np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-7)

  def test_times_of_heun_move_too(self):
    parent = embedded('heun', steps=3)  # 5 calls, two of them twice at a time
    self.assertEqual(search.free_numbers(parent), 3)
    child = search.moved(parent, np.array([0, 0.3, -0.2]), LINEAR, lambda t: t)
    self.assertEqual((len(child.table.keep), child.table.time.t[0]), (5, 999))
    self.assertNotAlmostEqual(child.table.time.t[1], parent.table.time.t[1])

  def test_what_cannot_be_used_is_an_error(self):
    self.enter_context(mock.patch.object(race, 'is_finite', lambda table: False))
    with self.assertRaisesRegex(UserError, 'ddim .* cannot be used'):
      search.moved(embedded('ddim'), np.zeros(4), LINEAR, lambda t: t)

  def test_ratios_change_coefficients_and_no_times(self):
    plain = dict(order=2, extrapolate=False)
    parent = embedded('unipc', **plain)
    self.assertTrue(search.takes_ratios(parent))
    self.assertFalse(search.takes_ratios(embedded('ddim')))
    self.assertTrue(search.takes_ratios(embedded('unipc', steps=2, **plain)))
    # by default the last step of two extrapolates, and leaves no ratio
    self.assertFalse(search.takes_ratios(embedded('unipc', steps=2, order=2)))
    moves = np.array([0, 0, 0, 0, 0.1, -0.2, 0.15])
    child = search.moved(parent, moves, LINEAR, lambda t: t)
    options = dict(child.options)
    self.assertEqual(options, {**plain, 'compensate': 1, 'ratios': (1, 1.1, 0.8, 1.15)})
    for chosen in ({}, {'extrapolate': True}):
      ends = embedded('dpmpp', order=3, **chosen)
      other = search.moved(ends, moves, LINEAR, lambda t: t)
      self.assertEqual(dict(other.options)['ratios'], (1, 1.1, 0.8, 1))
    np.testing.assert_allclose(child.table.time.t, parent.table.time.t)
    self.assertGreater(np.abs(child.table.weights[-1] - parent.table.weights[-1]).max(), 1e-3)
    again = search.moved(child, moves, LINEAR, lambda t: t)  # from where it is
    self.assertEqual(dict(again.options)['ratios'], (1, 1.2, 0.6, 1.3))

  @parameterized.parameters('ddim', 'heun')
  def test_network_times_move_alone(self, name):
    """What the sampler does with the predictions stays, and so does the first call."""
    parent = embedded(name, steps=4)
    found = search.shifted(parent, 0.4, LINEAR, image_subject().times)
    old, new = (LINEAR.log_snr(one.table.time.t) for one in (parent, found))
    free = new < LINEAR.log_snr(LINEAR.first) - 1e-6  # not at the end of the schedule
    np.testing.assert_allclose(new[free] - old[free], [0, *[0.4] * (sum(free) - 1)], atol=1e-6)
    at = LINEAR.at(found.table.time.t)
    np.testing.assert_array_equal(found.table.time.b, at.b)
    for before, after in zip(parent.table[1:], found.table[1:], strict=True):
      np.testing.assert_array_equal(before, after)
    self.assertIn(f'{parent}, network times moved by +0.4', str(found))

  def test_network_times_of_whole_numbers(self):
    for shift in search.SHIFTS:
      found = search.shifted(embedded(), shift, LINEAR, image_subject(whole_times=True).times)
      t = found.table.time.t
      np.testing.assert_array_equal(t, np.round(t))
      self.assertTrue(np.all(np.diff(t) < 0))

  @parameterized.parameters(
    ('ddim', {}, -1.0, 0, -0.25),  # no step further than order 1, and no extrapolation
    ('ddim', {}, -1.0, 1, -0.25),  # of order 1 the forms are the same
    ('dpmpp', {'order': 2, 'extrapolate': True}, 0.0, 0, 0.0),
    ('dpmpp', {'order': 3, 'extrapolate': True}, 0.25, 0, 0.0),
    ('dpmpp', {'order': 3, 'extrapolate': False}, 0.3, 0, -0.25),
  )
  def test_choices_give_known_solvers(self, name, options, orders, eps, ends):
    if name == 'dpmpp':
      options = {**options, 'solver': 'exact', 'lower_final': 'never'}
    wanted = embedded(name, steps=5, **options)
    moves = np.array([*[0] * 5, *[eps] * 4, *[-1] * 4, *[orders] * 3, ends])
    self.assertLen(moves, search.choices(5))
    found = search.chosen(wanted, moves, LINEAR, lambda t: t)
    for part in ('keep', 'weights', 'std'):
      np.testing.assert_allclose(
        getattr(found.table, part), getattr(wanted.table, part), atol=1e-6, err_msg=part
      )

  @parameterized.parameters(
    (6, 1.0, 'USF (1 x0 corrected, 2 eps corrected, 2 x0 corrected, '),
    (9, -1.0, 'USF (1 x0, 2 x0 corrected, 2 x0 corrected, '),
    (14, 0.25, 'USF (1 x0 corrected, 2 x0 corrected, 3 x0 corrected, '),
  )
  def test_each_choice_changes_the_table(self, place, move, words):
    parent, moves = embedded('ddim', steps=5), np.zeros(17)
    plain = search.chosen(parent, moves, LINEAR, lambda t: t)
    self.assertIn('USF (1 x0 corrected, 2 x0 corrected, 2 x0 corrected, 2 x0', str(plain))
    moves[place] = move
    one = search.chosen(parent, moves, LINEAR, lambda t: t)
    self.assertIn(words, str(one))
    self.assertGreater(np.abs(plain.table.weights - one.table.weights).max(), 1e-2)

  @hypothesis.settings(max_examples=40, deadline=None)
  @hypothesis.given(strategies.lists(strategies.floats(-1, 1), min_size=13, max_size=13))
  def test_any_choices_keep_mean_and_variance(self, moves):
    for schedule in (LINEAR, schedules.rectified_flow()):
      t = grids.make(schedule, 4, 'log_snr').t
      one = race.embedded('ddim', {}, schedule, t, 'log_snr')
      moves = 0.5 * np.array(moves)  # of the times e^0.5 at most, so that no two come close
      table = search.chosen(one, moves, schedule, lambda t: t).table
      self.assertEqual(table.keep.shape, (4, 1))
      for line in linear.consistency(table):
        np.testing.assert_allclose([line['mean'], line['variance']], 0, atol=1e-5)

  def test_ratios_of_other_numbers_of_calls(self):
    unipc, dpmpp = (embedded(name, extrapolate=name == 'dpmpp') for name in ('unipc', 'dpmpp'))
    some = [unipc, embedded('ddim'), dpmpp]
    predict = lambda known: search.predicted(some, known, LINEAR, lambda t: t)
    known = {3: (1, 1.2, 1.4), 5: (1, 1, 1, 1, 1)}
    unipc, dpmpp = predict(known)  # of 4 calls
    self.assertEqual(dict(unipc.options)['ratios'], (1, 1.067, 1.133, 1.2))
    self.assertEqual(dict(dpmpp.options)['ratios'], (1, 1.067, 1.133, 1))
    np.testing.assert_allclose(unipc.table.time.t, some[0].table.time.t, atol=1e-6)
    self.assertEqual(dict(predict({3: known[3]})[0].options)['ratios'], (1, 1.133, 1.267, 1.4))
    self.assertEqual(predict({}), [])


class LocalErrorsTest(absltest.TestCase):
  def test_costs_of_a_gaussian(self):
    """Where a^2 + b^2 = 1 and the data are N(0, I), the exact trajectories stand still, and a step
    of DDIM multiplies by the cosine of the angle between two levels."""

    def unit(weights):
      return lambda x, time, cond: marginals.from_x0(x, weights * time.a * x, time)

    it = subject.Subject(unit, np.ones((1, 1, 1, 1), np.float32), LINEAR, SHAPE, batch=32)
    ids = np.arange(20)
    t, found = local_errors.costs(it, 3, ids)
    at = LINEAR.at(t)
    angle, a = np.append(np.arctan2(at.b, at.a), 0.0), np.append(at.a, 1.0)
    size = np.mean(np.linalg.norm(it.start(at.b[0], 3, ids).reshape(20, -1), axis=1)) / 4
    wanted = np.triu(size * (1 - np.cos(angle[:, None] - angle)) / a, 1)
    np.testing.assert_allclose(found, wanted, rtol=0.02, atol=2e-4)
    times = local_errors.best(t, found, 3)
    self.assertEqual((len(times), times[0]), (3, t[0]))
    self.assertTrue(np.all(np.diff(times) < 0))


class FitTest(absltest.TestCase):
  def test_a_known_row_is_found(self):
    random = np.random.RandomState(0)
    parts = [random.standard_normal((50, *SHAPE)) for _ in range(3)]
    rows = random.standard_normal((3, 4))
    goal = sum(np.tensordot(row, BANDS.hats, 1)[..., None] * part for row, part in zip(rows, parts))
    found, left, gain = fit._regression(parts, goal, BANDS, np.zeros((3, 4)), 0.0)
    np.testing.assert_allclose(found, rows, atol=1e-8)
    np.testing.assert_allclose(left, 0, atol=1e-8)
    np.testing.assert_allclose(gain, 1, atol=1e-8)

  def test_one_step_in_bands_is_nearly_exact_and_in_scalars_is_not(self):
    it, ids = image_subject(), np.arange(200)
    start = embedded(steps=1, grid='trailing')
    x = it.start(start.table.b[0], 1, ids)
    known = fit.targets(it, start.table, x, ids, each=200)
    away = {}
    for count in (1, 4):
      choice = fit.Choice('coupled', count, 1e-9, False)
      one, end = fit.fit(it, start, choice, ids, 1, known, None, None)
      away[count] = np.sqrt(np.mean((end - known[-1]) ** 2) / np.mean(known[-1] ** 2))
      drawn = it.draw(one.table, 1, ids, bands_lib.make(SHAPE, count))
      np.testing.assert_allclose(drawn, end, atol=1e-4)
    self.assertLess(away[4], 0.1)
    self.assertGreater(away[1], 3 * away[4])

  def test_the_gain_restores_the_variance(self):
    it, ids = image_subject(), np.arange(300)
    start = embedded(steps=2, grid='trailing')
    x = it.start(start.table.b[0], 2, ids)
    known = fit.targets(it, start.table, x, ids)
    _, end = fit.fit(it, start, fit.Choice('coupled', 1, 1e-3, True), ids, 2, known, None, None)
    self.assertAlmostEqual(np.std(end) / np.std(known[-1]), 1, delta=0.02)

  def test_the_chain_has_the_levels_of_the_table(self):
    table = embedded('heun', steps=3).table
    x0 = np.full((4000, 1), 2.0, np.float32)
    path = fit.chain(table, x0, 0)
    np.testing.assert_array_equal(path[-1], x0)
    np.testing.assert_allclose(path.mean((1, 2)), 2 * table.a, atol=0.06)
    np.testing.assert_allclose(path.std((1, 2))[:-1], table.b[:-1], rtol=0.05)

  def test_the_joint_fit_has_the_variance_of_the_posterior(self):
    it, x0 = image_subject(), items(600)
    start = embedded(steps=3)
    choice = fit.Choice('joint', 4, 1e-6, False)
    labels = np.arange(600) % 7
    with mock.patch.object(it, 'predict', wraps=it.predict) as predict:
      one, _ = fit.fit(it, start, choice, np.arange(600), 3, None, x0, labels)
    for call in predict.call_args_list:
      np.testing.assert_array_equal(call.args[2], labels)  # those of the items
    t = one.table
    a, b, a2, b2 = t.a[1], t.b[1], t.a[2], t.b[2]
    prior = a2**2 * SPECTRUM + b2**2  # of x_s; x_t = r x_s + noise of variance v
    r = a / a2
    v = b**2 - r**2 * b2**2
    wanted = np.sqrt(prior * v / (r**2 * prior + v))
    hats = BANDS.hats[..., None]
    wanted = [float((hat * wanted[0]).sum() / hat.sum()) for hat in hats]
    np.testing.assert_allclose(t.std[1], wanted, rtol=0.1)
    np.testing.assert_array_equal(t.std[-1], 0)


class CalibrateTest(absltest.TestCase):
  def test_noise_of_ddim_is_ddim_with_eta(self):
    grid = grids.make(LINEAR, 5, 'log_snr')
    std = marginals.posterior_std(grid, 0.7)
    found = calibrate.stirred(embedded(steps=5).table, np.asarray(std) / grid.b_s.clip(1e-9))
    wanted = linear.embed(samplers.make('ddim', {'eta': 0.7}, LINEAR), grid, (1,))
    for name in ('keep', 'weights', 'std'):
      np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-6)

  @hypothesis.settings(max_examples=20, deadline=None)
  @hypothesis.given(
    strategies.lists(strategies.floats(0, 0.95), min_size=4, max_size=4),
    strategies.sampled_from((0.0, 0.5, 1.0)),
  )
  def test_mean_and_variance_stay(self, shares, eta):
    """Also where the sampler has noise of its own."""
    found = calibrate.stirred(embedded(eta=eta).table, np.array(shares))
    for state in linear.consistency(found):
      np.testing.assert_allclose(state['mean'], 0, atol=1e-9)
      np.testing.assert_allclose(state['variance'], 0, atol=1e-9)

  def test_numbers_are_found_for_two_calls(self):
    """CMA-ES finds noise, keep and weights of a table that is known."""
    start = embedded(steps=2)
    count = calibrate.free_numbers(start)
    self.assertEqual(count, 1 + 1 + 3)
    moves = np.array([0.1, 0.05, -0.1, 0.1, 0.05])
    wanted = calibrate.candidate(start, moves).table
    self.assertAlmostEqual(wanted.std[0].item(), 0.4 * start.table.b[1], places=6)

    def away(one, generation):
      parts = ('keep', 'weights', 'std')
      return sum(np.sum((getattr(one.table, p) - getattr(wanted, p)) ** 2) for p in parts)

    path = search.evolution(lambda x: calibrate.candidate(start, x), count, 0.05, away, 0)
    *_, last = itertools.islice(path, 60)
    self.assertLess(away(last, 0), 1e-3 * away(start, 0))
    self.assertEqual(last.table.std[1], 0)

  def test_moves_change_what_they_say(self):
    start = embedded('dpmpp', steps=5, order=2)
    count = calibrate.free_numbers(start)
    self.assertEqual(count, 4 + 4 + 1 + 2 + 3 + 3 + 3)
    same = calibrate.candidate(start, np.zeros(count)).table
    for old, new in zip(start.table[1:], same[1:]):
      np.testing.assert_array_equal(old, new)
    moves = np.zeros(count)
    moves[[4, 8, -1]] = np.log(2), 0.5, 0.25
    found = calibrate.candidate(start, moves).table
    keep, weights = start.table.keep.copy(), start.table.weights.copy()
    keep[0] *= 2
    weights[0, 0] += 0.5 * start.table.a[1]
    weights[4, 4] += 0.25
    np.testing.assert_allclose(found.keep, keep)
    np.testing.assert_allclose(found.weights, weights)

  def test_shares_are_clipped(self):
    start = embedded(steps=3)
    moves = np.zeros(calibrate.free_numbers(start))
    moves[:2] = -0.1, 1
    one = calibrate.candidate(start, moves)
    wanted = [0, calibrate.MOST * start.table.b[2], 0]
    np.testing.assert_allclose(one.table.std.ravel(), wanted, atol=1e-7)


class DescendTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.it = image_subject()
    self.table = embedded('ddim', steps=3, grid='trailing').table
    self.of = lambda x: [x.reshape(len(x), -1)]
    self.known = scores.reference(self.of, items(200))

  def steps(self, count, state=None, **settings):
    made = descend.Settings(steps=40, batch=32, rate=2e-2, **settings)
    loss = descend.loss_of(self.it, self.table, None, self.of, self.known, made, 5)
    source = descend.descend(self.it, self.table, loss, made, state=state)
    return [next(source) for _ in range(count)]

  def test_moves_that_change_nothing(self):
    still = descend.table_of(self.table, descend.still(self.table), LINEAR, False)
    for old, new in zip(self.table[1:], still[1:], strict=True):
      np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(still.time.t, self.table.time.t, atol=0.2)

  def test_the_clock_is_the_schedule(self):
    for schedule in (LINEAR, schedules.rectified_flow(), schedules.edm()):
      t = schedule.training_times[[30, 200, 700]]
      found, wanted = descend.clock(schedule)(jnp.asarray(schedule.log_snr(t))), schedule.at(t)
      np.testing.assert_allclose(found.t, wanted.t, rtol=2e-3)
      np.testing.assert_allclose(found.a, wanted.a, rtol=1e-3)
      np.testing.assert_allclose(found.b, wanted.b, rtol=1e-3)

  def test_it_gets_better_and_goes_on_where_it_stopped(self):
    walked = self.steps(40)
    score = scores.scorer(self.of, scores.reference(self.of, items(500, 1)))
    made = descend.table_of(self.table, walked[-1][1][2], LINEAR, False)
    ids = np.arange(500)
    old, new = (score(self.it.draw(table, 9, ids)) for table in (self.table, made))
    gain = scores.gain(new, old)
    self.assertTrue(scores.excludes_zero(*gain), gain)
    after = self.steps(2, state=self.steps(2)[-1][1])
    np.testing.assert_allclose(after[-1][1][1].alpha, walked[3][1][1].alpha, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
