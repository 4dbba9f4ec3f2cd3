"""What several tests share."""

import contextlib
import functools
import gc
import glob
import io
import os
import subprocess
import sys
import tempfile
import unittest
import warnings
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from gmm_diffusion import samplers
from gmm_diffusion.maths import marginals, noise
from gmm_diffusion.samplers.run import run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SAMPLERS = tuple(  # that need no file
  name for name in samplers.SAMPLERS if not samplers.options_of(name) & {'path', 'posterior'}
)
POSTERIOR = tuple(name for name in samplers.SAMPLERS if 'posterior' in samplers.options_of(name))
OPTIMISED = (
  '--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true '
  '--xla_cpu_use_fusion_emitters=false'
)
TESTDATA = os.path.join(ROOT, 'tests', 'testdata')


class X64TestCase(parameterized.TestCase):
  """Tests in double precision."""

  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))


@contextlib.contextmanager
def read_only(folder):
  """A folder in which the system lets this process write nothing; skips where it would."""
  mode, is_root = os.stat(folder).st_mode, hasattr(os, 'geteuid') and os.geteuid() == 0
  with contextlib.ExitStack() as stack:
    stack.callback(os.chmod, folder, mode)
    os.chmod(folder, 0o555)
    if is_root:  # whom no permission binds: all threads are another user for a while
      try:
        os.seteuid(65534)
      except OSError as error:
        raise unittest.SkipTest(f'root cannot become another user here: {error}') from error
      stack.callback(os.seteuid, 0)
    if os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
      raise unittest.SkipTest('permissions do not bind this user')
    yield


def golden(name):
  """Arrays of testdata/<name>.npz."""
  return np.load(os.path.join(TESTDATA, name + '.npz'))


def residuals(path, shape, seed=0, levels=3, count=4, **arrays):
  """Writes a file as --mode=posterior does, with directions at random; its path."""
  random, dim = np.random.RandomState(seed), int(np.prod(shape))
  vectors = np.stack([np.linalg.qr(random.randn(dim, count))[0].T for _ in range(levels)])
  found = {
    'level': np.linspace(-8, 8, levels),
    'variances': np.linspace(0.4, 0.1, count) * np.linspace(1, 0.1, levels)[:, None],
    'vectors': vectors.astype(np.float32),
    'total': np.linspace(1.5, 0.2, levels),
    'shape': np.array(shape),
    'denoiser': 'none',
    **arrays,
  }
  np.savez(path, **found)
  return path


def known_x0(x0):
  """A denoiser that knows the one x_0 behind every sample."""

  def denoise(x, time, cond):
    del cond
    return marginals.from_x0(x, jnp.broadcast_to(jnp.asarray(x0, x.dtype)[None], x.shape), time)

  return denoise


@functools.partial(jax.jit, static_argnums=(0, 1, 5), static_argnames=('keep',))
def _run(kernel, denoiser, grid, plan, x, shape, keys, keep):
  return run(
    kernel, denoiser, grid, plan, x, lambda n: noise.at_step(keys, n, shape, x.dtype), keep=keep
  )


def sample(kernel, denoiser, grid, shape, ids, seed=0, keep='last', dtype=None, start=None):
  """Runs a kernel; x_T is `start`, or noise at the grid's first level."""
  dtype = dtype or jnp.result_type(float)
  plan, _ = kernel.plan(grid, shape)
  keys = noise.sample_keys(seed, ids)
  if start is None:
    start = jnp.asarray(grid.b_t[0], dtype) * noise.initial(keys, shape, dtype)
  return _run(kernel, denoiser, grid, plan, start, shape, keys, keep=keep)


def sample_set(workdir, sampler, end='-n*.npz'):
  """The one file (or folder) of a sampler in a workdir whose name ends like this."""
  (path,) = glob.glob(os.path.join(workdir, 'samples', f'{sampler}-[0-9]*{end}'))
  return path


def call(main, *arguments):
  """Runs the main() of an experiment in this process: what it prints."""
  with (
    mock.patch.object(sys, 'argv', ['program', *arguments]),
    contextlib.redirect_stdout(io.StringIO()) as out,
  ):
    main()
  return out.getvalue()


def python(*arguments, timeout=500, devices=1, optimised=False):
  """Runs Python in the repository's root: (exit code, stdout, stderr).

  optimised: compiled better than elsewhere in the tests, which takes three times as long and runs
    many times faster; not as well as for users.
  """
  environment = dict(
    os.environ,
    JAX_PLATFORMS='cpu',
    XLA_FLAGS=(OPTIMISED if optimised else os.environ['XLA_FLAGS'])
    + f' --xla_force_host_platform_device_count={devices}',
  )
  done = subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=timeout,
  )
  return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def all_closed():
  """Raises AssertionError where a file is left open. As an error, such a warning would be lost: it
  comes where nobody can catch it."""
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always', ResourceWarning)
    yield
    gc.collect()
  left = [str(one.message) for one in caught if one.category is ResourceWarning]
  assert not left, left


@contextlib.contextmanager
def folder():
  """A new folder for the tests of a class."""
  with tempfile.TemporaryDirectory() as path:
    yield path
