"""Silent rank promotion is an error in all tests. `-m fast` is what needs no training and starts no
processes."""

import os
import pathlib
import sys

import hypothesis
import jax
import pytest
from absl import flags

FAST = (
  'data',
  'docs_test.py',
  'files_test.py',
  'maths/grids_test.py',
  'maths/marginals_test.py',
  'maths/noise_test.py',
  'maths/schedules_test.py',
  'metrics/metrics_test.py',
  'metrics/references_test.py',
  'reports',
  'structure_test.py',
)

sys.path.insert(0, os.path.dirname(__file__))  # helpers/
hypothesis.settings.register_profile(
  'fixed', deadline=None, derandomize=True
)  # the same cases on every machine
hypothesis.settings.load_profile('fixed')
flags.FLAGS.mark_as_parsed()  # absltest's temporary folders are flags
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_collection_modifyitems(items):
  here = pathlib.Path(__file__).parent
  for item in items:
    place = item.path.relative_to(here)
    if any(place.is_relative_to(part) for part in FAST):
      item.add_marker(pytest.mark.fast)
