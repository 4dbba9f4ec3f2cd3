"""--mode=tune and the sampler that it leaves, on points with their exact denoiser."""

import contextlib
import io
import json
import os
import re
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

import gmm_diffusion
from configs import digits, toy
from gmm_diffusion import files, parallel, samplers, specs, tasks
from gmm_diffusion.data import sources
from gmm_diffusion.denoisers import exact
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.metrics import estimates, features
from gmm_diffusion.samplers import linear, tuned
from gmm_diffusion.tasks.diffusion import judging, tune, tune_page
from gmm_diffusion.tune import race, tiers
from helpers import cases

FEW_GRIDS = {name: grids.GRIDS[name] for name in ('uniform', 'log_snr', 'trailing')}


def run(mode, workdir, *given, **changes):
  """Runs a mode with settings 'section.key': what it printed."""
  config, out = toy.get_config('runlocal'), io.StringIO()
  for key, value in changes.items():
    section, _, name = key.partition('__')
    config[section][name] = value
  keys = tuple(key.replace('__', '.') for key in changes)
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
    tasks.run(mode, workdir, config, 'the command', keys)
  return out.getvalue()


@contextlib.contextmanager
def few():
  """A race of few samplers on few grids."""
  with (
    mock.patch.object(race, 'RUNNERS', {'ddim': {'eta': (0.0, 1.0)}, 'unipc': {}}),
    mock.patch.dict(grids.GRIDS, FEW_GRIDS, clear=True),
  ):
    yield


class TuneTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(cases.folder())
    cls.said = cls.tune()

  @classmethod
  def tune(cls):
    with few():
      return run(
        'tune', cls.workdir, tune__calls=(3, 2), tune__tier=1, tune__bands=1, tune__samples=32,
        tune__seeds=2, tune__limits=True, evaluate__count=50,
      )  # fmt: skip

  def read(self, calls=3):
    return files.read_json(os.path.join(self.workdir, 'tuned', f'{calls}.json'), {})

  def test_the_file_holds_the_evidence(self):
    found = self.read()
    self.assertEqual(found['evidence'][0]['tier'], 'race')
    self.assertLen(found['table']['t'], 3)
    self.assertTrue(found['finished'])
    rows = found['report']['rows']
    self.assertLen([row for row in rows if row['fixed']], 1)
    self.assertLen([row for row in rows if row['best']], 1)
    self.assertTrue(all(len(row['values']) == 2 for row in rows))
    self.assertGreater(found['network_calls'], 0)
    self.assertEqual(found['command'], 'the command')

  def test_the_untuned_sampler_that_a_judge_ranks_first_is_a_row(self):
    for calls in (2, 3):
      report = self.read(calls)['report']
      best = next(row for row in report['rows'] if row['best'])
      found = [row for row in report['rows'] if 'first_by' in row]
      self.assertEqual([name for row in found for name in row['first_by']], [report['features']])
      ((away, low, high),) = found[0]['best_minus']
      self.assertAlmostEqual(away, best['mean'] - found[0]['mean'])
      self.assertLessEqual(low, high)

  def test_a_second_run_keeps_what_the_first_cost(self):
    before = self.read()
    os.remove(os.path.join(self.workdir, 'tuned', '3.json'))  # as if it had been killed early
    self.tune()
    for key in ('network_calls', 'seconds', 'evidence', 'report'):
      self.assertEqual(self.read()[key], before[key])

  def test_ratios_of_one_number_of_calls_are_known_to_the_next(self):
    with mock.patch.object(tiers, 'Tuner', side_effect=tiers.Tuner) as made:
      self.tune()
    given = [call.args[-1] for call in made.call_args_list]
    self.assertEqual([list(known) for known in given], [[], [3]])
    self.assertLen(given[1][3], 3)

  def test_a_run_that_repeats_another_leaves_its_result_until_it_has_as_much(self):
    before = self.read()
    with mock.patch.object(tune, '_report', side_effect=KeyboardInterrupt):  # as if killed here
      self.assertRaises(KeyboardInterrupt, self.tune)
    self.assertEqual(self.read(), before)

  def test_the_gradient_runs_on_one_host(self):
    with mock.patch.object(parallel, 'hosts', lambda: 2):
      with self.assertRaisesRegex(UserError, 'tune.tier 3 runs on one host; .* set tune.tier=2'):
        run('tune', self.workdir, tune__calls=(3,), tune__tier=3)

  def test_the_limits(self):
    limits = {one['what']: one['values'] for one in self.read()['report']['limits']}
    self.assertEqual(
      list(limits), ['50 training items', 'the ODE in 100 steps', 'ddpm in 250 steps']
    )
    ddim = self.read()['report']['rows'][0]['values']
    self.assertEqual([len(values) for values in limits.values()], [2, 2, 2])
    for values in limits.values():
      self.assertLess(np.mean(values), np.mean(ddim))  # which has 3 calls
    self.assertEqual(limits, {
      one['what']: one['values'] for one in self.read(2)['report']['limits']
    })  # fmt: skip
    with open(os.path.join(self.workdir, 'tuned.html'), encoding='utf-8') as file:
      self.assertIn('the ODE in 100 steps', file.read())

  def test_the_limits_of_a_second_judge(self):
    one = judging.limit('many steps', [[1.0, 0.5], [3.0, 0.7]])
    self.assertEqual(one, {'what': 'many steps', 'values': [1, 3], 'second': [0.5, 0.7]})
    self.assertEqual(judging.limit('x', [[1.0], [3.0]]), {'what': 'x', 'values': [1, 3]})
    found = self.read()
    found['report'].update(second='gradients', limits=[one])
    for row in found['report']['rows']:
      row['second'] = {key: row.get(key, 0) for key in ('mean', 'interval', 'minus_fixed')}
      row['second'] |= {'interval': [0, 1], 'minus_fixed_interval': [0, 1]}
    cells = re.search('limit: many steps(.*?)</tr>', tune_page._table(found), re.DOTALL)[1]
    self.assertIn('2 ', cells)
    self.assertIn('0.6 ', cells)

  def test_words_and_page(self):
    self.assertIn('3 calls: ', self.said)
    with open(os.path.join(self.workdir, 'tuned.html'), encoding='utf-8') as file:
      page = file.read()
    for text in (
      'Quality against calls',
      '2 calls',
      'closed form',
      'How to read this',
      'tuned, variance',
    ):
      self.assertIn(text, page)

  def test_it_samples_and_compares_by_name(self):
    said = run('sample', self.workdir, sampler__name='tuned', sampler__steps=3, sample__count=40)
    self.assertIn('40 samples, 3 network evaluations each', said)
    path = cases.sample_set(self.workdir, 'tuned')
    with np.load(path) as stored:
      x = stored['arr_0']
    self.assertEqual(x.shape, (40, 2))
    said = run(
      'evaluate', self.workdir, sampler__steps=2, evaluate__samplers=('ddim', 'tuned'),
      evaluate__count=30,
    )  # fmt: skip
    self.assertIn('tuned', said)
    model = gmm_diffusion.load(toy.get_config('runlocal'), self.workdir)
    np.testing.assert_array_equal(model.sample(40, sampler='tuned', steps=3), x)

  def test_it_draws_from_python(self):
    path, schedule = os.path.join(self.workdir, 'tuned', '3.json'), schedules.linear()
    denoiser = exact.gaussian(0.0, 0.25)
    x = samplers.draw(denoiser, schedule, (2,), np.arange(4), sampler='tuned', path=path)
    table = tuned.read(path).table
    kernel = linear.linear(table)
    wanted = cases.sample(kernel, denoiser, linear.grid_of(table), (2,), np.arange(4)).x
    np.testing.assert_allclose(x, wanted, atol=1e-5)

  def test_other_weights_are_said(self):
    other = self.create_tempdir().full_path
    content = {**self.read(), 'weights': 'others'}
    path = os.path.join(other, 'x.json')
    files.write_json(path, content)
    said = run('sample', other, sampler__name='tuned', sampler__path=path, sample__count=5)
    self.assertIn('transferred', said)

  @parameterized.parameters(
    ({'weights': [[1]]}, 'no table of finite numbers'),
    ({'std': None}, 'no table of finite numbers'),
    ({'t': [900.0, 400.0, 50.0]}, 'another noise schedule'),
  )
  def test_bad_files(self, change, message):
    path = os.path.join(self.create_tempdir().full_path, 'x.json')
    content = self.read()
    content['table'].update(change)
    files.write_json(path, content)
    with self.assertRaisesRegex(UserError, message):
      run('sample', self.workdir, sampler__name='tuned', sampler__path=path)

  def test_a_file_of_another_shape(self):
    path = os.path.join(self.create_tempdir().full_path, 'x.json')
    files.write_json(path, {**self.read(), 'shape': [3]})
    with self.assertRaisesRegex(UserError, r'samples of shape \[3\], these are \[2\]'):
      run('sample', self.workdir, sampler__name='tuned', sampler__path=path)

  @parameterized.parameters(
    (dict(tune__calls=(1,)), r'tune.calls must be in \[2, 1000\], got 1'),
    (dict(tune__minutes=1e-7), 'was over before one of'),
    (dict(tune__tier=0, tune__steps=7), 'belongs to tier 3, and tune.tier is 0'),
    (dict(sampler__eta=0.5), 'tuning tries all samplers'),
    (dict(data__limit=100), 'needs at least 256 training items'),
  )
  def test_bad_settings(self, changes, message):
    with few(), self.assertRaisesRegex(UserError, message):
      run('tune', self.create_tempdir().full_path, **changes)

  def test_no_file(self):
    with self.assertRaisesRegex(UserError, 'there is no tuned sampler .*tuned/7.json'):
      run('sample', self.workdir, sampler__name='tuned', sampler__steps=7)


class JudgesTest(parameterized.TestCase):
  @parameterized.parameters(
    ({}, ['classifier', 'gradients']),
    ({'evaluate.features': 'gradients'}, ['gradients']),
    ({'evaluate.metrics': ('kernel',)}, ['classifier', 'gradients']),
  )
  def test_one_of_another_kind(self, changes, names):
    config = digits.get_config('runlocal')
    config.update_from_flattened_dict(changes)
    spec = specs.from_config(config)
    data = sources.load(spec.data)
    with mock.patch.dict(features.SETTINGS, steps=2):
      judges = tune._judges(spec, data, data.test, self.create_tempdir().full_path)
    self.assertEqual([one.features.name.split('-')[0] for one in judges], names)
    wanted = [*spec.evaluate.metrics, 'frechet', 'frechet'][: len(names)]
    self.assertEqual([one.metric for one in judges], wanted)
    floor = [tune._value(data.train[:400], one, spec, lambda x: x) for one in judges]
    noise = np.random.RandomState(0).randint(0, 256, (400, *data.shape)).astype(np.uint8)
    far = [tune._value(noise, one, spec, lambda x: x) for one in judges]
    np.testing.assert_array_less(floor, far)


class JudgingTest(parameterized.TestCase):
  @parameterized.parameters((True, 'b', 'a'), (False, 'c', 'a'))
  def test_each_judge_ranks_the_finalists_by_noise_of_its_own(self, lower, first, second):
    """By the first judge b has the least and c the most, by the second a has the least; on the
    seeds of the report it is the other way round."""
    times = [[999.0, 500.0], [999.0, 400.0], [999.0, 300.0], [999.0, 200.0]]
    tables = [race.embedded('ddim', {}, schedules.linear(), np.array(t), '').table for t in times]
    a, b, c, ddim = (race.Candidate('', (), name, table) for name, table in zip('abcd', tables))
    ranks = {'a': (2.0, 1.0), 'b': (1.0, 2.0), 'c': (3.0, 3.0), 'd': (0.0, 0.0)}
    names = {tiers.hash_of(one.table): f'{one}' for one in (a, b, c, ddim)}
    seeds = 2

    def draw(table, stream, ids, bands):
      sign = 1 if stream == tiers.stream(0, seeds) else -1
      return np.array([sign * value for value in ranks[names[tiers.hash_of(table)]]])

    tuner = mock.Mock(finalists=[a, b, c], mark='', settings=tiers.Settings(2))
    tuner.subject.draw, tuner.keep = draw, lambda name, mark, make: make()
    found = judging.judged((ddim, a), tuner, list, {'x': lower, 'y': True}, seeds, 3, '')
    self.assertEqual([one.what for one in found], ['d', 'a', first])  # in order, each once
    self.assertEqual([one.first_by for one in found], [(), ('y',), ('x',)])
    self.assertEqual(found[2].values, [-ranks[first][0]] * seeds)
    self.assertEqual(found[1].second, [-1.0] * seeds)

  def test_where_higher_is_better(self):
    row = lambda what, mean, **more: {
      'what': what, 'mean': mean, 'interval': [mean, mean], 'fixed': False, 'best': False, **more
    }  # fmt: skip
    for away, word in ((1.0, 'better'), (-1.0, 'worse')):
      other = row('c', 3.0, first_by=['x'], best_minus=[[away, away, away]])
      rows = [row('b', 4.0, fixed=True, best=True), other]
      report = {'metric': 'score', 'features': 'x', 'rows': rows}
      said = tune_page.verdict({'calls': 2, 'report': report})
      self.assertIn(f'the result is {word} than', said)


class PageTest(parameterized.TestCase):
  @parameterized.parameters(
    ([3.0, 3.01], 'has it for worse: 3.0'),
    ([1.0, 1.01], 'agrees that it is better: 1.0'),
    ([2.1, 1.9], 'sees no difference: 2'),
    (None, ''),
  )
  def test_a_second_judge(self, second, words):
    tables = [race.embedded('ddim', {}, schedules.linear(), np.array(t), '').table
              for t in ([999.0, 500.0], [999.0, 400.0])]  # fmt: skip
    best, fixed = (race.Candidate('', (), name, table) for name, table in zip('ab', tables))
    judged = [
      tune_page.Judged(str(one), tiers.hash_of(one.table), values, more)
      for one, values, more in (
        (fixed, [4.0, 4.1], second and [2.0, 2.0]), (best, [1.0, 1.2], second)
      )
    ]  # fmt: skip
    found = tiers.Found(best, fixed, [], [best])
    report = tune_page.report(
      judged, found, {'metric': 'frechet', 'features': 'pixels', 'second': 'gradients'}
    )
    said = tune_page.verdict({'calls': 2, 'report': report})
    self.assertIn('better than the winner of the race', said)
    self.assertEqual('A second judge' in said, bool(second))
    self.assertIn(words, said)

  @parameterized.parameters(
    ([0.5, 0.71], 'a', ' ± 1.3 by pixels and worse than 1.0000 ± 0.0000 by gradients.'),
    ([0.9, 1.3], 'a', 'is not shown to differ from 1.1 ± 2.5 by pixels and worse than 1'),
    ([9.0, 9.21], 'a', 'is better than 9.1 ± 1.3 by pixels and worse than 1'),
    ([5.0, 5.11], 'b', 'is better than 5.05 ± 0.70 by pixels and worse than 1'),
    ([1.0, 1.11], 'c', None),  # an untuned finalist that passed the selection
  )
  def test_the_untuned_sampler_that_a_judge_ranks_first(self, values, best, words):
    """The winner of the race is not always the strongest untuned sampler."""
    times = [[999.0, 500.0], [999.0, 400.0], [999.0, 300.0]]
    tables = [race.embedded('ddim', {}, schedules.linear(), np.array(t), '').table for t in times]
    some = {name: race.Candidate('', (), name, table)
            for name, table in zip('abc', tables, strict=True)}  # fmt: skip
    judged = [
      tune_page.Judged(name, tiers.hash_of(some[name].table), first, second, by)
      for name, first, second, by in (
        ('b', [4.0, 4.1], [2.0, 2.0], ('gradients',)), ('a', [1.0, 1.2], [3.0, 3.0], ()),
        ('c', values, [1.0, 1.0], ('pixels',)),
      )
    ]  # fmt: skip
    found = tiers.Found(some[best], some['b'], [], [])
    about = {'metric': 'frechet', 'features': 'pixels', 'second': 'gradients'}
    report = tune_page.report(judged, found, about)
    said = tune_page.verdict({'calls': 2, 'report': report})
    first = 'Of the finalists of the race, c is the first by pixels: the result is '
    self.assertEqual(first in said, words is not None)  # a result is not compared with itself
    self.assertIn(words or 'the result, c, has a', said)
    self.assertNotIn('first by gradients', said)  # the winner of the race, named already
    page = tune_page._table({'report': report, 'evidence': []})
    self.assertIn('untuned, first by pixels', re.sub('<br>', ' ', page))

  def test_holm(self):
    found = tune_page.holm([0.01, 0.04, 0.03])
    np.testing.assert_allclose(found, [0.03, 0.06, 0.06])

  def test_mean_has_the_interval_of_student(self):
    found = estimates.of_mean([1.0, 2.0, 3.0, 4.0])
    self.assertAlmostEqual(found.half, 3.182446 * np.std([1, 2, 3, 4], ddof=1) / 2, places=5)

  def test_numbers_survive_the_file(self):
    table = race.embedded(
      'unipc', {}, schedules.linear(), np.array([999.0, 500.0, 20.0]), 'times'
    ).table
    path = os.path.join(self.create_tempdir().full_path, 'x.json')
    files.write_json(path, json.loads(json.dumps(tuned.content(table, (4,), 'w'))))
    found = tuned.read(path).table
    for old, new in zip((*table.time, *table[1:]), (*found.time, *found[1:]), strict=True):
      np.testing.assert_array_equal(old, new)


if __name__ == '__main__':
  absltest.main()
