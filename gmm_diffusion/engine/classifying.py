"""Training a classifier of noisy images, which guides a denoiser [ADM section 4].

(1) L = -E log p(y | x_t),   x_t = a_t x_0 + b_t eps,   t drawn as for a denoiser
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from gmm_diffusion import files, parallel, specs
from gmm_diffusion.data import base
from gmm_diffusion.engine import build, loss, trainer
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, marginals, noise
from gmm_diffusion.metrics.estimates import of_share
from gmm_diffusion.reports import plots
from gmm_diffusion.types import Time

RATIOS = np.geomspace(0.05, 20, 9)  # b / a where the accuracy is measured
COUNT = 1024  # images there, at most
ACCURACY = 'accuracy'  # .json and .png in the workdir


def cross_entropy(spec: specs.Spec, data: base.Data) -> Callable[[Any, Any, Any], Any]:
  """Equation (1): loss_fn(params, step, batch) of (images, labels, positions in the whole batch).

  What is drawn for an item depends on (seed, step, position) alone.
  """
  module, process = build.classifier(spec, data), build.schedule(spec.schedule)
  times = process.at(process.training_times)
  draw_times = loss.time_sampler(spec, times)
  table = jax.tree.map(lambda x: np.asarray(x, np.float32), times)

  def loss_fn(params, step, batch):
    x0, labels, position = batch
    x0, root, items, keys = loss.begin(spec.seed, step, x0, position)
    x0 = loss.mirror(spec.data, items)(x0)
    eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(keys[:, 1])
    index = draw_times(root, keys[:, 0], position)
    time = jax.tree.map(lambda x: jnp.asarray(x)[index], table)
    inputs, t = process.network_input(marginals.diffuse(x0, eps, time), time)
    logits = module.apply(params, inputs, t)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  return loss_fn


def train(spec: specs.Spec, data: base.Data, workdir: str) -> None:
  """--mode=train with train.what=classifier: to spec.train.steps, from the latest checkpoint of the
  workdir if there is one; then the accuracy by noise level, in accuracy.json and accuracy.png.

  Raises:
    UserError: on data without classes, a bad setting, or a checkpoint of something else.
  """
  module, optimiser = build.classifier(spec, data), trainer.make_optimiser(spec.train)
  if not len(data.train):
    raise UserError("train.what 'classifier' needs images; this config has none: set data.name")
  trainer.check_batch(spec.train)

  def fresh():
    params = module.init(jax.random.key(spec.seed), jnp.zeros((1, *data.shape)), jnp.zeros(1))
    return trainer.first(params, optimiser)

  trainer.fit(
    spec.train,
    trainer.once(fresh),
    lambda: trainer.updater(spec.train, optimiser, cross_entropy(spec, data)),
    lambda step, mine: base.labelled_batch(data, spec.seed, step, spec.train.batch, mine),
    build.about_classifier(spec, data),
    workdir,
    ahead=spec.data.stream,
  )
  params = build.own_classifier(spec, data, workdir)  # by all hosts together
  if parallel.is_main():
    _report(spec, data, workdir, params)


def accuracy(
  spec: specs.Spec, data: base.Data, params: Any, images: Any, labels: np.ndarray
) -> list[dict[str, Any]]:
  """How often the classifier names the class of noisy images [N, H, W, C], at each of RATIOS that
  the schedule has: [{'ratio', 'value', 'interval'}], with the same noise at all of them."""
  module, process = build.classifier(spec, data), build.schedule(spec.schedule)

  def right(params, batch):
    x0, labels, ids, *time = batch
    eps = noise.at_step(noise.sample_keys(0, ids), 0, x0.shape[1:], x0.dtype).normal
    inputs, t = process.network_input(marginals.diffuse(x0, eps, Time(*time)), Time(*time))
    return jnp.argmax(module.apply(params, inputs, t), -1) == labels

  call, shared = parallel.map_batches(right, 64), parallel.replicate(params, local=True)
  x0, ids, out = base.to_model(images), np.arange(len(images), dtype=np.uint32), []
  times = grids.nearest(process, RATIOS)
  for t in tqdm(times, desc='accuracy by noise level', unit='level', dynamic_ncols=True):
    time = process.at(t)
    each = [np.full(len(x0), part, np.float32) for part in time]
    found = of_share(call(shared, (x0, labels, ids, *each)))
    out.append({'ratio': float(time.b / time.a), **found.record()})
  return out


def _report(spec, data, workdir, params):
  held_out = len(data.test) > 0
  images, labels = (data.test, data.test_labels) if held_out else (data.train, data.train_labels)
  index = np.linspace(0, len(images) - 1, min(COUNT, len(images))).astype(int)
  rows = accuracy(spec, data, params, images[index], labels[index])
  what = f'{len(index)} {"held-out" if held_out else "training"} images'
  path = os.path.join(workdir, ACCURACY)
  files.write_json(path + '.json', {'images': what, 'classes': data.classes, 'rows': rows})
  figure, axes = plots.new(size=(6, 3.4))
  value = [row['value'] for row in rows]
  low, high = zip(*(row['interval'] for row in rows))
  axes[0, 0].plot([row['ratio'] for row in rows], value, marker='o', markersize=3)
  axes[0, 0].fill_between([row['ratio'] for row in rows], low, high, alpha=0.2)
  axes[0, 0].axhline(1 / data.classes, color='grey', linestyle=':')
  axes[0, 0].set(xscale='log', xlabel='noise level b / a', ylabel='named rightly', ylim=(0, 1.02))
  axes[0, 0].set_title(f'{what}; dotted: by chance', fontsize=9)
  axes[0, 0].grid(alpha=0.3)
  plots.png(figure, path + '.png')
  for row in rows:
    print(f'b / a = {row["ratio"]:6.3g}: {row["value"]:.3f} of {what} named rightly')
  print(f'guide with --config.classifier.trained={workdir} --config.classifier.scale=1; {path}.png')
