"""A comparison of samplers: each kernel once, with its control, and a page that says what is
shown."""

import json
import os
import re

from absl.testing import absltest, parameterized

from configs import digits, toy
from gmm_diffusion import specs, tasks
from gmm_diffusion.data import sources
from gmm_diffusion.tasks.diffusion import evaluate
from helpers import cases


def settings(names, **sampler):
  """Few samples of an exact denoiser, on pixels."""
  config = digits.get_config()
  config.denoiser.name = 'empirical'
  config.data.limit = 100
  config.sampler.update({'steps': 3, 'components': 2, 'scale': 0.3, **sampler})
  config.evaluate.update(features='identity', samplers=names, count=40, metrics=('frechet',))
  return config


class PlannedTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      ('ddim', 'ddim_gmm', 'ddim_noise'),
      [('ddim', ''), ('ddim_gmm', 'ddim_noise'), ('ddim_noise', '')],
    ),
    (('ddim_noise', 'ddim_gmm'), [('ddim_noise', ''), ('ddim_gmm', 'ddim_noise')]),
    (('ddim', 'ddim'), [('ddim', '')]),
    (
      ('ddim_gmm_ortho', 'ddim_gmm_ortho_vub'),
      [
        ('ddim_gmm_ortho', 'ddim_noise_ortho'),
        ('ddim_noise_ortho', ''),
        ('ddim_gmm_ortho_vub', 'ddim_noise_ortho'),
      ],
    ),
  )
  def test_nothing_is_drawn_twice(self, names, expected):
    spec = specs.from_config(settings(names))
    found = evaluate.samplers_with_controls(spec, sources.load(spec.data))
    self.assertEqual([(made.sampler.name, control) for made, control in found], expected)

  def test_controls_of_other_kinds_are_not_shared(self):
    """Where the source's mixture adds no variance its control is DDIM, which is no control of what
    adds some."""
    path = os.path.join(self.create_tempdir().full_path, 'x.npz')
    cases.residuals(path, (8, 8, 1))
    spec = specs.from_config(
      settings(
        ('ddim_gmm', 'posterior_gmm'), infeasible='shrink', posterior=path, directions=2, eta=1.0
      )
    )
    found = evaluate.samplers_with_controls(spec, sources.load(spec.data))
    self.assertEqual(
      [(made.sampler.name, control) for made, control in found],
      [
        ('ddim_gmm', 'ddim_noise'),
        ('ddim_noise', ''),
        ('posterior_gmm', 'posterior_noise'),
        ('posterior_noise', ''),
      ],
    )

  def test_the_default(self):
    spec = specs.Spec()
    found = evaluate.samplers_with_controls(spec, sources.load(spec.data))
    names = [made.sampler.name for made, _ in found]
    self.assertEqual(names, list(dict.fromkeys(names)))


class PageTest(absltest.TestCase):
  def run_page(self, config):
    workdir = self.create_tempdir().full_path
    tasks.run('evaluate', workdir, config, 'command')
    with open(os.path.join(workdir, 'report.html'), encoding='utf-8') as file:
      page = file.read()
    with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as file:
      found = [record for record in json.load(file) if record['kind'] == 'metric']
    return page, {record['sampler']: record for record in found}

  def test_one_row_for_one_kernel_and_differences_from_the_control(self):
    names = ('ddim', 'ddim_gmm_ortho', 'ddim_gmm_ortho_vub')
    page, found = self.run_page(settings(names))
    rows = re.findall(r'<tr[^>]*><td>(.*?)</td>', page.split('</table>')[0])
    self.assertLen(rows, 4)
    self.assertEqual(
      rows[1:],
      ['ddim', 'ddim_gmm_ortho<br>= ddim_gmm_ortho_vub', 'ddim_noise_ortho (control)'],
    )
    self.assertIn('drew the same samples', page)
    mixture, control = found['ddim_gmm_ortho'], found['ddim_noise_ortho']
    self.assertAlmostEqual(
      mixture['minus_control']['value'], mixture['value'] - control['value'], places=9
    )
    half = lambda interval: (interval[1] - interval[0]) / 2
    self.assertLess(half(mixture['minus_control']['interval']), half(mixture['interval']))
    self.assertNotIn('minus_control', control)
    self.assertEqual(found['ddim_gmm_ortho_vub']['value'], mixture['value'])
    for record in found.values():  # the page says which sets of samples it shows
      self.assertIn(record['set'], page)

  def test_the_toy_shows_a_mixture_that_keeps_its_moments(self):
    config = toy.get_config('runlocal')
    page, _ = self.run_page(config)
    lead = re.search('<div class=lead>.*?</div>', page).group()
    self.assertIn('ddim_gmm keeps the mean and the variance of every step.', lead)
    self.assertNotIn('clipped:', page)
    self.assertIn('<td>ddim<br>= ddim_noise</td>', page)


if __name__ == '__main__':
  absltest.main()
