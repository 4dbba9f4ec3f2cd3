"""Training a denoiser to agree with itself where the data is noisy.

  (1) D(x_t, t) = E[D(x_s, s) | x_t] for s less noisy than t, x_s by the denoiser's own steps
  (2) E[(D(x_s', s) - D(x_t, t)) . (D(x_s'', s) - D(x_t, t))], two independent x_s', x_s''

(1) holds for E[x_0 | x_t], and only for it among denoisers that are right at the level of the data
[Consistent diffusion meets Tweedie, arXiv 2404.10177]. (2) is the square of what is amiss in (1),
without the bias that the square of a mean of few ends has.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from gmm_diffusion.maths import training
from gmm_diffusion.types import Array, Time

STEPS = 3  # from x_t to an end
# (x [B, ...], times [B]) -> predictions of x_0 [B, ...]
Predict = Callable[[Array, Time], Array]


def walk(predict: Predict, x: Array, path: Sequence[Time], keys: Array) -> Array:
  """x [B, ...] at the first of the times [B] each, taken to the last one by the reverse process of
  DDPM, with noise by the key of each item [B]. No gradient passes."""
  for n, (now, after) in enumerate(zip(path[:-1], path[1:], strict=True)):
    draw = lambda key, n=n: jax.random.normal(jax.random.fold_in(key, n), x.shape[1:])
    z = jax.vmap(draw)(keys)
    x = training.earlier(x, predict(x, now), z, now, after)
  return jax.lax.stop_gradient(x)


def disagreement(
  predict: Predict, x: Array, path: Sequence[Time], keys: tuple[Array, Array]
) -> Array:
  """(2) without the expectation, a mean over the numbers of an item: [B]; it may be negative. The
  gradient passes through the ends alone, so that they learn from x_t and not x_t from them.

  Args:
    predict: the denoiser.
    x: items [B, ...] at the first time of the path.
    path: times [B] each, less and less noisy, from t to s.
    keys: of the noise of the two ends, one for each item [B].
  """
  ends = jnp.concatenate([walk(predict, x, path, key) for key in keys])
  twice = jax.tree.map(lambda one: jnp.concatenate([one, one]), path[-1])
  there, other = jnp.split(predict(ends, twice), 2)
  here = jax.lax.stop_gradient(predict(x, path[0]))
  return jnp.mean((there - here) * (other - here), axis=tuple(range(1, x.ndim)))


def loss(predict: Predict, x_n: Array, times: Time, level: int, keys: Array) -> Array:
  """(2) over the squared noise level of the data, a mean over items: a scalar.

  t is one of the times above `level`, up to twice its number, where the data teach the denoiser,
  and s one below `level`, both drawn evenly.

  Args:
    predict: the denoiser.
    x_n: items [B, ...] at the time `level`.
    times: all training times, least noise first.
    level: the number of the time of the data, at least 1 and not the last.
    keys: one for each item [B].
  """
  most = min(2 * level, len(times.t) - 1)

  def drawn(key):
    one, other, *ways = jax.random.split(key, 5)
    t = jax.random.randint(one, (), level + 1, most + 1)
    return t, jax.random.randint(other, (), 0, level), ways

  t, s, (added, *ends) = jax.vmap(drawn)(keys)
  at = lambda index: jax.tree.map(lambda part: jnp.asarray(part)[index], times)
  path = [at(t + (s - t) * k // STEPS) for k in range(STEPS + 1)]
  z = jax.vmap(lambda key: jax.random.normal(key, x_n.shape[1:]))(added)
  x = training.noisier(x_n, z, path[0], at(level))
  scale = (times.a[level] / times.b[level]) ** 2
  return scale * jnp.mean(disagreement(predict, x, path, tuple(ends)))
