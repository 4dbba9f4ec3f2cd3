"""The notebooks at a small size, their first cell as on Colab, and the outputs stored in them."""

import configparser
import json
import os
import re
import subprocess
import sys
from unittest import mock

import numpy as np
import PIL.Image
from absl.testing import absltest, parameterized

import gmm_diffusion
from gmm_diffusion import specs
from gmm_diffusion.metrics import features
from gmm_diffusion.tasks.diffusion import jacobian
from gmm_diffusion.tasks.segmentation import scenes
from helpers import cases, creativity_config

FOLDER = os.path.join(cases.ROOT, 'experiments', 'notebooks')
NAMES = sorted(os.listdir(FOLDER))


def cells(name):
  with open(os.path.join(FOLDER, name), encoding='utf-8') as file:
    return json.load(file)['cells']


def tags(cell):
  return cell['metadata'].get('tags', [])


def code(name, by_tag=(), replace=('', '')):
  """The sources of a notebook's code without the installation and the imports of displays; cells
  with a tag in by_tag become what it says, in others one text is replaced."""
  for cell in cells(name):
    tag, source = ''.join(tags(cell)), ''.join(cell['source'])
    if cell['cell_type'] == 'code' and tag != 'install':
      source = dict(by_tag).get(tag, source.replace(*replace) if replace[0] else source)
      yield re.sub(r'from IPython\..*\n', '', source)


class NotebooksTest(parameterized.TestCase):
  def run_cells(self, name, by_tag=(), replace=('', ''), **scope):
    shown = []
    self.addCleanup(os.chdir, os.getcwd())
    os.chdir(self.create_tempdir().full_path)
    scope.update(display=shown.append, HTML=str, Image=str)
    for source in code(name, by_tag, replace):
      exec(compile(source, name, 'exec'), scope)  # pylint: disable=exec-used
    return shown, scope

  def test_ddim_gmm(self):
    with (
      mock.patch.dict(features.SETTINGS, steps=10),  # of the feature network
      mock.patch.multiple(jacobian, COUNT=4, RATIOS=np.array([0.2, 2.0])),
    ):
      small = 'config.net.update(channels=8, multipliers=(1.0,), head_channels=8)\ntasks.run('
      shown, scope = self.run_cells('ddim_gmm_colab.ipynb', replace=('tasks.run(', small))
    self.assertLen(shown, 3)
    self.assertIn('its control', shown[2])
    self.assertEqual(int(scope['result'].nfe), 10)

  def test_creativity(self):
    shown, _ = self.run_cells(
      'creativity_colab.ipynb',
      tiny=creativity_config.tiny,
      by_tag={'variant': 'COUNT, STEPS = 6, 2', 'config': 'config = tiny()'},
    )
    self.assertLen(shown, 4)
    self.assertIn('Machine against network', shown[3])

  def test_probabilistic_attention_and_everything_it_writes_on_two_devices(self):
    folder = self.create_tempdir().full_path
    start = f'import os, sys\nsys.path.insert(0, {cases.ROOT!r})\nos.chdir({folder!r})\n'
    start += "HTML, Image, display = len, len, lambda x: print('shown:', getattr(x, 'size', x))\n"
    small = 'config = config_lib.get_config("runlocal")\n'
    small += (
      'config.segmentation.baseline = False\ntasks.run('  # as in tasks/segmentation/modes_test.py,
    )
    # also on two devices: what one of the two has compiled the other reads
    source = '\n'.join(code('probabilistic_attention_colab.ipynb', replace=('tasks.run(', small)))
    found, out, error = cases.python('-c', start + source, devices=2)
    self.assertEqual(found, 0, error[-2000:])
    self.assertIn('100% of the tokens on the right side', out)
    self.assertRegex(out, r'shown: \d{4,}\n(.*\n)*shown: \(96, 96\)')
    self.assertRegex(out, r'both +IoU@1 [\d.]+ ± [\d.]+ .*NoC@85')
    self.assertIn('the same mask from the file: True True\n', out)
    self.assertIn("page = gmm_diffusion.annotate('runs/photos', 'runs/segmentation')", out)
    workdir = os.path.join(folder, 'runs', 'segmentation')
    with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as file:
      records = {(record['sampler'], record['metric']): record for record in json.load(file)}
    for arm in ('none', 'keys', 'values', 'both'):
      self.assertBetween(records[arm, 'IoU@2']['value'], 0, 1)
    self.assertGreater(records['both', 'milliseconds per click']['value'], 0)
    with open(os.path.join(workdir, 'report.html'), encoding='utf-8') as file:
      self.assertGreaterEqual(file.read().count('<figure>'), 4 * 5)
    self.assertTrue(os.path.exists(os.path.join(workdir, 'curve.png')))
    self.assertTrue(os.path.exists(os.path.join(workdir, 'training.png')))

  def test_the_page_on_colab(self):
    """The images are there when it is served, and the notebook shows the port that it is served
    on."""
    name = 'probabilistic_attention_colab.ipynb'
    (source,) = [''.join(one['source']) for one in cells(name) if 'page' in tags(one)]
    self.addCleanup(os.chdir, os.getcwd())
    os.chdir(self.create_tempdir().full_path)
    spec, colab, seen = specs.from_config({'task': 'segmentation'}), mock.Mock(), []

    def annotate(images, workdir):
      seen.extend([np.asarray(PIL.Image.open(path)) for path in scenes.listing(images).values()])
      return mock.Mock(port=1234)

    scope = {'os': os, 'sys': sys, 'PIL': PIL, 'spec': spec, 'data': scenes}
    scope['gmm_diffusion'] = gmm_diffusion
    with (
      mock.patch.dict(sys.modules, {'google.colab': colab}),
      mock.patch.object(gmm_diffusion, 'annotate', autospec=True, side_effect=annotate) as served,
    ):
      exec(compile(source, name, 'exec'), scope)  # pylint: disable=exec-used
    served.assert_called_once()
    colab.output.serve_kernel_port_as_iframe.assert_called_once_with(1234, height=800)
    wanted = [scene.image for scene in scenes.load(spec.data, ('test',)).test[:3]]
    np.testing.assert_array_equal(seen, wanted)

  @parameterized.parameters(*NAMES)
  def test_first_cell_on_colab(self, name):
    """Clones, and installs what is missing beside a jax that stays as it is."""
    self.addCleanup(os.chdir, os.getcwd())
    os.chdir(self.create_tempdir().full_path)
    commands = []

    def run(command, check):
      commands.append((command, check))
      if command[0] == 'git':
        os.mkdir(command[-1])

    source = ''.join(next(cell for cell in cells(name) if cell['cell_type'] == 'code')['source'])
    with (
      mock.patch.dict(sys.modules, {'google.colab': mock.Mock()}),
      mock.patch.object(subprocess, 'run', run),
      mock.patch.object(sys, 'path', list(sys.path)),
    ):
      exec(compile(source, name, 'exec'), {})  # pylint: disable=exec-used
    (clone, _), (install, check) = commands
    self.assertEqual((clone[:2], check), (['git', 'clone'], True))
    self.assertEqual(install[:4], [sys.executable, '-m', 'pip', 'install'])
    known = configparser.ConfigParser()
    known.read(os.path.join(cases.ROOT, 'setup.cfg'))
    extras = re.fullmatch(r'\.(?:\[([a-z,]+)\])?', install[install.index('-e') + 1]).group(1)
    self.assertContainsSubset((extras or 'dev').split(','), known['options.extras_require'])
    with open(install[install.index('-c') + 1], encoding='utf-8') as file:
      self.assertRegex(file.read(), r'(?m)^jax==[\d.]+$')
    self.assertEqual(os.path.basename(os.getcwd()), 'gmm_diffusion')

  @parameterized.parameters(*NAMES)
  def test_stored_outputs(self, name):
    self.assertLess(os.path.getsize(os.path.join(FOLDER, name)), 2**21)
    outputs, counts = [], []
    for cell in cells(name):
      if cell['cell_type'] == 'code':
        counts.append(cell['execution_count'])
        outputs += cell['outputs']
    self.assertEqual(counts, list(range(1, len(counts) + 1)))  # one run from top to bottom
    self.assertNotIn('error', [output['output_type'] for output in outputs])
    pictures = [output for output in outputs if 'image/png' in output.get('data', {})]
    self.assertGreaterEqual(len(pictures), 2)
    text = json.dumps(outputs)
    self.assertNotRegex(text, r'"(/home|/root|/work|/tmp)/')


if __name__ == '__main__':
  absltest.main()
