"""The networks that are compared: one for each final layer, each in a folder of its own."""

import dataclasses
import os
from typing import NamedTuple

import numpy as np

from gmm_diffusion import files
from gmm_diffusion.engine import build, drawing, loss, sample_sets
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.types import Denoiser


class Network(NamedTuple):
  """samples: uint8 [sample.count, H, W, C]; states: x at the time of each step of the first
  creativity.pairs of them, [N, pairs, H, W, C]."""

  samples: np.ndarray
  states: np.ndarray
  denoiser: Denoiser


def of(run: Run, final: str) -> Run:
  """The run of the network with this final layer."""
  net = dataclasses.replace(run.spec.net, final=final)
  folder = os.path.join(run.workdir, final)
  return run._replace(spec=dataclasses.replace(run.spec, net=net), workdir=folder)


def train(run: Run) -> None:
  """Trains every network; resumes."""
  for final in run.spec.creativity.networks:
    print(f'network {final}', flush=True)
    one = of(run, final)
    files.make_workdir(one.workdir)
    loss.train(one.spec, one.data, one.workdir)


def draw(run: Run, final: str) -> Network:
  """A trained network with its samples, which are kept in its folder."""
  one = of(run, final)
  weights = build.weights(one.spec, one.data, one.workdir)
  model = drawing.Model(one.spec, one.data, weights)
  made = drawing.prepare(one.spec, one.spec.sampler, one.data)
  count = one.spec.sample.count
  stored = sample_sets.write(one, model.drawer(made, count), count)
  with np.load(stored.path) as file:
    samples = file['arr_0']
  states = model.states(made, one.spec.creativity.pairs)
  return Network(samples, states, build.denoiser(one.spec, one.data)(weights))
