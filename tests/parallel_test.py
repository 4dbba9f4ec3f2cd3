"""Splitting over devices: order, padding, one trace, progress; two hosts on one machine."""

import contextlib
import os
import socket
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import parallel
from gmm_diffusion.errors import UserError
from helpers import cases


class MapBatchesTest(parameterized.TestCase):
  @parameterized.parameters((1, 4), (4, 4), (10, 4), (12, 4), (3, 1))
  def test_any_length_in_order_with_one_trace(self, total, per_device):
    traces, done = [], []

    def fn(shared, batch):
      traces.append(1)
      return {'y': shared * batch['x'][:, None] + jnp.arange(2.0)[None]}

    x = np.arange(total, dtype=np.float32)
    call, three = (
      parallel.map_batches(fn, per_device),
      parallel.replicate(np.float32(3), local=True),
    )
    found = call(three, {'x': x}, done.append)
    np.testing.assert_array_equal(found['y'], 3 * x[:, None] + np.arange(2))
    self.assertEqual(sum(done), total)
    np.testing.assert_array_equal(
      call(three, {'x': x[:1]})['y'], found['y'][:1]
    )  # another length is no other shape
    self.assertLen(traces, 1)

  def test_batches_are_halved_when_memory_runs_out(self):
    sizes, done = [], []

    def mapped(shared, batch):
      size = batch['x'].shape[1]
      sizes.append(size)
      if size > 3:
        raise jax.errors.JaxRuntimeError(
          'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.'
        )
      return {'y': shared[0] * batch['x']}

    x = np.arange(10, dtype=np.float32)
    with mock.patch.object(parallel, 'over_devices', lambda fn, local: mapped):
      call = parallel.map_batches(None, 8)
      found = call(np.float32([3]), {'x': x}, done.append)
      np.testing.assert_array_equal(found['y'], 3 * x)
      self.assertEqual(sizes, [8, 4, 2, 2, 2, 2, 2])
      self.assertEqual(sum(done), 10)
      call(np.float32([3]), {'x': x[:1]})
    self.assertEqual(sizes[7:], [2])  # it does not try the size again

  def test_memory_for_not_even_one(self):
    def mapped(shared, batch):
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')

    with mock.patch.object(parallel, 'over_devices', lambda fn, local: mapped):
      with self.assertRaisesRegex(
        UserError, 'the device has too little memory for 1 at a time; lower sample.batch'
      ):
        parallel.map_batches(None, 2)(np.float32([3]), {'x': np.zeros(2)})

  def test_other_errors_pass(self):
    def mapped(shared, batch):
      raise jax.errors.JaxRuntimeError('INTERNAL: something else')

    with mock.patch.object(parallel, 'over_devices', lambda fn, local: mapped):
      with self.assertRaisesRegex(jax.errors.JaxRuntimeError, 'something else'):
        parallel.map_batches(None, 2)(np.float32([3]), {'x': np.zeros(2)})

  def test_replicas(self):
    tree = {'a': np.ones((2, 3), np.float32)}
    np.testing.assert_array_equal(parallel.unreplicate(parallel.replicate(tree))['a'], tree['a'])


HOSTS = """
import sys
import numpy as np
from gmm_diffusion import parallel
found = parallel.start()
import jax
assert found == sys.argv[1], found
assert jax.process_count() == 2, jax.process_count()
count = 17 if parallel.is_main() else 3  # neither waits for the other
double = parallel.map_batches(lambda shared, x: shared * x, 3)
out = double(parallel.replicate(np.float32(2), local=True), np.arange(count, dtype=np.float32))
np.testing.assert_array_equal(out, 2 * np.arange(count))
assert parallel.host_slice(8) == slice(4 * jax.process_index(), 4 * jax.process_index() + 4)
add = parallel.over_devices(lambda shared, x: parallel.mean(x.sum() * shared))
mean = add(parallel.replicate(np.float32(1)),
           parallel.split(np.full(2, jax.process_index() + 1, np.float32)))
assert float(mean.addressable_data(0)[0]) == 3.0, mean
print('fine on', parallel.describe(), parallel.is_main())
"""


def by_address(port, i):
  return {
    'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
    'JAX_NUM_PROCESSES': '2',
    'JAX_PROCESS_ID': str(i),
  }


def by_slurm(port, i):
  return {
    'JAX_COORDINATOR_PORT': str(port),
    'SLURM_JOB_ID': '7',
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': '2',
    'SLURM_PROCID': str(i),
    'SLURM_LOCALID': str(i),
  }


def by_open_mpi(port, i):
  return {
    'JAX_COORDINATOR_PORT': str(port),
    'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://127.0.0.1:34911',
    'OMPI_COMM_WORLD_SIZE': '2',
    'OMPI_COMM_WORLD_RANK': str(i),
    'OMPI_COMM_WORLD_LOCAL_RANK': str(i),
  }


class HostsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('JAX_COORDINATOR_ADDRESS', by_address), ('Slurm', by_slurm), ('Open MPI', by_open_mpi)
  )
  def test_two_hosts_find_each_other_and_share_a_batch(self, name, environment):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = free.getsockname()[1]
    processes = [
      subprocess.Popen(
        [sys.executable, '-c', HOSTS, name],
        cwd=cases.ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environment(port, i)},
      )
      for i in range(2)
    ]
    for i, process in enumerate(processes):
      out, error = process.communicate(timeout=200)
      self.assertEqual(process.returncode, 0, error[-2000:])
      self.assertIn('on 2 hosts ' + str(i == 0), out)

  @parameterized.parameters(
    ({}, ''),
    ({**by_slurm(1, 0), 'SLURM_NTASKS': '1'}, ''),  # one command inside a job
    ({**by_open_mpi(1, 0), 'OMPI_COMM_WORLD_SIZE': '1'}, ''),
    ({'KUBERNETES_SERVICE_HOST': 'x'}, ''),  # a pod that is no job
    ({'KUBERNETES_SERVICE_HOST': 'x', 'JOB_COMPLETION_INDEX': '0'}, 'Kubernetes'),
  )
  def test_who_is_alone(self, environment, name):
    with (
      mock.patch.dict(os.environ, environment, clear=True),
      mock.patch.object(jax.distributed, 'initialize') as initialize,
    ):
      self.assertEqual(parallel.start(), name)
    self.assertEqual(initialize.called, bool(name))

  @parameterized.parameters((None, 'TPU pod'), (ValueError('coordinator_address missing'), ''))
  def test_a_tpu_library(self, error, name):
    """Where it is installed there may be a pod; JAX knows."""
    with (
      mock.patch.dict(os.environ, {}, clear=True),
      mock.patch.object(parallel.importlib.util, 'find_spec', lambda name: name == 'libtpu'),
      mock.patch.object(jax.distributed, 'initialize', side_effect=error) as initialize,
    ):
      self.assertEqual(parallel.start(), name)
    initialize.assert_called_once_with(heartbeat_timeout_seconds=parallel._SILENT)

  @parameterized.parameters(
    (by_slurm(1, 0), {'SLURM_STEP_NUM_NODES': '2'}, True),
    (by_slurm(1, 0), {'SLURM_STEP_NUM_NODES': '1'}, False),  # a process for each GPU
    (by_slurm(1, 0), {}, False),
    (by_open_mpi(1, 0), {'OMPI_COMM_WORLD_LOCAL_SIZE': '1'}, True),
    (by_open_mpi(1, 0), {'OMPI_COMM_WORLD_LOCAL_SIZE': '8'}, False),
    ({**by_slurm(1, 0), **by_address(1, 0)}, {'SLURM_STEP_NUM_NODES': '2'}, True),
  )
  def test_one_process_on_each_machine_uses_all_gpus(self, cluster, more, every):
    with (
      mock.patch.dict(os.environ, {**cluster, **more}, clear=True),
      mock.patch.object(jax.distributed, 'initialize'),
      mock.patch.object(jax.config, 'update') as update,
    ):
      parallel.start()
    wanted = [mock.call(f'jax_{kind}_visible_devices', 'all') for kind in ('cuda', 'rocm')]
    self.assertEqual(update.mock_calls, wanted if every else [])

  def test_open_mpi_with_an_address(self):
    processes = {'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_RANK': '3'}
    with (
      mock.patch.dict(os.environ, {**processes, 'JAX_COORDINATOR_ADDRESS': 'x:1'}, clear=True),
      mock.patch.object(jax.distributed, 'initialize') as initialize,
    ):
      self.assertEqual(parallel.start(), 'JAX_COORDINATOR_ADDRESS')
    self.assertContainsSubset({'num_processes': 4, 'process_id': 3}, initialize.call_args.kwargs)

  @parameterized.parameters(
    (by_slurm(1, 0), ValueError('no port'), r'processes of Slurm \(no port\); set JAX_COORD'),
    (by_slurm(1, 0), RuntimeError('late\nand more'), r'of Slurm \(late\); set JAX_COORD'),
    ({**by_address(1, 0), 'JAX_NUM_PROCESSES': 'x'}, None, r"\(invalid literal .* 'x'\); set"),
    # Open MPI 5 does not say where the first process is
    (
      {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '0'},
      ValueError('coordinator_address should be defined.'),
      r'Open MPI \(coordinator_',
    ),
  )
  def test_a_cluster_that_cannot_be_joined(self, environment, error, message):
    real = mock.patch.object(jax.distributed, 'initialize', side_effect=error)
    with (
      mock.patch.dict(os.environ, environment, clear=True),
      real if error else contextlib.nullcontext(),
      self.assertRaisesRegex(UserError, f'^cannot join the other .*{message}'),
    ):
      parallel.start()


if __name__ == '__main__':
  absltest.main()
