"""What samples are: consistency and novelty of the crafted set, agreement of machines and networks,
when the theme is decided, how far networks look."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion import specs
from gmm_diffusion.data import base, crafted
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.metrics.estimates import Estimate, of_share
from gmm_diffusion.tasks.creativity import compare, locality, machines, provenance
from gmm_diffusion.tasks.creativity.networks import Network
from gmm_diffusion.types import Denoiser

TRACED = 6  # samples of each whose pixels are traced to training images


class Maps(NamedTuple):
  """Sensitivity maps [H, W] of each network at some noise levels (see locality.py)."""

  levels: list[float]
  of: dict[str, list[np.ndarray]]


def quality(spec: specs.Spec, data: base.Data, images: np.ndarray) -> dict[str, Estimate | float]:
  """Consistency and novelty of the crafted set; of any set the distance to the training images."""
  out: dict[str, Any] = {}
  if spec.data.name == 'crafted':
    reading = crafted.read(images)
    sound = crafted.consistent(reading) & reading.recognised
    out = {
      'consistent': of_share(crafted.consistent(reading)),
      'recognised': of_share(reading.recognised),
      'chance': crafted.chance(reading),
    }
    if len(images) >= 100:
      out['consistent of 100'] = of_share(crafted.consistent(reading)[:100])
    if sound.any():
      out['novel'] = of_share(crafted.novel(reading)[sound])
  return {**out, **compare.memorised(images, data.train, data.test)}


def early(spec: specs.Spec, denoiser: Denoiser, states: np.ndarray) -> dict[str, list[float]]:
  """Share of consistent x_0 predictions at each step of the crafted set, and that of independent
  cells: when the theme is decided."""
  if spec.data.name != 'crafted':
    return {}
  predict = jax.jit(lambda x, time: denoiser(x, time, jnp.zeros(len(x), jnp.int32)).x0)
  readings = [
    crafted.read(base.to_image(predict(x, machines.time_at(spec, n)))) for n, x in enumerate(states)
  ]
  return {
    'consistent': [float(np.mean(crafted.consistent(reading))) for reading in readings],
    'chance': [crafted.chance(reading) for reading in readings],
  }


def measure(
  run: Run,
  networks: dict[str, Network],
  made: dict[str, np.ndarray],
  fixed: dict[int, np.ndarray],
) -> dict[str, dict]:
  """Everything that is a number, by what it says: quality, agreement, baselines, fixed, early.

  Args:
    run: whose data the samples are compared with.
    networks: by final layer.
    made: samples of machines by name.
    fixed: samples of a machine with one patch size, by size.
  """
  spec, data, pairs = run.spec, run.data, run.spec.creativity.pairs
  everything = {final: network.samples for final, network in networks.items()}
  everything.update({f'machine {name}': x for name, x in made.items()})
  first = {final: network.samples[:pairs] for final, network in networks.items()}
  return {
    'quality': {name: quality(spec, data, x) for name, x in everything.items()},
    'agreement': {
      final: {name: compare.agreement(other, x) for name, other in made.items()}
      for final, x in first.items()
    },
    'baselines': {final: compare.baselines(x, data.train) for final, x in first.items()},
    'fixed': {size: quality(spec, data, x) for size, x in fixed.items()},
    'early': {
      final: early(spec, network.denoiser, network.states) for final, network in networks.items()
    },
  }


def sensitivity(run: Run, networks: dict[str, Network]) -> Maps:
  """How far the networks look, at a quarter and at half of the steps from the last."""
  noise, probes = np.asarray(machines.grid_of(run.spec).b_t), run.spec.creativity.probes
  steps = np.argsort(noise)[[len(noise) // 4, len(noise) // 2]]
  maps = {}
  for final, network in networks.items():
    at, labels = locality.sensitivity(network.denoiser), np.zeros(probes, np.int32)
    maps[final] = [
      at(network.states[n, :probes], machines.time_at(run.spec, n), labels) for n in steps
    ]
  return Maps([float(noise[n]) for n in steps], maps)


def trace(run: Run, images: np.ndarray) -> provenance.Provenance:
  """Where the pixels of the first TRACED images come from, by the smallest patches."""
  known = base.to_model(machines.known(run.spec, run.data))
  size, padding = min(run.spec.creativity.sizes), run.spec.net.padding
  return provenance.trace(base.to_model(images[:TRACED]), known, size, padding, 'all')


def plain(value: Any) -> Any:
  """Estimates as dicts, for JSON."""
  if isinstance(value, Estimate):
    return value.record()
  if isinstance(value, dict):
    return {str(key): plain(entry) for key, entry in value.items()}
  return value
