"""The bound on the likelihood of held-out images, for networks that say the variance of the reverse
step: for the page of --mode=evaluate."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gmm_diffusion import specs
from gmm_diffusion.data import base
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.maths import marginals, noise, variances
from gmm_diffusion.metrics.estimates import Estimate, of_mean
from gmm_diffusion.reports import page
from gmm_diffusion.types import Time

COUNT = 128  # images
EXACT, PARTS = 16, 48  # first steps that are all looked at, and parts of the others
SHARES: dict[str, float | None] = {'small': 0.0, 'large': 1.0, 'learned': None}
HOW = (
  'Bits for each pixel and channel that the chain through all training times needs for held-out '
  'images, at most, with the variance of each step that DDPM fixes (small or large) or the network '
  'says (learned). The mean of each step is the same; it is not clipped, and there is no guidance.'
)


def possible(spec: specs.Spec, data: base.Data) -> bool:
  """Whether a network of images says variances, and there are held-out images."""
  own = spec.denoiser.name == 'network' and spec.net.learn_sigma and not spec.autoencoder.name
  discrete = build.schedule(spec.schedule).discrete
  return own and discrete and data.is_image and len(data.test) > 1


def times(count: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
  """Numbers of training times for `count` items, and how many times each stands for: [R, count] and
  [R]. The first are all there; of each part of the others every item has one at random."""
  first = min(EXACT, steps)
  edges = np.unique(np.linspace(first, steps, PARTS + 1).astype(int))
  random = np.random.RandomState(0)
  rows = [np.full(count, n) for n in range(first)]
  rows += [random.randint(low, high, count) for low, high in zip(edges, edges[1:], strict=False)]
  return np.stack(rows), np.concatenate([np.ones(first), np.diff(edges)])


def find(model: drawing.Model) -> dict[str, Estimate]:
  """Bits for each element, by the name of the variance; the same noise for all."""
  spec, data = model.spec, model.data
  own = dataclasses.replace(spec.denoiser, clip=False, guidance=1.0, guidance_interval=())
  plain = dataclasses.replace(spec, denoiser=own, classifier=specs.Classifier())
  model, bind = model.on(plain), build.denoiser(plain, data)
  index = np.unique(np.linspace(0, len(data.test) - 1, COUNT).astype(int))
  x0, labels = base.to_model(data.test[index]), data.test_labels[index]
  labels = labels if drawing.takes_labels(spec, data) else np.zeros(len(index), np.int32)
  process = build.schedule(spec.schedule)
  table = process.at(process.training_times), variances.of_training(process)

  def measure(denoiser, x0, ids, cond, time, row):
    # noise of the item and of the time
    keys = jax.vmap(jax.random.fold_in)(noise.sample_keys(0, ids), time.t.astype(jnp.uint32))
    eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:], x0.dtype))(keys)
    found = denoiser(marginals.diffuse(x0, eps, time), time, cond)
    shares = [found.share if one is None else jnp.full_like(x0, one) for one in SHARES.values()]
    each = [variances.bits(x0, found.x0, variances.log_variance(v, row), row) for v in shares]
    return jnp.stack(each, 1)

  last = jax.tree.map(lambda part: part[-1], table[0])
  total = np.asarray(variances.prior_bits(x0, last))[:, None]
  numbers, stands = times(len(index), len(process.training_times))
  ids = np.arange(len(index), dtype=np.uint32)
  for number, count in zip(
    tqdm(numbers, desc='bits', unit='time', dynamic_ncols=True), stands, strict=True
  ):
    pick = lambda part, number=number: np.asarray(part[number], np.float32)
    time, row = (jax.tree.map(pick, part) for part in table)
    total = total + count * model.ask('bits', bind, measure, (x0, ids, labels, Time(*time), row))
  small, large, learned = np.transpose(total)
  each = {'small': small, 'large': large, 'learned': learned}
  each |= {f'learned minus {name}': learned - each[name] for name in ('small', 'large')}
  return {name: of_mean(values) for name, values in each.items()}


def section(found: dict[str, Estimate]) -> page.Section:
  """The section of the page."""
  return 'Likelihood', [
    HOW,
    page.table(['variance', 'bits ↓'], [[name, value] for name, value in found.items()]),
  ]


def record(
  found: dict[str, Estimate], model: drawing.Model, shared: dict[str, Any]
) -> list[dict[str, Any]]:
  """Records of all variances."""
  return [
    {
      'kind': 'bound',
      'sampler': '',  # of the model
      'metric': f'bits, variance {name}',
      'set': 'held-out images',
      **value.record(),
      'n': min(COUNT, len(model.data.test)),
      'weights': model.hash,
      **shared,
    }
    for name, value in found.items()
  ]
