"""The shape of the package: imports point down, files stay small, every config builds and is
read."""

import ast
import configparser
import dataclasses
import fnmatch
import functools
import glob
import importlib
import inspect
import os
import re

from absl.testing import absltest, parameterized

from gmm_diffusion import denoisers, options, samplers, specs
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import schedules
from gmm_diffusion.nets import NETS
from gmm_diffusion.nets.autoencoder import Autoencoder
from gmm_diffusion.nets.unet import Classifier
from helpers import cases, reads

PACKAGE = os.path.join(cases.ROOT, 'gmm_diffusion')
# Every part may import those before it, and none behind it.
ORDER = (
  'errors', 'types', 'options', 'task_specs', 'specs', 'files', 'parallel', 'maths', 'denoisers',
  'samplers', 'discrete', 'tune', 'nets', 'data', 'checkpoints', 'metrics', 'reports', 'engine',
  'tasks', 'command_line', 'api', 'main',
)  # fmt: skip
SPECS = 'gmm_diffusion.specs'
ALL_SPECS = {SPECS, 'gmm_diffusion.task_specs'}
# Functions that may be longer than 60 lines, and why.
LONG = {
  'gmm_diffusion/denoisers/score_machines.py:boundary_broken': (
    'one machine: inside, corners and sides'
  ),
  'gmm_diffusion/metrics/__init__.py:_table': 'a table, one entry after another',
}
FILES, EXPERIMENTS = (
  sorted(glob.glob(os.path.join(cases.ROOT, folder, '**', '*.py'), recursive=True))
  for folder in ('gmm_diffusion', 'experiments')
)
MODULES = {
  os.path.relpath(path, cases.ROOT)[:-3].replace(os.sep, '.').removesuffix('.__init__'): path
  for path in FILES
}


def imports(path):
  """Modules that a file imports, with all their dots; a name in a module counts as the module."""
  with open(path, encoding='utf-8') as file:
    tree = ast.parse(file.read())
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom):
      for alias in node.names:
        whole = f'{node.module}.{alias.name}'
        yield whole if whole in MODULES else node.module
    elif isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)


def part(path):
  return os.path.relpath(path, PACKAGE).split(os.sep)[0].removesuffix('.py')


def settings_of(cls):
  """{(class, field)} of all settings in a dataclass and in those that it holds."""
  out = set()
  for field in dataclasses.fields(cls):
    kind = options.kind_of(cls, field.name)
    if dataclasses.is_dataclass(kind):
      out |= settings_of(kind)
    else:
      out.add((f'{cls.__module__}.{cls.__name__}', field.name))
  return out


@functools.cache
def used():
  """{(class, field)} of what the package reads, or hands on by name to what takes it."""
  known = reads.Package({name: MODULES[name] for name in ALL_SPECS})
  others = {name: path for name, path in MODULES.items() if name not in ALL_SPECS}
  package = reads.Package(others, known)
  arguments = lambda table: set().union(*(inspect.signature(one).parameters for one in table))
  handed_on = {
    'Sampler': set().union(*map(samplers.options_of, samplers.SAMPLERS)),
    'Schedule': arguments(schedules.SCHEDULES.values()),
    'Net': arguments(NETS.values()),
    'Autoencoder': arguments([Autoencoder]),
    'Classifier': arguments([Classifier]),
    'Denoiser': set().union(*(one.options for one in denoisers.EXACT.values())),
  }
  return package.reads() | {
    (f'{SPECS}.{section}', name) for section, names in handed_on.items() for name in names
  }


def unread(keys):
  return keys - used()


class StructureTest(parameterized.TestCase):
  @parameterized.parameters(*[path for path in FILES if part(path) in ORDER])
  def test_imports_point_down(self, path):
    for name in imports(path):
      words = name.split('.')
      if words[0] == 'gmm_diffusion' and len(words) > 1 and words[1] != part(path):
        self.assertIn(words[1], ORDER[: ORDER.index(part(path))], f'{path} imports {name}')
      self.assertNotIn(words[0], ('torch', 'tensorflow', 'experiments', 'tests', 'configs'))
      self.assertNotIn(words[0], ('fcntl', 'pwd', 'grp', 'resource'))  # which Windows has not
      if words[0] == 'ml_collections':
        self.assertEqual(part(path), 'main')
      if part(path) == 'maths':
        self.assertIn(
          words[0],
          ('jax', 'numpy', 'gmm_diffusion', 'typing', 'collections', 'dataclasses', 'functools'),
        )

  @parameterized.parameters(*[path for path in FILES if part(path) == 'tasks'])
  def test_tasks_do_not_import_each_other(self, path):
    task = os.path.relpath(path, PACKAGE).split(os.sep)[1]
    for name in imports(path):
      words = name.split('.')
      if words[:2] == ['gmm_diffusion', 'tasks'] and task != '__init__.py':
        self.assertIn(words[2], (task, 'effects'), f'{path} imports {name}')

  def test_every_part_has_its_place(self):
    self.assertEqual({part(path) for path in FILES} - {'__init__'}, set(ORDER))

  def test_no_circles(self):
    edges = {
      module: {name for name in imports(path) if name in MODULES and name != module}
      for module, path in MODULES.items()
    }
    while True:  # take away what imports nothing that is left
      done = {module for module, needs in edges.items() if not needs & set(edges)}
      if not done:
        break
      edges = {module: needs for module, needs in edges.items() if module not in done}
    self.assertEmpty(sorted(edges))

  @parameterized.parameters(*FILES)
  def test_files_are_small(self, path):
    with open(path, encoding='utf-8') as file:
      lines = file.read().splitlines()
    self.assertLessEqual(len(lines), 80 if path.endswith('main.py') else 500)
    if os.path.basename(path) not in ('files.py', 'fetch.py'):  # what says so in one line
      self.assertNotIn('os.makedirs', '\n'.join(lines))
    if 'parallel.py' not in path:
      self.assertNotRegex(
        '\n'.join(lines), r'jax\.(pmap|device_count|process_index)|jax\.distributed'
      )

  def test_functions_are_short(self):
    found = set()
    for path in FILES + EXPERIMENTS:
      with open(path, encoding='utf-8') as file:
        tree = ast.parse(file.read())
      for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
          body = node.body[1:] if ast.get_docstring(node) else node.body
          if body and body[-1].end_lineno - body[0].lineno + 1 > 60:
            found.add(f'{os.path.relpath(path, cases.ROOT)}:{node.name}')
    self.assertEqual(found, set(LONG))

  def test_every_config_key_is_read(self):
    self.assertEmpty(unread(settings_of(specs.Spec)))

  @parameterized.parameters(
    ('Train', 'label'), ('Sample', 'steps'), ('Evaluate', 'guidance'), ('Data', 'ema'),
    ('Net', 'components'), ('Sampler', 'patch'), ('Schedule', 'order'), ('Denoiser', 'eta'),
    ('Autoencoder', 'eps_free'), ('Creativity', 'clicks'), ('Segmentation', 'pairs'),
    ('Spec', 'steps'), ('Weights', 'scale'),
  )  # fmt: skip
  def test_a_key_that_nothing_reads_is_found(self, section, key):
    fake = (f'gmm_diffusion.specs.{section}', key)
    self.assertEqual(unread(settings_of(specs.Spec) | {fake}), {fake})

  @parameterized.parameters(
    *[
      os.path.basename(path)[:-3]
      for path in glob.glob(os.path.join(cases.ROOT, 'configs', '*.py'))
      if os.path.basename(path) not in ('__init__.py', 'common.py')
    ]
  )
  def test_configs(self, name):
    module = importlib.import_module('configs.' + name)
    with self.assertRaisesRegex(
      ValueError, "unknown config argument 'other'; valid: .*runlocal"
    ) as caught:
      module.get_config('other')
    variants = str(caught.exception).split('valid: ')[1].split(', ')
    for arg in ('', 'runlocal', *variants, *(f'runlocal,{variant}' for variant in variants)):
      spec = specs.from_config(module.get_config(arg))
      if spec.data.name == 'none':
        data = sources.load(spec.data)
        build.denoiser(spec, data)  # checks everything but the weights
        build.sample_shape(spec, data)

  def test_an_installation_has_everything(self):
    setup = configparser.ConfigParser()
    setup.read(os.path.join(cases.ROOT, 'setup.cfg'))
    patterns = setup['options.packages.find']['include'].split()
    for module in [*MODULES, 'configs.digits']:
      is_package = MODULES.get(module, '').endswith('__init__.py')
      package = module if is_package else module.rpartition('.')[0]
      self.assertTrue(any(fnmatch.fnmatch(package, one) for one in patterns), module)
      self.assertTrue(os.path.exists(os.path.join(cases.ROOT, *package.split('.'), '__init__.py')))
    _, target = setup['options.entry_points']['console_scripts'].split('=')
    module, function = target.strip().split(':')
    self.assertTrue(callable(getattr(importlib.import_module(module), function)))

  def test_variants_that_exclude_each_other(self):
    with self.assertRaisesRegex(ValueError, "'adm and dit' exclude each other"):
      importlib.import_module('configs.imagenet256').get_config('dit,adm')

  def test_presets(self):
    with self.assertRaisesRegex(ValueError, 'steps10, steps20 set the same key twice'):
      importlib.import_module('configs.imagenet256').get_config('adm,steps20,steps10')
    sampler = (
      importlib.import_module('configs.imagenet256')
      .get_config('ldm,steps50,eta0.2,scale0.01')
      .sampler
    )
    self.assertEqual(
      (sampler.steps, sampler.eta, sampler.scale, sampler.components), (50, 0.2, 0.01, 8)
    )


class SpecsTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      {'sampler': {'stepz': 3}},
      "unknown config key 'sampler.stepz'; valid: sampler.name, sampler.steps",
    ),
    ({'smapler': {}}, "unknown config key 'smapler'; valid: task, seed, data"),
    ({'sampler': {'steps': 3.5}}, "config key 'sampler.steps' must be of type int, got 3.5"),
    ({'sampler': {'steps': True}}, "config key 'sampler.steps' must be of type int, got True"),
    ({'net': {'multipliers': 3}}, "config key 'net.multipliers' must be a tuple, got 3"),
    (
      {'net': {'multipliers': (1, 'a')}},
      "config key 'net.multipliers' must be of type float, got 'a'",
    ),
    ({'net': 3}, "config key 'net' is a section, got 3"),
  )
  def test_bad(self, config, message):
    with self.assertRaisesRegex(UserError, re.escape(message)):
      specs.from_config(config)

  def test_integers_are_floats_where_floats_are_wanted(self):
    self.assertEqual(specs.from_config({'sampler': {'scale': 2}}).sampler.scale, 2.0)


if __name__ == '__main__':
  absltest.main()
