"""Silent rank promotion is an error in all tests. `-m fast` is what needs no training and starts no
processes.

Most of the time goes into compiling. So XLA compiles by its fastest way, which does not optimise,
and what one process of a session has compiled all others read from a folder: the workers, and the
commands that tests start.
"""

import atexit
import gc
import os
import pathlib
import shutil
import sys
import tempfile

if 'PYTEST_XDIST_WORKER' not in os.environ:  # workers inherit it; jax reads it on import
  cache = tempfile.mkdtemp(prefix='compiled-')
  atexit.register(shutil.rmtree, cache, ignore_errors=True)
  os.environ.update(
    XLA_FLAGS='--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE '
    '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
    '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1',
    JAX_COMPILATION_CACHE_DIR=cache,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1',
  )

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
gc.freeze()  # what is imported stays; without it each collection walks through all of jax
gc.set_threshold(100_000, 20, 100)


@pytest.fixture(autouse=True, scope='module')
def compiled_functions_go():
  """A worker would keep gigabytes of them."""
  yield
  jax.clear_caches()
  gc.collect()


def pytest_collection_modifyitems(items):
  here = pathlib.Path(__file__).parent
  for item in items:
    place = item.path.relative_to(here)
    if any(place.is_relative_to(part) for part in FAST):
      item.add_marker(pytest.mark.fast)
