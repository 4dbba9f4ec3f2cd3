"""Score machines with the settings of a run: samples, trajectories of a network, calibration."""

import functools
import hashlib
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gmm_diffusion import files, parallel, samplers, specs
from gmm_diffusion.data import base
from gmm_diffusion.denoisers import score_machines
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.maths import grids, noise
from gmm_diffusion.samplers.run import run as run_sampler
from gmm_diffusion.tasks.creativity import calibrate
from gmm_diffusion.types import Denoiser, StepGrid, Time


@functools.cache
def grid_of(spec: specs.Spec) -> StepGrid:
  """The steps of all samples."""
  return grids.make(
    build.schedule(spec.schedule), spec.sampler.steps, spec.sampler.grid, spec.sampler.end
  )


def time_at(spec: specs.Spec, step: int) -> Time:
  """Time of a step, float32."""
  return jax.tree.map(lambda value: np.float32(value[step]), grid_of(spec).now)


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
