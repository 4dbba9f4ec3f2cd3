"""Devices and hosts: the only file that names them.

Everything outside works on plain arrays with one leading batch axis. Here the batch is split
over the local devices with pmap; weights and other shared arrays are replicated once.
"""

import contextlib
import functools
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gmm_diffusion.errors import UserError

AXIS = 'devices'
_LOCAL_SIZE = 'OMPI_COMM_WORLD_LOCAL_SIZE'
_SILENT = 40  # seconds after which a host that says nothing counts as gone


def _many(size: str, *signs: str) -> bool:
  """Whether all these variables are set, and `size` to more than one process."""
  return all(name in os.environ for name in (size, *signs)) and int(os.environ[size]) > 1


# What starts processes -> whether it started this one together with others. All but the first are
# joined by what JAX finds out itself.
CLUSTERS = {
  'JAX_COORDINATOR_ADDRESS': lambda: 'JAX_COORDINATOR_ADDRESS' in os.environ,
  'Slurm': lambda: _many('SLURM_NTASKS', 'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID'),
  'Open MPI': lambda: _many('OMPI_COMM_WORLD_SIZE'),
  'Kubernetes': lambda: {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= set(os.environ),
  'TPU pod': lambda: importlib.util.find_spec('libtpu') is not None,
}


def start() -> str:
  """Joins the other processes where this one was started together with others.

  Returns:
    A name in CLUSTERS, or '' where the process is alone.

  Raises:
    UserError: the others cannot be found.
  """
  name = next((name for name, present in CLUSTERS.items() if present()), '')
  if not name:
    return ''
  try:
    known: dict[str, Any] = {}
    if name == 'JAX_COORDINATOR_ADDRESS':
      known['num_processes'] = _number('JAX_NUM_PROCESSES', 'OMPI_COMM_WORLD_SIZE')
      known['process_id'] = _number('JAX_PROCESS_ID', 'OMPI_COMM_WORLD_RANK')
    jax.distributed.initialize(heartbeat_timeout_seconds=_SILENT, **known)
  except (ValueError, RuntimeError) as error:
    if name == 'TPU pod' and 'coordinator_address' in str(error):
      return ''  # a TPU library without a TPU pod
    raise UserError(
      f'cannot join the other processes of {name} ({str(error).splitlines()[0][:200]}); set '
      f'JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or unset what '
      f'says that there are others'
    ) from error
  if _alone_on_its_machine():  # JAX gives a process that Slurm or Open MPI starts one GPU
    jax.config.update('jax_cuda_visible_devices', 'all')
    jax.config.update('jax_rocm_visible_devices', 'all')
  return name


def _number(*names: str) -> int | None:
  """The first of these variables that is set."""
  return next((int(os.environ[name]) for name in names if name in os.environ), None)


def _alone_on_its_machine() -> bool:
  """Whether Slurm or Open MPI started one process on each machine."""
  machines = _number('SLURM_STEP_NUM_NODES')
  return machines == _number('SLURM_NTASKS') if machines else _number(_LOCAL_SIZE) == 1


def describe() -> str:
  """Kind and number of devices and hosts, in words."""
  hosts, kind = jax.process_count(), jax.devices()[0].device_kind
  return (
    f'{jax.device_count()} x {kind} ({jax.default_backend()}) on {hosts} host{"s" * (hosts > 1)}'
  )


def is_main() -> bool:
  """Whether this host writes the files."""
  return jax.process_index() == 0


def replicate(tree: Any, local: bool = False) -> Any:
  """A copy of the tree on each local device, with a leading device axis; `local` for a pmap of this
  host's devices alone."""
  sharding = _sharding(local)

  def copy(
    x,
  ):  # leaf by leaf: a pmap that returns its input would hold all weights twice for a while
    x = np.asarray(x)[None]
    return jax.make_array_from_callback(
      (jax.local_device_count(),) + x.shape[1:], sharding, lambda index: x
    )

  try:
    return jax.tree.map(copy, tree)
  except jax.errors.JaxRuntimeError as error:
    _halved(jax.local_device_count(), error)  # there is nothing to halve yet


@functools.cache  # one compilation for all trees
def _sharding(local):
  """What a pmap with the same axis name returns; any other sharding costs a second compilation."""
  return jax.pmap(lambda x: x, axis_name=AXIS, devices=_devices(local))(
    np.zeros(jax.local_device_count(), np.float32)
  ).sharding


def _devices(local):
  return jax.local_devices() if local else None


def unreplicate(tree: Any) -> Any:
  """The first device's copy, as host arrays."""
  return jax.tree.map(lambda x: np.asarray(x.addressable_data(0))[0], tree)


def mean(tree: Any) -> Any:
  """Mean over all devices, inside a function given to `over_devices`."""
  return jax.lax.pmean(tree, AXIS)


def total(tree: Any) -> Any:
  """Sum over all devices, inside a function given to `over_devices`."""
  return jax.lax.psum(tree, AXIS)


def largest(tree: Any) -> Any:
  """Maximum over all devices, inside a function given to `over_devices`."""
  return jax.lax.pmax(tree, AXIS)


def gathered(x: Any) -> Any:
  """The items of all devices, [B / devices, ...] -> [B, ...], inside a function given to
  `over_devices`."""
  return jax.lax.all_gather(x, AXIS, tiled=True)


def over_devices(
  fn: Callable[[Any, Any], Any], donate: bool = False, local: bool = False
) -> Callable[[Any, Any], Any]:
  """pmap of fn(replicated, batch), where batch leaves have leading axes [devices, per device].

  All hosts call it together; with `local` each host for itself.
  """
  return jax.pmap(
    fn, axis_name=AXIS, devices=_devices(local), donate_argnums=(0,) if donate else ()
  )


def split(tree: Any) -> Any:
  """[B, ...] host arrays -> [devices, B / devices, ...]."""
  n = jax.local_device_count()
  return jax.tree.map(lambda x: np.reshape(x, (n, len(x) // n) + np.shape(x)[1:]), tree)


def split_uneven(x: np.ndarray, fill: float) -> np.ndarray:
  """[N, ...] -> [devices, per device, ...] with `fill` behind the last item: this host's part of
  items of all hosts."""
  per_device = -(-len(x) // jax.device_count())
  x = np.pad(
    x,
    [(0, per_device * jax.device_count() - len(x))] + [(0, 0)] * (x.ndim - 1),
    constant_values=fill,
  )
  return split(x[host_slice(len(x))])


def host_slice(n: int) -> slice:
  """This host's part of n items that belong together; n is a multiple of the number of hosts."""
  part = n // jax.process_count()
  return slice(jax.process_index() * part, (jax.process_index() + 1) * part)


def check_batch(n: int, key: str) -> None:
  """Raises UserError unless a batch of n, set by `key`, splits evenly over all devices."""
  if n % jax.device_count():
    raise UserError(
      f'{key} {n} is not a multiple of the {jax.device_count()} devices; valid: '
      f'{jax.device_count()}, {2 * jax.device_count()}, ...'
    )


def hosts() -> int:
  """How many processes work together."""
  return jax.process_count()


# What one device computes at most, in operations a second with inputs of bfloat16, by the beginning
# of its kind's name: data sheets of NVIDIA, without sparsity, and of Google Cloud.
_PEAKS = {
  'NVIDIA B200': 2250e12, 'NVIDIA H200': 989e12, 'NVIDIA H100 PCIe': 756e12, 'NVIDIA H100': 989e12,
  'NVIDIA A100': 312e12, 'NVIDIA L40S': 362e12, 'NVIDIA L4': 121e12, 'Tesla V100': 125e12,
  'TPU v6 lite': 918e12, 'TPU v5p': 459e12, 'TPU v5 lite': 197e12, 'TPU v4': 275e12,
  'TPU v3': 61.5e12,
}  # fmt: skip


def work(fn: Callable[..., Any], shared: Any, batch: Any) -> float:
  """How many seconds a call of what `over_devices` returned would take at the peak of the devices,
  the body of a loop counted once; 0 where the peak is not known, or for any other function."""
  kind = jax.devices()[0].device_kind
  peak = next((value for name, value in _PEAKS.items() if kind.startswith(name)), None)
  lower = getattr(fn, 'lower', None)
  if peak is None or lower is None:
    return 0.0
  return (lower(shared, batch).cost_analysis() or {}).get('flops', 0.0) / peak


def agreement() -> Callable[[int], int]:
  """number >= 0 -> the largest that any host gave, the same on all, which call this after each of
  their steps. That of several hosts is from the call before, so that no device waits for it."""
  if hosts() == 1:
    return lambda number: number
  reduce = jax.pmap(lambda x: jax.lax.pmax(x, AXIS), axis_name=AXIS)
  pending = None

  def agreed(number):
    nonlocal pending
    before, pending = pending, reduce(np.full(jax.local_device_count(), number, np.int32))
    return 0 if before is None else int(unreplicate(before))

  return agreed


@contextlib.contextmanager
def together() -> Iterator[None]:
  """For what several hosts compute together: where another host is gone, this one ends the program
  with one line, and waits for nobody."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' in str(error):
      raise UserError(
        'the device has too little memory for a step; raise train.accumulate, set net.remat, or '
        'lower train.batch'
      ) from error
    if hosts() == 1:
      raise
    end(
      f'the hosts cannot go on together ({str(error).splitlines()[0][:200]}); start the command '
      f'again on all of them: it goes on from the last checkpoint',
      patience=0,
    )


def end(message: str, code: int = 1, patience: float = 5) -> None:
  """Ends the program with one line and a code. Several hosts that end at the same time part in
  order; but none waits longer than `patience` seconds for others, which may be gone."""
  if hosts() == 1 and code == 1:
    sys.exit(f'error: {message}')
  print(f'error: {message}', file=sys.stderr, flush=True)
  if hosts() == 1:
    sys.exit(code)
  sys.stdout.flush()
  if patience:
    parting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    parting.start()
    parting.join(patience)
  os._exit(code)


def per_device(n: int) -> int:
  """Items on each device of a batch of n over all of them."""
  return n // jax.device_count()


def map_batches(fn: Callable[[Any, Any], Any], per_device: int) -> Callable[..., Any]:
  """Maps fn over a long batch axis, on this host's devices, with one trace: all calls have
  per_device items on each.

  Args:
    fn: (shared, batch) -> outputs with leading axis B, where the items do not depend on each other.
    per_device: items on each device at a time. Where a device runs out of memory it is halved from
      there on.

  Returns:
    (replicas, batch, advance=None) -> outputs as host arrays, in order. replicas: what is shared,
    from replicate(..., local=True). advance is called with the number of items done since its last
    call. Hosts do not wait for each other.
  """
  mapped = over_devices(fn, local=True)
  size = per_device * jax.local_device_count()

  def call(replicas, batch, advance=None):
    nonlocal size
    total = len(jax.tree.leaves(batch)[0])
    parts, start = [], 0
    while start < total:
      chunk = np.minimum(
        np.arange(start, start + size), total - 1
      )  # repeats the last item: one shape for all calls
      try:
        out = mapped(replicas, split(jax.tree.map(lambda x: np.asarray(x)[chunk], batch)))
        out = jax.tree.map(lambda x: np.asarray(x).reshape((-1,) + x.shape[2:]), out)
      except jax.errors.JaxRuntimeError as error:
        size = _halved(size, error)
        continue
      parts.append(jax.tree.map(lambda x: x[: total - start], out))
      if advance:
        advance(min(size, total - start))
      start += size
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

  return call


def _halved(size: int, error: Exception) -> int:
  """Half of a batch size over the local devices after an error for want of memory; raises any
  other."""
  if 'RESOURCE_EXHAUSTED' not in str(error):
    raise error
  devices = jax.local_device_count()
  per_device = size // devices
  if per_device == 1:
    raise UserError(
      f'the device has too little memory for {per_device} at a time; lower sample.batch, '
      f'autoencoder.batch or segmentation.batch, or compute in net.dtype bfloat16'
    ) from error
  print(
    f'too little memory for {per_device} at a time on a device: going on with {per_device // 2}',
    flush=True,
  )
  return per_device // 2 * devices
