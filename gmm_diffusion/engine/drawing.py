"""Sampling: ids -> samples, by any sampler on any denoiser, over all devices with one trace."""

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gmm_diffusion import files, parallel, samplers, specs
from gmm_diffusion.data import base
from gmm_diffusion.engine import build, shards
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, noise
from gmm_diffusion.reports import images, records
from gmm_diffusion.samplers.base import Kernel, Plan, Report
from gmm_diffusion.samplers.run import run
from gmm_diffusion.types import Denoiser, StepGrid


class Samples(NamedTuple):
  """x: uint8 images [N, H, W, C] or float32 vectors [N, D]; labels [N]; calls of the denoiser per
  sample."""

  x: np.ndarray
  labels: np.ndarray
  nfe: int
  report: Report
  seconds: float


class Stored(NamedTuple):
  """Samples in files.

  Attributes:
    path: of the .npz (arr_0: samples, arr_1: labels).
    part: ids of a file -> what Drawer.draw gives for them.
    nfe, seconds: as in Samples; seconds are those of all processes together.
  """

  path: str
  part: Callable[[range], shards.Arrays]
  nfe: int
  seconds: float


class Drawer(NamedTuple):
  """A sampler made ready for one data set with its weights.

  Attributes:
    draw: (ids, advance) -> {'x': samples of these ids of spec.seed, 'nfe', 'seconds'}; one trace
      for all calls.
    report: the moment report.
    weights: their hash.
    mark: changes when anything changes that the samples depend on.
  """

  draw: Callable[[Any, shards.Advance], shards.Arrays]
  report: Report
  weights: str
  mark: str


class Plans(NamedTuple):
  """A sampler and a denoiser made ready for one data set; `bind` is weights -> Denoiser."""

  bind: Callable[[Any], Denoiser]
  kernel: Kernel
  grid: StepGrid
  plan: Plan
  report: Report


def prepare(spec: specs.Spec, sampler: specs.Sampler, data: base.Data) -> Plans:
  """Everything but the weights; raises UserError on any bad setting, before anything slow
  starts."""
  bind = build.denoiser(spec, data)
  labels_of(np.arange(1), data, spec.sample.label)
  schedule = build.schedule(spec.schedule)
  grid = grids.make(schedule, sampler.steps, sampler.grid, sampler.end)
  kernel = samplers.make(sampler.name, sampler.options(), schedule)
  plan, report = kernel.plan(grid, build.sample_shape(spec, data))
  return Plans(bind, kernel, grid, plan, report)


def labels_of(ids: np.ndarray, data: base.Data, label: str) -> np.ndarray:
  """The class of each sample id, int32: those that `label` names in turn; 0 where the model takes
  no labels."""
  numbers = base.class_numbers(data, label)
  return numbers[ids % len(numbers)] if len(numbers) else np.zeros(len(ids), np.int32)


def sample_batch(
  kernel: Kernel,
  denoiser: Denoiser,
  grid: StepGrid,
  plan: Plan,
  seed: Any,
  ids: Any,
  cond: Any,
  shape: tuple[int, ...],
):
  """Samples of the given ids, (x [B, *shape], nfe); pure."""
  keys = noise.sample_keys(seed, ids)
  x = jnp.asarray(grid.b_t[0], jnp.float32) * noise.initial(keys, shape)
  result = run(kernel, denoiser, grid, plan, x, lambda n: noise.at_step(keys, n, shape), cond)
  return result.x, result.nfe


def drawer(
  spec: specs.Spec, data: base.Data, weights: Any, weights_hash: str, sampler: specs.Sampler
) -> Drawer:
  """What draws samples by id. Latents are decoded in batches of their own, after those of one call
  are drawn."""
  bind, kernel, grid, plan, report = prepare(spec, sampler, data)
  shape, decode = build.sample_shape(spec, data), build.decoder(spec)

  def finish(x):  # on the device: a quarter of the bytes to move and keep
    finite = jnp.isfinite(x).reshape(len(x), -1).all(1)
    return (
      jnp.round(jnp.clip((x + 1) * 127.5, 0, 255)).astype(jnp.uint8) if data.is_image else x
    ), finite

  def draw_batch(shared, batch):
    arrays, plan = shared
    x, nfe = sample_batch(kernel, bind(arrays), grid, plan, spec.seed, batch[0], batch[1], shape)
    return (x if decode else finish(x)), jnp.full(len(x), nfe)

  drawn = (
    {name: part for name, part in weights.items() if name != 'autoencoder'} if decode else weights
  )
  draw_all, shared = (
    parallel.map_batches(draw_batch, spec.sample.batch),
    parallel.replicate((drawn, plan), local=True),
  )
  if decode:
    decode_all = parallel.map_batches(
      lambda arrays, z: finish(decode(arrays, z)), spec.autoencoder.batch
    )
    decoding = parallel.replicate(weights['autoencoder'], local=True)

  def draw(ids, advance):
    start, ids = time.perf_counter(), np.asarray(ids, np.uint32)
    x, nfe = draw_all(shared, (ids, labels_of(ids, data, spec.sample.label)), advance)
    x, finite = decode_all(decoding, x) if decode else x
    if not finite.all():
      raise UserError(
        f'{np.sum(~finite)} of {len(ids)} samples of {sampler.name!r} are not finite, the first is '
        f'id {ids[~finite][0]}; check the weights, or compute in net.dtype float32'
      )
    return {'x': x, 'nfe': nfe[0], 'seconds': time.perf_counter() - start}

  parts = (
    sampler,
    spec.schedule,
    spec.denoiser,
    spec.net,
    spec.autoencoder,
    spec.classifier,
    spec.sample.label,
    spec.seed,
    data.shape,
    weights_hash,
  )
  return Drawer(draw, report, weights_hash, hashlib.sha256(repr(parts).encode()).hexdigest()[:12])


def fitting(spec: specs.Spec, count: int) -> specs.Spec:
  """The spec with batches no larger than the work."""
  most = -(-min(count, spec.sample.shard) // jax.local_device_count())
  return dataclasses.replace(
    spec,
    sample=dataclasses.replace(spec.sample, batch=min(spec.sample.batch, most)),
    autoencoder=dataclasses.replace(spec.autoencoder, batch=min(spec.autoencoder.batch, most)),
  )


def generate(
  spec: specs.Spec, data: base.Data, weights: Any, sampler: specs.Sampler, count: int
) -> Samples:
  """Samples with ids 0..count-1 of spec.seed, in memory."""
  source = drawer(fitting(spec, count), data, weights, '', sampler)
  ids = np.arange(count)
  with tqdm(total=count, desc=f'sampling {sampler.name}', unit='image', dynamic_ncols=True) as bar:
    out = source.draw(ids, bar.update)
  return Samples(
    out['x'],
    labels_of(ids, data, spec.sample.label),
    int(out['nfe']),
    source.report,
    out['seconds'],
  )


def format_report(report: Report) -> str:
  """The moment report as a text table; a Gaussian kernel has none."""
  if not report:
    return ''
  lines = [
    'step      t  largest scale   scale used              tau        b_s  mean resid.   cov. '
    'resid.  added var.'
  ]
  for row in report:
    largest = 'any' if row['largest_scale'] is None else f'{row["largest_scale"]:.4g}'
    lines.append(
      f'{row["step"]:4d} {row["t"]:6.4g}  {largest:>13s} {row["scale"]:12.4g} '
      f'{row["infeasible"]:>8s} {row["tau"]:12.4g} {row["b_s"]:10.4g} {row["mean_residual"]:12.3g} '
      f'{row["covariance_residual"]:13.3g} {row["added_variance"]:11.3g}'
    )
  words = [row['infeasible'] for row in report if row['infeasible']]
  if words:
    word = words[0]
    lines.append(
      f'{len(words)} of {len(report)} steps are {word}: '
      + (
        'their second moment does not match; the kernel adds a kick of about `scale`.'
        if word == 'clipped'
        else 'their scale was reduced to the largest feasible one.'
      )
    )
  return '\n'.join(lines)


def write(
  spec: specs.Spec,
  data: base.Data,
  source: Drawer,
  sampler: specs.Sampler,
  count: int,
  workdir: str,
  command: str,
) -> Stored:
  """Samples to samples/NAME/ in files by range of ids, then to samples/NAME.npz and .png, with a
  record.

  What is there is not drawn again; any number of processes may do this at the same time.
  """
  folder = os.path.join(workdir, 'samples', sampler.name)
  where = (folder, source.mark, count, spec.sample.shard)
  record = _finished(folder, source.mark, count)
  if record is None:
    shards.fill(*where, source.draw, f'sampling {sampler.name}')
    with files.locked(folder):
      record = _finished(folder, source.mark, count)
      if record is None:
        record = _gather(spec, data, source, sampler, where, command)
        records.add(workdir, [record])

  def part(ids):  # drawn again where it was deleted
    return shards.load(folder, source.mark, ids) or source.draw(ids, lambda n: None)

  return Stored(folder + '.npz', part, record['nfe'], record['seconds'])


def _finished(folder: str, mark: str, count: int) -> dict[str, Any] | None:
  """The record of samples that are complete and whole."""
  record = files.read_json(folder + '.json', {})
  return (
    record
    if (record.get('fingerprint'), record.get('n')) == (mark, count)
    and files.is_whole(folder + '.npz')
    else None
  )


def _gather(spec, data, source, sampler, where, command):
  """Makes the .npz and the .png of the files; returns the record, which marks them as finished."""
  folder, mark, count, _ = where
  first, seconds = None, 0.0

  def blocks():
    nonlocal first, seconds
    for part in shards.read(*where):
      first = part if first is None else first
      seconds += float(part['seconds'])
      yield part['x']

  labels = labels_of(np.arange(count), data, spec.sample.label)
  dtype = np.uint8 if data.is_image else np.float32
  arrays = {'arr_0': ((count, *data.shape), dtype, blocks())}
  if data.classes:
    arrays['arr_1'] = (labels.shape, labels.dtype, [labels])
  files.write_npz(folder + '.npz', arrays)
  images.save(folder + '.png', images.picture(first['x'], data.train))
  record = {
    'kind': 'samples',
    'sampler': sampler.name,
    'n': count,
    'seed': spec.seed,
    'nfe': int(first['nfe']),
    'settings': dataclasses.asdict(sampler),
    'fingerprint': mark,
    'weights': source.weights,
    'seconds': seconds,
    'report': source.report,
    **records.common(spec, command),
  }
  files.write_json(folder + '.json', record)
  return record
