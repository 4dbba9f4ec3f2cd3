"""Sampling: ids -> samples, by any sampler on any denoiser, over all devices with one trace."""

import dataclasses
import hashlib
import os
import time
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gmm_diffusion import parallel, samplers, specs
from gmm_diffusion.aliases import Denoiser, StepGrid, UserError
from gmm_diffusion.data import sources
from gmm_diffusion.loops import build, pretrained
from gmm_diffusion.maths import grids, noise
from gmm_diffusion.reports import files, images, records
from gmm_diffusion.samplers.base import Kernel, Plan, Report
from gmm_diffusion.samplers.run import run


class Samples(NamedTuple):
  """x: uint8 images [N, H, W, C] or float32 vectors [N, D]; labels [N]; calls of the denoiser per sample."""

  x: np.ndarray
  labels: np.ndarray
  nfe: int
  report: Report
  seconds: float


class Plans(NamedTuple):
  """A sampler and a denoiser made ready for one data set; `bind` is weights -> Denoiser."""

  bind: Callable[[Any], Denoiser]
  kernel: Kernel
  grid: StepGrid
  plan: Plan
  report: Report


def prepare(spec: specs.Spec, sampler: specs.Sampler, data: sources.Data) -> Plans:
  """Everything but the weights; raises UserError on any bad setting, before anything slow starts."""
  bind = build.denoiser(spec, data)
  labels_of(np.arange(1), data, spec.sample.label)
  schedule = build.schedule(spec.schedule)
  grid = grids.make(schedule, sampler.steps, sampler.grid, sampler.end)
  kernel = samplers.make(sampler.name, sampler.options(), schedule)
  plan, report = kernel.plan(grid, build.sample_shape(spec, data))
  return Plans(bind, kernel, grid, plan, report)


def labels_of(ids: np.ndarray, data: sources.Data, label: str) -> np.ndarray:
  """The class of each sample id, int32: those that `label` names in turn; 0 where the model takes no labels."""
  numbers = sources.class_numbers(data, label)
  return numbers[ids % len(numbers)] if len(numbers) else np.zeros(len(ids), np.int32)


def sample_batch(kernel: Kernel, denoiser: Denoiser, grid: StepGrid, plan: Plan, seed: Any, ids: Any, cond: Any,
                 shape: tuple[int, ...]):
  """Samples of the given ids, (x [B, *shape], nfe); pure."""
  keys = noise.sample_keys(seed, ids)
  x = jnp.asarray(grid.b_t[0], jnp.float32) * noise.initial(keys, shape)
  result = run(kernel, denoiser, grid, plan, x, lambda n: noise.at_step(keys, n, shape), cond)
  return result.x, result.nfe


def generate(spec: specs.Spec, data: sources.Data, weights: Any, sampler: specs.Sampler, count: int) -> Samples:
  """Samples with ids 0..count-1 of spec.seed; latents are decoded in batches of their own after all are drawn."""
  start = time.perf_counter()
  bind, kernel, grid, plan, report = prepare(spec, sampler, data)
  shape, decode = build.sample_shape(spec, data), build.decoder(spec)
  ids = np.arange(count, dtype=np.uint32)
  labels = labels_of(ids, data, spec.sample.label)

  def finish(x):  # on the device: a quarter of the bytes to move and keep
    finite = jnp.isfinite(x).reshape(len(x), -1).all(1)
    return (jnp.round(jnp.clip((x + 1) * 127.5, 0, 255)).astype(jnp.uint8) if data.is_image else x), finite

  def draw(shared, batch):
    arrays, plan = shared
    x, nfe = sample_batch(kernel, bind(arrays), grid, plan, spec.seed, batch[0], batch[1], shape)
    return (x if decode else finish(x)), jnp.full(len(x), nfe)

  drawn = {name: part for name, part in weights.items() if name != 'autoencoder'} if decode else weights
  x, nfe = _map(draw, spec.sample.batch, f'sampling {sampler.name}', (drawn, plan), (ids, labels))
  if decode:
    x = _map(lambda arrays, z: finish(decode(arrays, z)), spec.autoencoder.batch, 'decoding', weights['autoencoder'], x)
  x, finite = x
  if not finite.all():
    bad = np.flatnonzero(~finite)
    raise UserError(f'{len(bad)} of {count} samples of {sampler.name!r} are not finite, the first is id {bad[0]}; '
                    'check the weights, or compute in net.dtype float32')
  return Samples(x, labels, int(nfe[0]), report, time.perf_counter() - start)


def _map(fn, batch, title, shared, items):
  """parallel.map_batches with a progress bar; no batch is larger than the work."""
  count = len(jax.tree.leaves(items)[0])
  with tqdm(total=count, desc=title, unit='image', dynamic_ncols=True) as bar:
    return parallel.map_batches(fn, min(batch, -(-count // jax.local_device_count())), bar.update)(shared, items)


def format_report(report: Report) -> str:
  """The moment report as a text table; a Gaussian kernel has none."""
  if not report:
    return ''
  lines = ['step      t  largest scale   scale used              tau        b_s  mean resid.   cov. resid.  added var.']
  for row in report:
    largest = 'any' if row['largest_scale'] is None else f"{row['largest_scale']:.4g}"
    lines.append(f"{row['step']:4d} {row['t']:6.4g}  {largest:>13s} {row['scale']:12.4g} {row['infeasible']:>8s} "
                 f"{row['tau']:12.4g} {row['b_s']:10.4g} {row['mean_residual']:12.3g} {row['covariance_residual']:13.3g} "
                 f"{row['added_variance']:11.3g}")
  words = [row['infeasible'] for row in report if row['infeasible']]
  if words:
    word = words[0]
    lines.append(f'{len(words)} of {len(report)} steps are {word}: '
                 + ('their second moment does not match; the kernel adds a kick of about `scale`.' if word == 'clipped'
                    else 'their scale was reduced to the largest feasible one.'))
  return '\n'.join(lines)


def fingerprint(spec: specs.Spec, data: sources.Data, weights_hash: str, sampler: specs.Sampler, count: int) -> str:
  """Changes when anything changes that the samples depend on."""
  parts = (sampler, spec.schedule, spec.denoiser, spec.net, spec.autoencoder, spec.classifier, spec.sample.label, spec.seed, count,
           data.shape, weights_hash)
  return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def write(spec: specs.Spec, data: sources.Data, weights: Any, sampler: specs.Sampler, count: int,
          workdir: str, command: str) -> Samples:
  """Samples to samples/NAME.npz (arr_0, arr_1) and .png, with a record; reuses files of the same fingerprint."""
  folder = os.path.join(workdir, 'samples')
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, sampler.name)
  weights_hash = build.tree_hash(weights)
  mark = fingerprint(spec, data, weights_hash, sampler, count)
  record = files.read_json(path + '.json', {})
  if record.get('fingerprint') == mark and os.path.exists(path + '.npz'):
    try:
      with np.load(path + '.npz') as stored:
        return Samples(stored['arr_0'], labels_of(np.arange(count), data, spec.sample.label), record['nfe'], record['report'], record['seconds'])
    except (OSError, ValueError, KeyError):
      pass  # damaged: draw the samples again
  out = generate(spec, data, weights, sampler, count)
  if parallel.is_main():
    arrays = (out.x, out.labels) if data.classes else (out.x,)
    files.write(path + '.npz', lambda name: np.savez(name, *arrays))
    images.save(path + '.png', images.picture(out.x, data.train))
    record = {'kind': 'samples', 'sampler': sampler.name, 'n': count, 'seed': spec.seed, 'nfe': out.nfe,
              'settings': dataclasses.asdict(sampler), 'fingerprint': mark, 'weights': weights_hash,
              'seconds': out.seconds, 'report': out.report, **records.common(spec, command)}
    files.write_json(path + '.json', record)
    records.add(workdir, [record])
  return out


def sample(spec: specs.Spec, data: sources.Data, workdir: str, command: str) -> None:
  """--mode=sample: the sampler of the config."""
  prepare(spec, spec.sampler, data)  # bad settings before anything slow
  pretrained.ensure(spec, data, workdir)
  out = write(spec, data, build.weights(spec, data, workdir), spec.sampler, spec.sample.count, workdir, command)
  if out.report:
    print(format_report(out.report))
  print(f'{len(out.x)} samples, {out.nfe} network evaluations each, {out.seconds:.1f} s: '
        f"{os.path.join(workdir, 'samples', spec.sampler.name)}.npz, .png")
