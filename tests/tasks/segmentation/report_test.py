"""The page of segmentation: it fits, and its words follow the numbers."""

import os
import re

import numpy as np
from absl.testing import absltest

from configs import segmentation as config_lib
from gmm_diffusion import specs
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.tasks.segmentation import benchmark, metrics, report, scenes


class ReportTest(absltest.TestCase):
  def page(self, clicks, gain):
    """Text of the page of random curves; key adaptation is `gain` above no adaptation."""
    config, random = config_lib.get_config('runlocal'), np.random.RandomState(0)
    config.segmentation.update(clicks=clicks, slots=clicks)
    spec, workdir = specs.from_config(config), self.create_tempdir().full_path
    known = scenes.load(spec.data, ('test',))
    objects = benchmark.Objects(spec, known.test)
    plain = random.uniform(0.3, 0.6, (4, clicks))
    curves = {
      'none': plain,
      'keys': plain + gain + random.uniform(0, 0.01, plain.shape),
      'values': plain + random.uniform(-0.01, 0.01, plain.shape),
      'both': plain,
      benchmark.BASELINE: plain - 0.2,
    }
    found = {
      name: benchmark.Course(rows, [mask == 1 for mask in objects.masks], [[]] * 4)
      for name, rows in curves.items()
    }
    report.write(
      Run(spec, known, workdir, 'test'), objects, found, metrics.table(curves, objects.images), {}
    )
    with open(os.path.join(workdir, 'report.html'), encoding='utf-8') as file:
      return file.read()

  def test_words_first(self):
    page = self.page(3, 0.1)
    lead = page[page.index('class=lead') : page.index('<table')]
    self.assertIn('4 objects of 4 images (test set), each clicked 3 times', lead)
    self.assertRegex(lead, r'After one click, .* higher are key adaptation \(10\.\d')
    self.assertRegex(lead, r'lower are clicks as channels \(−20\.0')
    self.assertRegex(lead, r'no different, .* are value propagation \(')
    self.assertIn('After 3 clicks', lead)
    self.assertRegex(self.page(3, -0.1), r'After one click, .* lower are key adaptation \(−9\.\d')

  def test_the_number_of_clicks_is_that_of_the_run(self):
    page = self.page(3, 0.1)
    self.assertIn('within the 3 clicks counts as 3', page)
    self.assertNotIn('20 where never', page)

  def test_tables_fit(self):
    tables = re.findall(r'<table>(.*?)</table>', self.page(20, 0.1))
    self.assertLen(tables, 2)
    for table in tables:
      rows = [
        re.findall(r'<t[dh]>(.*?)</t[dh]>', row) for row in re.findall(r'<tr.*?>(.*?)</tr>', table)
      ]
      self.assertLen(rows[0], 11)
      # names of columns may break at a space, cells do not
      widest = [
        max(map(len, [*head.split(' '), *cells])) for head, *cells in zip(*rows, strict=True)
      ]
      # 14 pixels high, 7.2 wide, 22 between columns; a page has 1120
      self.assertLess(7.2 * sum(widest) + 22 * len(widest), 1120)


if __name__ == '__main__':
  absltest.main()
