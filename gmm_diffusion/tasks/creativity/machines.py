"""Score machines with the settings of a run: calibration, samples."""

import functools
import os
from typing import Any

import jax
import numpy as np

from gmm_diffusion import files, parallel, specs
from gmm_diffusion.data import base
from gmm_diffusion.denoisers import score_machines
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.tasks.creativity import calibrate
from gmm_diffusion.tasks.creativity.networks import Network
from gmm_diffusion.types import Denoiser, StepGrid, Time

# by padding: the machine that knows what the plain CNN knows, shown at one patch size for all noise
# levels
FIXED = {'zero': 'bbELS', 'circular': 'ELS'}


@functools.cache
def grid_of(spec: specs.Spec) -> StepGrid:
  """The steps of all samples."""
  return build.grid(build.schedule(spec.schedule), spec.sampler)


def time_at(spec: specs.Spec, step: int) -> Time:
  """Time of a step, float32."""
  return jax.tree.map(lambda value: np.float32(value[step]), grid_of(spec).now)


def bind_machine(spec: specs.Spec, name: str, size: Any, shared: bool):
  """(images, log_priors) -> Denoiser; shared: over the devices, inside parallel.over_devices."""
  collectives = score_machines.Collectives(parallel.largest, parallel.total) if shared else None
  return lambda arrays: score_machines.make(
    name, arrays[0], size, spec.net.padding, log_priors=arrays[1], collectives=collectives
  )


def known(spec: specs.Spec, data: base.Data) -> np.ndarray:
  """The training images that machines see, uint8 [N, H, W, C]."""
  return data.train[: spec.creativity.images or None]


def machine_samples(
  spec: specs.Spec, data: base.Data, name: str, size: Any, count: int
) -> np.ndarray:
  """Samples of a machine with ids 0..count-1, uint8: those of a network that start from the same
  noise.

  The training images are split over all devices; each step joins what the devices find.
  """
  images = base.to_model(known(spec, data))
  parts = (
    parallel.split_uneven(images, 0),
    parallel.split_uneven(np.zeros(len(images), np.float32), -np.inf),
  )
  made, bind = drawing.prepare(spec, spec.sampler, data), bind_machine(spec, name, size, True)
  return base.to_image(
    drawing.draw_over_parts(made, bind, parts, spec.seed, count, f'machine {name}')
  )


def stored_samples(run: Run, name: str, size: Any) -> np.ndarray:
  """machine_samples for all pairs, from the workdir where an earlier run left them for the same
  training images."""
  spec, count = run.spec, run.spec.creativity.pairs
  settings = name, size, spec.sampler, spec.schedule, spec.net.padding, spec.seed, count
  mark = files.fingerprint(*settings, known(spec, run.data))
  path = os.path.join(run.workdir, 'machines', f'{name}_{mark}.npz')
  found = files.load(path, mark)
  if found is None:  # all hosts draw together, so none may wait for the lock of another
    found = {'x': machine_samples(spec, run.data, name, size, count)}
    if parallel.is_main():
      files.save(path, mark, found)
  return found['x']


def calibrated(
  spec: specs.Spec, data: base.Data, denoiser: Denoiser, states: np.ndarray, name: str
) -> calibrate.Calibration:
  """Patch sizes of a machine along trajectories (`states`) of a network."""
  arrays = base.to_model(known(spec, data))
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


def draw(
  run: Run, network: Network
) -> tuple[dict[str, np.ndarray], dict[str, calibrate.Calibration]]:
  """Samples of all machines, with the patch sizes that make them most like a network, and these
  sizes."""
  wanted, samples, calibrations = run.spec.creativity, {}, {}
  for name in wanted.machines:
    size: Any = wanted.sizes[0]
    if name not in score_machines.WHOLE:
      probes = network.states[:, : wanted.probes]
      calibrations[name] = calibrated(run.spec, run.data, network.denoiser, probes, name)
      size = calibrations[name].sizes
      print(f'{name}: patch sizes ' + ', '.join(f'{k} to b = {b:.3g}' for b, k in size), flush=True)
    samples[name] = stored_samples(run, name, size)
  return samples, calibrations
