"""What the pages show exists and runs: links, commands, Python, keys, files and numbers of
lines."""

import argparse
import ast
import contextlib
import glob
import importlib
import io
import os
import re
import runpy
import shlex
import sys
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from gmm_diffusion import api, samplers, specs, tasks
from gmm_diffusion.checkpoints import importers
from gmm_diffusion.engine import build
from gmm_diffusion.tasks import effects
from helpers import cases

PACKAGE = os.path.join(cases.ROOT, 'gmm_diffusion')
RESULTS = os.path.join(cases.ROOT, 'experiments', 'results')
PAGES = sorted(
  os.path.relpath(path, cases.ROOT)
  for pattern in ('*.md', 'docs/*.md', 'experiments/results/README.md')
  for path in glob.glob(os.path.join(cases.ROOT, pattern))
)
SECTIONS = tuple(
  field.name
  for field in specs.dataclasses.fields(specs.Spec)
  if specs.dataclasses.is_dataclass(field.type)
)


def read(page):
  with open(os.path.join(cases.ROOT, page), encoding='utf-8') as file:
    return file.read()


def blocks(page, language):
  return re.findall(rf'^```{language}\n(.*?)^```', read(page), re.DOTALL | re.MULTILINE)


def commands(page):
  """Command lines of ours, in blocks and in the text, as lists of words."""
  lines = '\n'.join(blocks(page, 'bash')).replace('\\\n', ' ').replace('&&\n', '&& ').split('\n')
  prose = re.sub(r'^```.*?^```', '', read(page), flags=re.DOTALL | re.MULTILINE)
  lines += re.findall(r'`(python -m [^`]*)`', prose)
  for line in lines:
    for part in re.split(r'&&|;', line):
      words = shlex.split(part, comments=True)
      if '-m' in words and words[0].endswith('python'):
        yield words[words.index('-m') + 1 :]


def anchors(page):
  """The names of the headings of a page, as GitHub and mkdocs make them."""
  text = re.sub(r'^```.*?^```', '', read(page), flags=re.DOTALL | re.MULTILINE)
  for title in re.findall(r'^#+ (.*)$', text, re.MULTILINE):
    yield re.sub(r'[\s]+', '-', re.sub(r'[^\w\s-]', '', title.lower()).strip())


class Parsed(Exception):
  """The arguments of an experiment are good."""


def check_experiment(words):
  """Parses the words by the experiment's own parser, and goes no further."""
  original = argparse.ArgumentParser.parse_args

  def parse(self, args=None, namespace=None):
    original(self, words[1:], namespace)
    raise Parsed

  with mock.patch.object(argparse.ArgumentParser, 'parse_args', parse):
    with contextlib.suppress(Parsed), contextlib.redirect_stderr(io.StringIO()) as errors:
      try:
        runpy.run_module(words[0], run_name='__main__')
      except SystemExit as end:
        raise AssertionError(f'{" ".join(words)}: {errors.getvalue()}') from end


def check_main(words):
  """Config, variant, mode, keys and values of a command line."""
  given = dict(word.removeprefix('--').split('=', 1) for word in words[1:])
  path, _, variant = given.pop('config').partition(':')
  name = path.removeprefix('configs/').removesuffix('.py')
  config = importlib.import_module('configs.' + name).get_config(variant)
  values = {key: value for key, value in given.items() if key.startswith('config.')}
  for key, value in values.items():
    key = key.removeprefix('config.')
    specs.check_key(key)
    section, _, field = key.rpartition('.')
    target = config
    for part in filter(None, section.split('.')):
      target = target[part]
    target[field] = value if isinstance(target[field], str) else _literal(value)
  spec = specs.from_config(config)
  if given['mode'] not in tasks.TASKS[spec.task]:
    raise AssertionError(f'{spec.task} has no mode {given["mode"]}')
  effects.check(spec, given['mode'], [key.removeprefix('config.') for key in values])
  if set(given) != {'mode', 'workdir', *values}:
    raise AssertionError(f'unknown flags in {words}')


def _literal(text):
  """A number, a tuple, or the text itself, as an option without a default may have any type."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


class NavigationTest(absltest.TestCase):
  def test_each_page_is_in_the_menu_and_the_other_way_round(self):
    with open(os.path.join(cases.ROOT, 'mkdocs.yml'), encoding='utf-8') as file:
      menu = re.findall(r': (\S+\.md)$', file.read(), re.MULTILINE)
    parts = glob.glob(os.path.join(cases.ROOT, 'gmm_diffusion', '*', '__init__.py'))
    made = {f'api/{os.path.basename(os.path.dirname(part))}.md' for part in parts}
    made |= {'api/index.md', 'settings.md'}  # by docs/hooks.py
    pages = {os.path.basename(path) for path in PAGES if path.startswith('docs')}
    self.assertEmpty((pages | made) - set(menu))
    places = ('docs', '', 'experiments')
    for page in set(menu) - made:
      found = [os.path.exists(os.path.join(cases.ROOT, place, page)) for place in places]
      self.assertTrue(any(found), page)


class PagesTest(parameterized.TestCase):
  @parameterized.parameters(*PAGES)
  def test_links(self, page):
    text = re.sub(r'^```.*?^```', '', read(page), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
      if link.startswith(('https://', 'http://')):
        continue
      path, _, anchor = link.partition('#')
      target = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
      self.assertTrue(os.path.exists(os.path.join(cases.ROOT, target)), f'{page}: {link}')
      if anchor:
        self.assertIn(anchor, list(anchors(target)), f'{page}: {link}')

  @parameterized.parameters(*PAGES)
  def test_commands(self, page):
    for words in commands(page):
      if words[0] == 'gmm_diffusion.main' and words[1:]:
        with self.subTest(' '.join(words)):
          check_main(words)
      elif words[0].startswith('experiments'):
        with self.subTest(' '.join(words)):
          check_experiment(words)

  @parameterized.parameters(*PAGES)
  def test_keys_and_files(self, page):
    text = read(page)
    for key in re.findall(
      rf'`(?:--config\.)?((?:{"|".join(SECTIONS)})(?:\.(?!py\b)\w+)+)(?:=[^`]*)?`', text
    ):
      specs.check_key(key)
    for path in re.findall(
      r'`((?:gmm_diffusion|configs|experiments|tests|docs)/[\w/]*\.?\w*)`', text
    ):
      self.assertTrue(os.path.exists(os.path.join(cases.ROOT, path)), f'{page}: {path}')
    for path in re.findall(r'`(\w+/[\w/]+\.py)(?::\w+)?`', text):
      found = [os.path.exists(os.path.join(root, path)) for root in (cases.ROOT, PACKAGE)]
      self.assertTrue(any(found), f'{page}: {path}')
    for name, variant in re.findall(r'`(\w+)\.py:([\w,.]+)`', text):
      importlib.import_module('configs.' + name).get_config(variant)

  @parameterized.parameters(*(page for page in PAGES if blocks(page, 'python')))
  def test_python(self, page):
    layer = lambda x, *_: 0.1 * x
    scope = {'my_model': layer, 'model': layer}
    with contextlib.ExitStack() as stack:
      stack.enter_context(folders_of_a_reader())
      if page.endswith(('attention.md', 'segmentation.md')):
        stack.enter_context(trained_segmentation())
      if page.endswith('restoration.md'):  # the right arguments; its own tests restore
        scope['images'] = np.zeros((2, 8, 8, 1), np.uint8)
        stack.enter_context(mock.patch.object(api, 'restore', mock.create_autospec(api.restore)))
      random = lambda path, format, net, shape: build.random_weights(
        importers.abstract(net, shape), 0
      )
      stack.enter_context(mock.patch.object(importers, 'load_weights', random))
      for block in blocks(page, 'python'):
        exec(block, scope)  # pylint: disable=exec-used
    if page.endswith('your_own_model.md'):
      self.assertEqual(scope['images'].shape, (16, 32, 32, 3))
      self.assertTrue(np.all(np.isfinite(scope['images'])))

  def test_readme_is_a_front_page(self):
    self.assertLessEqual(len(read('README.md').splitlines()), 150)

  def test_equations_name_things_that_exist(self):
    rows = re.findall(
      r'\| `([\w/]+\.py):(\w+)` \| `(tests/[\w/]+\.py)` \|', read('docs/equations.md')
    )
    self.assertGreater(len(rows), 40)
    for path, function, test in rows:
      self.assertRegex(
        read(os.path.join('gmm_diffusion', path)),
        rf'(def|class) {function}\b|^\s*{function} = ',
        f'{path}:{function}',
      )
      self.assertTrue(os.path.exists(os.path.join(cases.ROOT, test)), test)

  def test_every_sampler_and_option_is_explained(self):
    text = read('docs/sampling.md') + read('docs/tuning.md')
    for name in samplers.SAMPLERS:
      self.assertIn(f'`{name}`', text)
    for field in specs.dataclasses.fields(specs.Sampler):
      self.assertRegex(text, rf'\b{field.name}\b')

  def test_every_result_is_listed(self):
    text = read('experiments/results/README.md')
    for name in sorted(set(os.listdir(RESULTS)) - {'README.md'}):
      self.assertIn(f'`{name}`', text)

  def test_messages_are_those_of_the_package(self):
    source = read('configs/common.py')
    for path in glob.glob(os.path.join(PACKAGE, '**', '*.py'), recursive=True):
      # a message may be broken over lines, and may have values in it
      source += re.sub(r"['\"]\s*\n\s*f?['\"]", '', read(path))
    found = re.findall(r'^### `([^`]*)`$', read('docs/troubleshooting.md'), re.MULTILINE)
    self.assertGreater(len(found), 25)
    for message in found:
      for words in re.split(r"'[^']*'|\bnan\b", message):
        self.assertTrue(words.strip() in source, f'no message has {message!r}')

  def test_messages_stand_once(self):
    titles = list(anchors('docs/troubleshooting.md'))
    self.assertLen(set(titles), len(titles))


@contextlib.contextmanager
def folders_of_a_reader():
  """Two folders of images, where distances are those of pixels; a run of an exact denoiser."""
  load, fid = api.load, api.fid
  config = importlib.import_module('configs.digits').get_config('runlocal')
  config.denoiser.name = 'empirical'
  before = os.getcwd()
  with tempfile.TemporaryDirectory() as folder:
    random = np.random.RandomState(0)
    for name in ('my_samples', 'cifar10_train'):
      os.makedirs(os.path.join(folder, name))
      for i in range(20):
        pixels = random.randint(256, size=(4, 4)).astype(np.uint8)
        Image.fromarray(pixels).save(os.path.join(folder, name, f'{i}.png'))
    os.chdir(folder)
    try:
      with (
        mock.patch.object(api, 'load', lambda workdir: load(config)),
        mock.patch.object(api, 'fid', lambda a, b: fid(a, b, features='identity', cache=folder)),
      ):
        yield
    finally:
      os.chdir(before)


@contextlib.contextmanager
def trained_segmentation():
  """Photos in this folder, with clicks, and a network in place of the one that a workdir would
  have."""
  from configs import segmentation
  from gmm_diffusion.tasks.segmentation import annotations, networks, training, use
  from gmm_diffusion.tasks.segmentation.model import Clicks

  spec = specs.from_config(segmentation.get_config('runlocal'))
  module = training.network(spec.segmentation)
  clicks = Clicks(jnp.zeros((1, 2, 2), jnp.int32), jnp.zeros((1, 2), jnp.int32))
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 96, 3)), clicks)
  params = build.random_weights(shapes, 0)
  network, folder = networks.Network(module, params), 'runs/bsds/annotations'
  os.mkdir('photos')
  for path in ('photo.png', 'photo.jpg', 'photos/photo.jpg'):
    Image.fromarray(np.full((64, 96, 3), 128, np.uint8)).save(path)
  known = annotations.Annotations('photos', folder, network)
  click = annotations.Stroke(((40, 60),), True)
  known.change(0, known.state(0)['version'], lambda record: annotations.added(record, click))
  with (
    mock.patch.object(training, 'load', lambda spec, workdir: (module, params)),
    mock.patch.object(networks, 'load', lambda workdir: network),
    mock.patch.object(use, 'annotate'),  # which needs an extra
    mock.patch.dict(sys.modules, {'google.colab': mock.Mock()}),
  ):
    yield


if __name__ == '__main__':
  absltest.main()
