"""Task 'creativity': networks that differ in their final layer beside score machines, from the same
noise."""

import dataclasses
import functools
import hashlib
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gmm_diffusion import files, parallel, samplers, specs
from gmm_diffusion.data import base, crafted, sources
from gmm_diffusion.denoisers import score_machines
from gmm_diffusion.engine import build, drawing, loss
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, noise
from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.nets import cnn
from gmm_diffusion.reports import records
from gmm_diffusion.samplers.run import run as run_sampler
from gmm_diffusion.tasks.creativity import calibrate, compare, locality, provenance
from gmm_diffusion.tasks.creativity import report as figures
from gmm_diffusion.types import Denoiser, StepGrid, Time

PUBLISHED = (
  'Published on another data set whose details are not public: 21.64 % consistency for a CNN with '
  'top-1 attention, 25.44 % with identity attention, over 100 trials.'
)
# by padding: the machine that knows what the plain CNN knows, shown at one patch size for all noise
# levels
FIXED = {'zero': 'bbELS', 'circular': 'ELS'}


def network_spec(spec: specs.Spec, final: str) -> specs.Spec:
  """The spec of the network with this final layer."""
  return dataclasses.replace(spec, net=dataclasses.replace(spec.net, final=final))


def check(spec: specs.Spec, data: base.Data) -> None:
  """Raises UserError on a bad setting before anything slow starts."""
  wanted = spec.creativity
  for name, valid in ((wanted.networks, cnn.FINALS), (wanted.machines, score_machines.MACHINES)):
    for entry in name:
      if entry not in valid:
        raise UserError(
          f'unknown name {entry!r} in creativity.networks or creativity.machines; valid: '
          f'{", ".join(valid)}'
        )
  if not wanted.networks or not len(data.train) or not data.is_image:
    raise UserError('task creativity needs images and at least one of creativity.networks')
  if not wanted.sizes or not 1 <= wanted.probes <= wanted.pairs:
    raise UserError(
      f'creativity.sizes must not be empty and creativity.probes in 1..{wanted.pairs} (pairs), got '
      f'{wanted.sizes} and {wanted.probes}'
    )
  if spec.net.padding == 'circular' and 'bbELS' in wanted.machines:
    raise UserError(
      'machine bbELS has zeros beyond the edges, a network with net.padding=circular has none; '
      'leave it out of creativity.machines'
    )
  if wanted.pairs > spec.sample.count or wanted.pairs < 2:
    raise UserError(
      f'creativity.pairs must be in 2..{spec.sample.count} (sample.count), got {wanted.pairs}'
    )
  for size in wanted.sizes:
    score_machines.make('ELS', data.train, size, spec.net.padding)
  if spec.net.labels != 'none':
    raise UserError(
      f"task creativity compares unconditional networks; set net.labels to 'none', got "
      f'{spec.net.labels!r}'
    )
  drawing.prepare(spec, spec.sampler, data)


def train(spec: specs.Spec, data: base.Data, workdir: str) -> None:
  """--mode=train: every network, each in a folder of its own; resumes."""
  for final in spec.creativity.networks:
    print(f'network {final}', flush=True)
    os.makedirs(os.path.join(workdir, final), exist_ok=True)
    loss.train(network_spec(spec, final), data, os.path.join(workdir, final))


def run(mode: str, spec: specs.Spec, workdir: str, command: str) -> None:
  """Runs a mode: train, evaluate, or all of it."""
  data = sources.load(spec.data)
  check(spec, data)
  if mode in ('train', 'all'):
    train(spec, data, workdir)
  if mode in ('evaluate', 'all'):
    evaluate(spec, data, workdir, command)


@functools.cache
def grid_of(spec: specs.Spec) -> StepGrid:
  """The steps of all samples."""
  return grids.make(
    build.schedule(spec.schedule), spec.sampler.steps, spec.sampler.grid, spec.sampler.end
  )


def bind_machine(spec: specs.Spec, name: str, size: Any, shared: bool):
  """(images, log_priors) -> Denoiser; shared: over the devices, inside parallel.over_devices."""
  collectives = score_machines.Collectives(parallel.largest, parallel.total) if shared else None
  return lambda arrays: score_machines.make(
    name, arrays[0], size, spec.net.padding, log_priors=arrays[1], collectives=collectives
  )


def machine_images(spec: specs.Spec, data: base.Data) -> np.ndarray:
  """The training images that machines see, float32 in [-1, 1]."""
  return base.to_model(data.train[: spec.creativity.images or None])


def machine_samples(
  spec: specs.Spec, data: base.Data, name: str, size: Any, count: int
) -> np.ndarray:
  """Samples of a machine with ids 0..count-1, uint8: those of a network that start from the same
  noise.

  The training images are split over all devices; each step joins what the devices find.
  """
  images = machine_images(spec, data)
  grid, shape = grid_of(spec), data.shape
  kernel = samplers.make(spec.sampler.name, spec.sampler.options(), build.schedule(spec.schedule))
  plan, _ = kernel.plan(grid, shape)

  def draw(shared, part):
    seed, ids, plan = shared
    return drawing.sample_batch(
      kernel, bind_machine(spec, name, size, True)(part), grid, plan, seed, ids, None, shape
    )[0]

  mapped = parallel.over_devices(draw)
  part = (
    parallel.split_uneven(images, 0),
    parallel.split_uneven(np.zeros(len(images), np.float32), -np.inf),
  )
  out, at_once = [], min(count, 25)
  with tqdm(total=count, desc=f'machine {name}', unit='image', dynamic_ncols=True) as bar:
    for start in range(0, count, at_once):
      ids = np.minimum(np.arange(start, start + at_once), count - 1).astype(np.uint32)
      out.append(
        parallel.unreplicate(mapped(parallel.replicate((np.uint32(spec.seed), ids, plan)), part))
      )
      bar.update(min(at_once, count - start))
  return base.to_image(np.concatenate(out)[:count])


def stored_samples(
  spec: specs.Spec, data: base.Data, name: str, size: Any, workdir: str
) -> np.ndarray:
  """machine_samples for all pairs, from the workdir where an earlier run left them."""
  parts = (
    name,
    size,
    spec.sampler,
    spec.schedule,
    spec.net.padding,
    spec.seed,
    spec.creativity.images,
    spec.creativity.pairs,
    spec.data,
  )
  path = os.path.join(
    workdir, 'machines', f'{name}_{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}.npz'
  )
  if os.path.exists(path):
    with np.load(path) as stored:
      return stored['arr_0']
  out = machine_samples(spec, data, name, size, spec.creativity.pairs)
  if parallel.is_main():
    os.makedirs(os.path.dirname(path), exist_ok=True)
    files.write(path, lambda temporary: np.savez(temporary, out))
  return out


def trajectories(spec: specs.Spec, data: base.Data, denoiser: Denoiser, count: int) -> np.ndarray:
  """x at the time of each step, [steps, count, H, W, C]: the states that a denoiser is asked
  about."""
  grid = grid_of(spec)
  kernel = samplers.make(spec.sampler.name, spec.sampler.options(), build.schedule(spec.schedule))
  plan, _ = kernel.plan(grid, data.shape)
  keys = noise.sample_keys(spec.seed, np.arange(count, dtype=np.uint32))
  start = jnp.asarray(grid.b_t[0], jnp.float32) * noise.initial(keys, data.shape)
  path = jax.jit(
    lambda x, plan: (
      run_sampler(
        kernel,
        denoiser,
        grid,
        plan,
        x,
        lambda n: noise.at_step(keys, n, data.shape),
        jnp.zeros(count, jnp.int32),
        keep='all',
      ).path
    )
  )(start, plan)
  return np.concatenate([start[None], path[:-1]])


def calibrated(
  spec: specs.Spec, data: base.Data, denoiser: Denoiser, states: np.ndarray, name: str
) -> calibrate.Calibration:
  """Patch sizes of a machine along trajectories (`states`) of a network."""
  arrays = machine_images(spec, data)
  priors = np.zeros(len(arrays), np.float32)
  labels = np.zeros(states.shape[1], np.int32)
  eps = lambda bound: jax.jit(lambda x, time, arrays: bound(arrays)(x, time, labels).eps)

  def machine(size):
    answer = eps(bind_machine(spec, name, size, False))
    return lambda x, time: answer(x, time, (arrays, priors))

  network = eps(lambda _: denoiser)
  return calibrate.calibrate(
    states, grid_of(spec), lambda x, time: network(x, time, ()), machine, spec.creativity.sizes
  )


def quality(spec: specs.Spec, data: base.Data, images: np.ndarray) -> dict[str, Estimate]:
  """Consistency and novelty of the crafted set; of any set the distance to the training images."""
  out = {}
  if spec.data.name == 'crafted':
    reading = crafted.read(images)
    sound = crafted.consistent(reading) & reading.recognised
    out = {
      'consistent': compare.share(crafted.consistent(reading)),
      'recognised': compare.share(reading.recognised),
      'chance': crafted.chance(reading),
    }
    if len(images) >= 100:
      out['consistent of 100'] = compare.share(crafted.consistent(reading)[:100])
    if sound.any():
      out['novel'] = compare.share(crafted.novel(reading)[sound])
  return {**out, **compare.memorised(images, data.train, data.test)}


def evaluate(spec: specs.Spec, data: base.Data, workdir: str, command: str) -> None:
  """--mode=evaluate: samples of all networks and machines, results.json, figures and
  report.html."""
  wanted, pairs = spec.creativity, spec.creativity.pairs
  networks, denoisers = {}, {}
  for final in wanted.networks:
    one, folder = network_spec(spec, final), os.path.join(workdir, final)
    weights = build.weights(one, data, folder)
    source = drawing.drawer(
      drawing.fitting(one, spec.sample.count),
      data,
      weights,
      build.tree_hash(weights),
      one.sampler,
    )
    with np.load(
      drawing.write(one, data, source, one.sampler, spec.sample.count, folder, command).path
    ) as file:
      networks[final] = file['arr_0']
    denoisers[final] = build.denoiser(one, data)(weights)
  states = {
    final: trajectories(spec, data, denoiser, pairs) for final, denoiser in denoisers.items()
  }
  first = wanted.networks[0]
  calibrations, machines = {}, {}
  for name in wanted.machines:
    size = wanted.sizes[0]
    if name not in score_machines.WHOLE:
      calibrations[name] = calibrated(
        spec, data, denoisers[first], states[first][:, : wanted.probes], name
      )
      size = calibrations[name].sizes
      print(f'{name}: patch sizes ' + ', '.join(f'{k} to b = {b:.3g}' for b, k in size), flush=True)
    machines[name] = stored_samples(spec, data, name, size, workdir)
  fixed = {
    size: stored_samples(spec, data, FIXED[spec.net.padding], size, workdir)
    for size in wanted.sizes
  }
  result = {
    'quality': {
      **{name: quality(spec, data, x) for name, x in networks.items()},
      **{f'machine {name}': quality(spec, data, x) for name, x in machines.items()},
    },
    'agreement': {
      final: {name: compare.agreement(made, x[:pairs]) for name, made in machines.items()}
      for final, x in networks.items()
    },
    'baselines': {final: compare.baselines(x[:pairs], data.train) for final, x in networks.items()},
    'fixed': {size: quality(spec, data, x) for size, x in fixed.items()},
    'early': {final: early(spec, denoiser, states[final]) for final, denoiser in denoisers.items()},
  }
  middle = np.argsort(grid_of(spec).b_t)[[len(grid_of(spec).b_t) // 4, len(grid_of(spec).b_t) // 2]]
  maps = {}
  for final, denoiser in denoisers.items():
    sensitivity, probes = locality.sensitivity(denoiser), states[final][:, : wanted.probes]
    maps[final] = [
      sensitivity(probes[n], time_at(spec, n), np.zeros(wanted.probes, np.int32)) for n in middle
    ]
  known = data.train[: wanted.images or None]
  size = min(wanted.sizes)
  traces = {
    name: (
      x[:6],
      provenance.trace(base.to_model(x[:6]), base.to_model(known), size, spec.net.padding, 'all'),
    )
    for name, x in {
      **{f'CNN {final}': x for final, x in networks.items()},
      **{f'machine {name}': x for name, x in machines.items()},
    }.items()
  }
  if not parallel.is_main():
    return
  shared = records.common(spec, command)
  records.add(
    workdir,
    [
      {
        'kind': 'creativity',
        'sampler': spec.sampler.name,
        'metric': metric,
        'value': plain(value),
        'seed': spec.seed,
        'n': spec.sample.count,
        'pairs': pairs,
        **shared,
      }
      for metric, value in {
        **result,
        'patch sizes': {name: found.sizes for name, found in calibrations.items()},
        'cosines': {name: found.cosines.tolist() for name, found in calibrations.items()},
        'reach': {name: [locality.reach(part) for part in found] for name, found in maps.items()},
        'pieces': {
          name: float(np.mean(provenance.pieces(found))) for name, (_, found) in traces.items()
        },
      }.items()
    ],
  )
  figures.write(
    workdir,
    spec,
    command,
    shared['config'],
    figures.Found(
      networks,
      machines,
      fixed,
      result,
      calibrations,
      maps,
      [float(grid_of(spec).b_t[n]) for n in middle],
      traces,
      known,
      grid_of(spec).b_t,
      FIXED[spec.net.padding],
      PUBLISHED,
    ),
  )
  print(f'report: {os.path.join(workdir, "report.html")}')


def time_at(spec: specs.Spec, step: int) -> Time:
  """Time of a step, float32."""
  return jax.tree.map(lambda value: np.float32(value[step]), grid_of(spec).now)


def early(spec: specs.Spec, denoiser: Denoiser, states: np.ndarray) -> dict[str, list[float]]:
  """Share of consistent x_0 predictions at each step of the crafted set, and that of independent
  cells: when the theme is decided."""
  if spec.data.name != 'crafted':
    return {}
  predict = jax.jit(lambda x, time: denoiser(x, time, jnp.zeros(len(x), jnp.int32)).x0)
  readings = [
    crafted.read(base.to_image(predict(x, time_at(spec, n)))) for n, x in enumerate(states)
  ]
  return {
    'consistent': [float(np.mean(crafted.consistent(reading))) for reading in readings],
    'chance': [crafted.chance(reading) for reading in readings],
  }


def plain(value: Any) -> Any:
  """Estimates as dicts, for JSON."""
  if isinstance(value, Estimate):
    return {'value': value.value, 'interval': [value.low, value.high]}
  if isinstance(value, dict):
    return {str(key): plain(entry) for key, entry in value.items()}
  return value
