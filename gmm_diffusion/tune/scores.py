"""How far samples are from a reference, for tuning.

  (1) ED(P, Q) = 2 E|X - Y| - E|X - X'| - E|Y - Y'|     X, X' ~ P,  Y, Y' ~ Q   [Szekely & Rizzo]

is zero only where P = Q. A score is the mean of (1) over blocks of features, each divided by its
E|Y - Y'|: pixels, images at half and a quarter of the resolution, and the answers of a random
convolutional network. The features of each network that was trained on the data are one more
block. Together these count nine times as much as all others: they rank samplers as other networks
do that were trained on the data, and pixels do not. One such network is not enough, for a search
finds samples that it alone takes for good. Nor is a mean of several, for it pays a loss in one with
a larger gain in another. So a search for what is better than a sampler at hand follows

  (2) log(sum_g exp(SHARP e_g / goal_g) / G) / SHARP

which is near the largest ratio of the distances e_g to those of that sampler, goal_g, over each
trained network and the sum of all other blocks. What samples are judged with in the end (metrics/)
is none of these.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.maths.kernels import distances
from gmm_diffusion.types import Array

Features = Callable[[Array], list[Array]]
_CHANNELS = (32, 64, 64)  # of the random network, whose sides are halved twice
LEARNED = 0.9  # weight of the features of trained networks; the rest keeps the score proper
SHARP = 8.0  # of the largest ratio
_PLACES = 4  # side of the grid on which its answers are kept


class Reference(NamedTuple):
  """What samples are compared with.

  Attributes:
    blocks: of features of the reference, [M, D] each.
    factors: of each block: its weight, their sum is 1, over E|Y - Y'|.
    within: E|Y - Y'| of each block.
    goal: [G] of (2); None where the score is the sum.
  """

  blocks: Any
  factors: Any
  within: Any
  goal: Any = None


class Score(NamedTuple):
  """A score with what its errors are made of.

  Attributes:
    value: of (1), relative to the spread of the reference, or of (2); 0 is a perfect match.
    own: [n], how much each sample adds: its influence.
    others: [M], the same of each item of the reference.
  """

  value: np.ndarray
  own: np.ndarray
  others: np.ndarray


def features(
  shape: tuple[int, ...], learned: Sequence[Callable[[Array], Array]] = (), seed: int = 0
) -> Features:
  """x [B, *shape] -> blocks of features, [B, D] each; vectors are their own and only block.

  Args:
    shape: of a sample.
    learned: x -> features [B, D] of trained networks, the last blocks.
    seed: of the random network.
  """
  if len(shape) != 3:
    return lambda x: [x.reshape(len(x), -1)]
  kernels = _random_network(shape[-1], seed)

  def apply(x):
    blocks, small = [x], x
    for _ in range(2):
      if min(small.shape[1:3]) >= 4:
        small = _mean_of(small, small.shape[1] // 2, small.shape[2] // 2)
        blocks.append(small)
    answers, h = [], x
    for i, kernel in enumerate(kernels):
      stride = 1 if i == 0 or min(h.shape[1:3]) < 4 else 2
      h = jax.lax.conv_general_dilated(
        h, kernel, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )
      h = jax.nn.leaky_relu(h, 0.2)
      answers.append(_mean_of(h, min(_PLACES, h.shape[1]), min(_PLACES, h.shape[2])))
    flat = lambda block: block.reshape(len(x), -1)
    blocks = [*map(flat, blocks), jnp.concatenate([flat(answer) for answer in answers], 1)]
    return [*blocks, *(network(x) for network in learned)]

  return apply


def _random_network(channels, seed):
  random, kernels = np.random.Generator(np.random.SFC64(seed)), []
  for width in _CHANNELS:
    kernel = random.standard_normal((3, 3, channels, width)) * np.sqrt(2 / (9 * channels))
    kernels.append(jnp.asarray(kernel, jnp.float32))
    channels = width
  return kernels


def _mean_of(x, rows, columns):
  """Means over an even division into rows and columns, [B, H, W, C] -> [B, rows, columns, C]."""

  def along(x, axis, count):
    weights = np.zeros((count, x.shape[axis]), np.float32)
    for i, places in enumerate(np.array_split(np.arange(x.shape[axis]), count)):
      weights[i, places] = 1 / len(places)
    return jnp.moveaxis(jnp.tensordot(x, weights, (axis, 1)), -1, axis)

  return along(along(x, 1, rows), 2, columns)


def reference(features_: Features, y: Array, learned: int = 0) -> Reference:
  """What samples are compared with: y [M, *shape], M at least 2; `learned`: how many of the last
  blocks are those of trained networks."""
  blocks = jax.jit(features_)(jnp.asarray(y, jnp.float32))
  within = [jnp.sum(_off_diagonal(block)) / (len(y) * (len(y) - 1)) for block in blocks]
  rest = len(blocks) - learned
  others = (1 - LEARNED if learned else 1) / rest
  weights = [others] * rest + [LEARNED / max(1, learned)] * learned
  factors = [weight / scale for weight, scale in zip(weights, within, strict=True)]
  return Reference(blocks, factors, within)


def _off_diagonal(block):
  return distances(block, block) * (1 - jnp.eye(len(block), dtype=block.dtype))


def energies(blocks: list[Array], known: Reference) -> list[tuple[Array, Array, Array]]:
  """(value, own [n], others [M]) of Score for each block of features of n samples, times its
  factor; the score is their sum. Differentiable."""
  out = []
  for block, theirs, scale, within in zip(blocks, *known[:3], strict=True):
    n, across = len(block), distances(block, theirs)
    inside = jnp.sum(_off_diagonal(block), 1) / (n - 1)
    value = scale * (2 * jnp.mean(across) - jnp.mean(inside) - within)
    own = scale * 2 * (jnp.mean(across, 1) - inside)
    out.append((value, own, scale * 2 * jnp.mean(across, 0)))
  return out


def energy(blocks: list[Array], known: Reference) -> tuple[Array, Array, Array]:
  """(value, own [n], others [M]) of Score: the sum of `energies`, or (2). Differentiable."""
  parts = energies(blocks, known)
  if known.goal is None:
    return _sum(parts)
  rest = len(parts) - len(known.goal) + 1
  groups = [_sum(parts[:rest]), *parts[rest:]]
  value, own, others = (jnp.stack(part) for part in zip(*groups, strict=True))
  ratio = value / known.goal
  share = jax.nn.softmax(SHARP * ratio) / known.goal
  worst = (jax.nn.logsumexp(SHARP * ratio) - np.log(len(groups))) / SHARP
  return worst, share @ own, share @ others


def _sum(parts):
  return tuple(sum(part) for part in zip(*parts, strict=True))


def towards(known: Reference, goal: Score, learned: int) -> Reference:
  """The reference of (2).

  Args:
    known: of `reference`.
    goal: of `block_scorer` on it, of the sampler to be better than. A distance that does not differ
      from 0 counts as two standard errors.
    learned: as in `reference`.
  """
  blocks = in_blocks(goal)
  rest = len(blocks) - learned
  groups = [total(Score(*(part[:rest] for part in goal))), *blocks[rest:]]
  return known._replace(
    goal=jnp.asarray([max(float(one.value), 2 * _error(one)) for one in groups], jnp.float32)
  )


def _error(score):
  """Its standard error, by the draw of the samples and that of the reference."""
  variance = sum(np.var(part, ddof=1) / len(part) for part in (score.own, score.others))
  return float(np.sqrt(variance))


def scorer(features_: Features, known: Reference) -> Callable[[Array], Score]:
  """x [n, *shape] -> Score, compiled once for each n."""
  of = jax.jit(lambda x, known: energy(features_(x), known))
  return lambda x: Score(*map(np.asarray, of(jnp.asarray(x, jnp.float32), known)))


def block_scorer(features_: Features, known: Reference) -> Callable[[Array], Score]:
  """As `scorer`, for each of the K blocks: a Score of arrays [K], [K, n] and [K, M]."""
  of = jax.jit(lambda x, known: energies(features_(x), known))
  return lambda x: Score(*map(np.stack, zip(*of(jnp.asarray(x, jnp.float32), known), strict=True)))


def gain(first: Score, second: Score) -> tuple[float, float]:
  """(second - first, its standard error) on the same noise and reference: above 0 where the first
  is better. The error holds the draw of the samples, in pairs, and that of the reference."""
  difference = Score(*(b - a for a, b in zip(first, second, strict=True)))
  return float(difference.value), _error(difference)


def in_blocks(score: Score) -> list[Score]:
  """The scores of `block_scorer`, one by one."""
  return [Score(*parts) for parts in zip(*score, strict=True)]


def total(score: Score) -> Score:
  """The whole score of those of `block_scorer`."""
  return Score(*(np.sum(part, 0) for part in score))


def excludes_zero(gain_: float, error: float) -> bool:
  """Whether the 95 % interval of a gain lies above 0."""
  return gain_ > 1.96 * error
