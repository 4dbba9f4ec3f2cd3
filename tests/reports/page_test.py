"""Pages: what was found comes first, everything that is not markup is escaped, plots need no
display."""

import io
import os
import re
import subprocess
import sys

import numpy as np
from absl.testing import absltest
from PIL import Image

from gmm_diffusion.reports import images, page, plots


class PageTest(absltest.TestCase):
  def test_parts_in_order_and_escaped(self):
    path = os.path.join(self.create_tempdir().full_path, 'report.html')
    table = page.table(['name', 'a < b'], [['<x>', 1], ['y', page.Html('<b>2</b>')]], ['', 'best'])
    sections = [('First & last', [table, 'text <i>'])]
    page.document(path, '<T>', ['in <words>'], sections, 'run --a=<b>', {'k': '<v>'}, {'key': '<'})
    with open(path, encoding='utf-8') as file:
      text = file.read()
    order = (
      '<h1>&lt;T&gt;</h1>',
      '<p>in &lt;words&gt;</p>',
      '<h2>First &amp; last</h2>',
      '<th>a &lt; b</th>',
      '<tr><td>&lt;x&gt;</td><td>1</td></tr>',
      '<tr class=best><td>y</td><td><b>2</b></td></tr>',
      '<p>text &lt;i&gt;</p>',
      'run --a=&lt;b&gt;',
      '<li>k: &lt;v&gt;</li>',
      '&quot;key&quot;: &quot;&lt;&quot;',
    )
    places = [text.find(piece) for piece in order]
    self.assertNotIn(-1, places)
    self.assertEqual(places, sorted(places))
    for tag in ('div', 'table', 'tr', 'td', 'ul', 'li', 'p', 'pre', 'details', 'body', 'html'):
      opened = len(re.findall(rf'<{tag}[ >]', text))
      self.assertEqual(opened, text.count(f'</{tag}>'), tag)

  def test_a_row_without_a_kind_is_refused(self):
    with self.assertRaises(ValueError):
      page.table(['a'], [[1], [2]], [''])


class PlotsTest(absltest.TestCase):
  def test_curve_and_points(self):
    path = os.path.join(self.create_tempdir().full_path, 'curve.png')
    first = {'step': 0, 'loss': 2.0}  # from before errors were shown
    curve = [{'step': n, 'loss': 1.0, 'errors': {'0.1': 0.9, '10': 0.1}} for n in range(1, 4)]
    for rows, size in (([first], (600, 300)), ([first, *curve], (1000, 340))):
      plots.training_curve(path, rows)
      with Image.open(path) as image:
        self.assertEqual(image.size, size)
    self.assertEqual(os.listdir(os.path.dirname(path)), ['curve.png'])
    shown = images.scatter(np.zeros((5, 2)), np.ones((5, 2)))
    self.assertEqual(shown.size, (400, 400))
    self.assertGreater(len(np.unique(np.asarray(shown))), 2)

  def test_the_backend_of_a_notebook_stays(self):
    code = (
      'import sys, gmm_diffusion.reports.images, gmm_diffusion.reports.plots as p;'
      'p.png(p.new()[0]); assert "matplotlib.pyplot" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True)

  def test_png_is_written_and_returned(self):
    path = os.path.join(self.create_tempdir().full_path, 'a.png')
    figure, axes = plots.new(1, 2, (2, 1))
    axes[0, 1].plot([1, 2])
    content = plots.png(figure, path)
    self.assertEqual(Image.open(io.BytesIO(content)).size, (200, 100))
    self.assertTrue(os.path.exists(path))


if __name__ == '__main__':
  absltest.main()
