"""Where the time of a training step goes: convolutions of the CIFAR-10 network of DDPM, forward, on
images that are padded already, and for both gradients; its group normalisations and its attention;
the masks of dropout, and the optimiser; and what net.remat saves in memory.

  python -m experiments.benchmarks.training_profile
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.benchmarks import training_speed
from experiments.lib import common
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build, loss
from gmm_diffusion.nets import blocks


def seconds(call: Callable[..., Any], *args, repeats: int) -> float:
  """Median time of a call that is compiled already."""
  found = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    jax.block_until_ready(call(*args))
    found.append(time.perf_counter() - start)
  return float(np.median(found[1:]))


def convolutions(jaxpr: Any) -> Iterator[Any]:
  """All convolutions of a traced function, those of functions inside included."""
  for equation in jaxpr.eqns:
    if equation.primitive is jax.lax.conv_general_dilated_p:
      yield equation
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda part: hasattr(part, 'eqns')
    ):
      if hasattr(inner, 'eqns'):
        yield from convolutions(getattr(inner, 'jaxpr', inner))


def of_convolutions(spec: Any, data: Any, repeats: int) -> dict[str, float]:
  """Seconds of all convolutions of the network, alone, forward and for each gradient."""
  module = build.net(spec, data)
  params = jax.eval_shape(lambda: build.init(module, data.shape, 0))
  x = jnp.zeros((spec.train.batch, *data.shape))
  traced = jax.make_jaxpr(lambda params: module.apply(params, x, jnp.zeros(len(x))))(params)
  kinds = collections.Counter(
    (*(var.aval.shape for var in one.invars), tuple(one.params.items()))
    for one in convolutions(traced.jaxpr)
  )
  total: dict[str, float] = collections.defaultdict(float)
  for (items, kernel, options), count in tqdm(kinds.items(), desc='convolutions'):
    fn = functools.partial(jax.lax.conv_general_dilated_p.bind, **dict(options))
    x, w = jnp.ones(items), jnp.ones(kernel)
    y = jax.jit(fn)(x, w)
    calls = {
      'forward': lambda x, w, y, fn=fn: fn(x, w),
      'gradient of the inputs': lambda x, w, y, fn=fn: jax.vjp(lambda x: fn(x, w), x)[1](y),
      'gradient of the weights': lambda x, w, y, fn=fn: jax.vjp(lambda w: fn(x, w), w)[1](y),
    }
    for name, call in calls.items():
      total[name] += count * seconds(jax.jit(call), x, w, y, repeats=repeats)
    shape, bare = padded_before(items, options)
    unpadded = jax.jit(functools.partial(jax.lax.conv_general_dilated_p.bind, **bare))
    total['forward, images padded before'] += count * seconds(
      unpadded, jnp.ones(shape), w, repeats=repeats
    )
  return dict(total)


def padded_before(items: tuple[int, ...], options: Any) -> tuple[tuple[int, ...], Any]:
  """The same convolution on images that are padded already: their shape, and its options."""
  given = dict(options)
  over = [sum(sides) for sides in given['padding']]
  shape = items[0], *(n + more for n, more in zip(items[1:-1], over, strict=True)), items[-1]
  return shape, {**given, 'padding': tuple((0, 0) for _ in over)}


def of_layers(spec: Any, data: Any, repeats: int) -> dict[str, float]:
  """Seconds of all layers of a kind, alone, forward and forward with the gradient."""
  module, found = build.net(spec, data), collections.Counter()

  def note(call, args, kwargs, context):
    if isinstance(context.module, (blocks.GroupNorm, blocks.AttentionBlock)):
      found[context.module.clone(parent=None, name=None), args[0].shape] += 1
    return call(*args, **kwargs)

  x = jnp.zeros((spec.train.batch, *data.shape))
  with nn.intercept_methods(note):
    jax.eval_shape(lambda: module.init(jax.random.key(0), x, jnp.zeros(len(x))))
  total: dict[str, float] = collections.defaultdict(float)
  for (layer, shape), count in tqdm(found.items(), desc='layers'):
    name = 'group norms' if isinstance(layer, blocks.GroupNorm) else 'attention blocks'
    x = jnp.ones(shape)
    params = layer.init(jax.random.key(0), x)
    apply = lambda params, x, layer=layer: layer.apply(params, x)
    both = jax.grad(lambda params, x, apply=apply: jnp.sum(apply(params, x) ** 2), (0, 1))
    for what, fn in (('forward', apply), ('forward and gradients', both)):
      total[f'{name}, {what}'] += count * seconds(jax.jit(fn), params, x, repeats=repeats)
  return dict(total)


def memory(remat: bool) -> float:
  """MB that are kept for the gradient of the network of configs/folder.py, its weights included."""
  spec = common.spec_of('folder', ['data.name=none', 'train.batch=16', f'net.remat={remat}'])
  data = sources.load(spec.data)
  module = build.net(spec, data)
  params = jax.eval_shape(lambda: build.init(module, data.shape, 0))
  batch = jnp.zeros((16, *data.shape)), np.zeros(16, int), np.arange(16)
  fn = lambda params: loss.denoising_loss(spec, data)(params, 0, batch)[0]
  kept = jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(fn, params)[1], params))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in kept) / 1e6


def of_optimiser(spec: Any, data: Any, repeats: int) -> float:
  """Seconds of all that a step does with a gradient."""
  linear = lambda params, step, batch: (sum(jnp.sum(p) for p in jax.tree.leaves(params)), {})
  batch = (np.zeros(spec.train.batch, np.float32),)
  return seconds(training_speed.updates(spec, data, linear, batch), repeats=repeats)


def main():
  parser = common.parser(__doc__, 'runs/training_profile')
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  spec = common.spec_of('cifar10:train', ['data.name=none', f'train.batch={args.batch}'])
  plain = dataclasses.replace(spec, net=dataclasses.replace(spec.net, dropout=0.0))
  data = sources.load(spec.data)
  images = np.random.RandomState(0).randint(0, 256, (args.batch, 32, 32, 3)).astype(np.uint8)
  timed = lambda spec: seconds(
    training_speed.ours(spec, images, data)['step'], repeats=args.repeats
  )
  rows = {
    'step': timed(spec),
    'step without dropout': timed(plain),
    'optimiser': of_optimiser(spec, data, args.repeats),
    **{f'convolutions, {k}': v for k, v in of_convolutions(spec, data, args.repeats).items()},
    **of_layers(spec, data, args.repeats),
  }
  for name, value in rows.items():
    print(f'{name:40} {value:.3f} s')
  megabytes = {name: memory(remat) for name, remat in (('plain', False), ('net.remat', True))}
  print(', '.join(f'{name} {value:.0f} MB' for name, value in megabytes.items()))
  common.save(
    args.workdir, 'training_profile', {'batch': args.batch, 'seconds': rows, 'megabytes': megabytes}
  )


if __name__ == '__main__':
  main()
