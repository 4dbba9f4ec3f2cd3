"""Score machines [ELS, arXiv 2412.20292]: exact denoisers that see patches instead of whole images.

All are posterior means E_W[phi'] over training images phi', for x = a phi + b eps. They differ in
what the weights W see:

  (1) IS          whole images, W proportional to N(x | a phi', b^2 I)
  (2) ES          the same over all translates of the images, around the edges
  (3) LS          for each pixel the k x k patch about it, at the same place of phi'
  (4) ELS         for each pixel the k x k patch about it, at any place of phi'; the value is the
                  centre of the patch
  (5) bbELS       as (4), but only places whose patch overhangs the edges in the same way
  (6) consistent  as (5) (as (4) around the edges), and all that a pixel sees is in one and the
                  same phi': W(phi', x') is proportional to
                  N(patch_x | a patch'_x', b^2) prod_{y in A} sum_y' N(patch_y | a patch'_y', b^2)

(6) is our extension for networks with attention: A are the attended patches, a tiling of the image
by default; with A empty it is (5) with zero padding and (4) with circular padding. The published
code of (4) pads the query around the edges but takes training patches from the interior only; here
that is padding='circular', places='interior'.

Training images come in blocks with a streaming log-sum-exp, one query at a time: memory is that of
a block.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals, mixtures, patches
from gmm_diffusion.types import Array, Denoiser

MEMORY = 2**26  # bytes of a block
Weigh = Callable[[Array], Array]


class Collectives(NamedTuple):
  """Largest and total of an array over the devices that share the training images."""

  largest: Callable[[Array], Array]
  total: Callable[[Array], Array]


class Part(NamedTuple):
  """Some pixels of the answer: (query, a times images, images, precision) -> (logits [J, *shape],
  weigh).

  precision is 1 / b^2; weigh(weights [J, *shape]) -> sums [V + 1, *shape], as in mixtures.absorb.
  units is the number of logits of each image; log_priors of images are added to them. pairs is how
  many numbers an image has in flight.
  """

  shape: tuple[int, ...]
  entries: int
  units: int
  pairs: int
  observe: Callable[[Array, Array, Array, Array], tuple[Array, Weigh]]


class Parts(NamedTuple):
  """The parts of a machine, and the function that joins their means to an image [H, W, C]."""

  parts: tuple[Part, ...]
  join: Callable[[list[Array]], Array]


def _ones(values: Array) -> Array:
  """Values with a last entry 1."""
  return jnp.concatenate([values, jnp.ones_like(values[..., :1])], -1)


def _shared(values: Array) -> Weigh:
  """Values [J, V] that all pixels share."""
  return lambda w: jnp.einsum(
    'jv,j...->v...', _ones(values), w, precision=jax.lax.Precision.HIGHEST
  )


def _own(values: Array) -> Weigh:
  """Values [J, ..., V], others for each pixel."""
  return lambda w: jnp.moveaxis(jnp.sum(w[..., None] * _ones(values), 0), -1, 0)


def _logits(distances: Array, precision: Array) -> Array:
  return -0.5 * precision * distances


def ideal(shape: tuple[int, int, int]) -> Parts:
  """Equation (1)."""

  def observe(x, scaled, images, precision):
    d = jnp.sum((x[None] - scaled) ** 2, (1, 2, 3))
    return _logits(d, precision), _shared(images.reshape(len(images), -1))

  size = math.prod(shape)
  return Parts((Part((), size, 1, size, observe),), lambda means: means[0].reshape(shape))


def equivariant_ideal(shape: tuple[int, int, int]) -> Parts:
  """Equation (2), by Fourier transforms over all H W translates."""
  H, W, C = shape
  transform = lambda y: jnp.fft.rfft2(y, axes=(-3, -2))

  def observe(x, scaled, images, precision):
    cross = jnp.fft.irfft2(jnp.sum(jnp.conj(transform(scaled)) * transform(x)[None], -1), s=(H, W))
    d = jnp.maximum(
      jnp.sum(x**2) + jnp.sum(scaled**2, (1, 2, 3))[:, None] - 2 * cross.reshape(-1, H * W), 0
    )
    spectrum = transform(images)

    def weigh(w):
      moved = jnp.sum(jnp.fft.rfft2(w.reshape(-1, H, W))[..., None] * spectrum, 0)
      return jnp.append(jnp.fft.irfft2(moved, s=(H, W), axes=(0, 1)).reshape(-1), jnp.sum(w))

    return _logits(d, precision).reshape(-1), weigh

  return Parts(
    (Part((), H * W * C, H * W, 2 * H * W * (C + 1), observe),),
    lambda means: means[0].reshape(shape),
  )


def local(shape: tuple[int, int, int], size: int, padding: str) -> Parts:
  """Equation (3); padding applies to query and training images."""
  H, W, C = shape

  def observe(x, scaled, images, precision):
    d = patches.same_distances(
      patches.pad(x, size, padding), patches.pad(scaled, size, padding), size
    )
    return _logits(d, precision), _own(images)

  return Parts(
    (Part((H, W), C, 1, H * W * (C + 1), observe),), lambda means: jnp.moveaxis(means[0], 0, -1)
  )


def _windows(shape, size, padding, places):
  """For patches at any place: how to pad the query, how to pad the images, their centres, and how
  many places there are."""
  if places not in ('interior', 'all'):
    raise UserError(f'unknown places {places!r}; valid: interior, all')
  units = (lambda y: y) if places == 'interior' else (lambda y: patches.pad(y, size, padding))
  H, W, _ = shape
  n = (H - size + 1) * (W - size + 1) if places == 'interior' else H * W
  return (
    lambda x: patches.pad(x, size, padding),
    units,
    lambda images: patches.centres(units(images), size),
    n,
  )


def equivariant_local(
  shape: tuple[int, int, int], size: int, padding: str, places: str, form: str = ''
) -> Parts:
  """Equation (4); places 'interior' are those whose patch lies inside the image, 'all' has patches
  padded like the query's."""
  H, W, C = shape
  pad, units, centres, n = _windows(shape, size, padding, places)

  def observe(x, scaled, images, precision):
    d = patches.distances(pad(x), units(scaled), size, form)
    return _logits(d, precision).reshape(-1, H, W), _shared(centres(images).reshape(-1, C))

  return Parts(
    (Part((H, W), C, n, n * H * W, observe),), lambda means: jnp.moveaxis(means[0], 0, -1)
  )


def boundary_broken(shape: tuple[int, int, int], size: int) -> Parts:
  """Equation (5), with zeros beyond the edges."""
  H, W, C = shape
  r = size // 2
  h, w = H - 2 * r, W - 2 * r
  # rows near an edge overhang each in their own way, all others alike; so do columns
  near = [np.array([i for i in range(n) if i < r or i >= n - r], int) for n in (H, W)]
  inside = slice(r, H - r), slice(r, W - r)

  def inner(x, scaled, images, precision):
    d = patches.distances(x, scaled, size)
    return _logits(d, precision).reshape(-1, h, w), _shared(
      patches.centres(images, size).reshape(-1, C)
    )

  def corners(x, scaled, images, precision):
    at = lambda y: y[:, near[0]][:, :, near[1]]
    d = patches.same_distances(
      patches.pad(x, size, 'zero'), patches.pad(scaled, size, 'zero'), size
    )
    return _logits(at(d), precision), _own(at(images))

  def sides(rows, columns):
    """Rows near an edge, and the columns inside; transposed images give the other sides."""

    def observe(x, scaled, images, precision):
      band = lambda y: patches.bands(
        jnp.pad(y, [(0, 0)] * (y.ndim - 3) + [(r, r), (0, 0), (0, 0)]), size, rows
      )
      d = patches.row_distances(band(x), band(scaled), size)
      values = _ones(images[:, rows][:, :, columns])
      weigh = lambda w: jnp.einsum(
        'nvgx,ngvc->cgx', w.reshape(d.shape), values, precision=jax.lax.Precision.HIGHEST
      )
      return _logits(d, precision).reshape((-1,) + d.shape[2:]), weigh

    return observe

  def transposed(x, scaled, images, precision):
    return sides(near[1], inside[0])(
      *(jnp.swapaxes(y, -3, -2) for y in (x, scaled, images)), precision
    )

  def join(means):
    out = [jnp.moveaxis(mean, 0, -1) for mean in means]
    if not r:
      return out[0]
    image = jnp.zeros(shape, out[0].dtype).at[inside].set(out[0]).at[np.ix_(*near)].set(out[1])
    return (
      image.at[near[0], inside[1]]
      .set(out[2])
      .at[inside[0], near[1]]
      .set(jnp.swapaxes(out[3], 0, 1))
    )

  parts = [Part((h, w), C, h * w, (h * w) ** 2, inner)]
  if r:
    parts += [
      Part((2 * r, 2 * r), C, 1, H * W * (C + 1), corners),
      Part((2 * r, w), C, w, 2 * r * W**2, sides(near[0], inside[1])),
      Part((2 * r, h), C, h, 2 * r * H**2, transposed),
    ]
  return Parts(tuple(parts), join)


def tiling(shape: tuple[int, int, int], size: int) -> np.ndarray:
  """Centres [M, 2] of as few patches as cover the image, evenly spaced; they overlap where size
  does not divide the side."""
  axes = [
    np.round(np.linspace(size // 2, n - 1 - size // 2, -(-n // size))).astype(int)
    for n in shape[:2]
  ]
  return np.stack(np.meshgrid(*axes, indexing='ij'), -1).reshape(-1, 2)


def overhang(shape: tuple[int, int, int], size: int) -> np.ndarray:
  """How far the patch about each pixel reaches beyond each edge, [H, W, 4]."""
  y, x = np.indices(shape[:2])
  return np.maximum(
    0,
    np.stack(
      [size // 2 - y, size // 2 - x, size // 2 + y + 1 - shape[0], size // 2 + x + 1 - shape[1]], -1
    ),
  )


def consistent(
  shape: tuple[int, int, int], size: int, padding: str, attended: np.ndarray | None = None
) -> Parts:
  """Equation (6); attended [M, 2] are the centres of the attended patches, the same for all pixels
  (but none attends to itself)."""
  H, W, C = shape
  n = H * W
  attended = tiling(shape, size) if attended is None else np.asarray(attended, int).reshape(-1, 2)
  chosen = np.zeros((H, W))
  chosen[attended[:, 0], attended[:, 1]] = 1
  beyond = overhang(shape, size).reshape(n, 4)
  alike = (
    np.all(beyond[:, None] == beyond[None], -1).reshape(n, H, W)
    if padding == 'zero'
    else np.ones((n, H, W), bool)
  )
  pad = lambda y: patches.pad(y, size, padding)

  def observe(x, scaled, images, precision):
    logits = _logits(patches.distances(pad(x), pad(scaled), size), precision).reshape(-1, n, H, W)
    logits = jnp.where(alike[None], logits, -jnp.inf)
    top = jnp.max(logits, 1)
    weights = jnp.exp(logits - top[:, None])
    sums = jnp.einsum(
      'njc,njyx->nyxc',
      _ones(images.reshape(-1, n, C)),
      weights,
      precision=jax.lax.Precision.HIGHEST,
    )
    evidence = top + jnp.log(sums[..., -1])  # of each patch under each image
    own = jnp.asarray(chosen, x.dtype)[None] * evidence
    return evidence + jnp.sum(own, (1, 2), keepdims=True) - own, _own(
      sums[..., :-1] / sums[..., -1:]
    )

  return Parts(
    (Part((H, W), C, 1, n * H * W, observe),), lambda means: jnp.moveaxis(means[0], 0, -1)
  )


WHOLE = ('IS', 'ES')  # machines that see whole images
# Name -> the parts of the machine for one patch size.
MACHINES = {
  'IS': lambda shape, size, padding, places: ideal(shape),
  'ES': lambda shape, size, padding, places: equivariant_ideal(shape),
  'LS': lambda shape, size, padding, places: local(shape, size, padding),
  'ELS': equivariant_local,
  'bbELS': lambda shape, size, padding, places: boundary_broken(shape, size),
  'consistent': lambda shape, size, padding, places: consistent(shape, size, padding),
}


def subset(images: Array, labels: Array, label: int) -> Array:
  """The images of one class."""
  if not np.any(np.asarray(labels) == label):
    raise UserError(
      f'class {label} has no training images; valid: {", ".join(map(str, np.unique(labels)))}'
    )
  return images[np.asarray(labels) == label]


def make(
  name: str,
  images: Array,
  size: int | tuple[tuple[float, int], ...] = 3,
  padding: str = 'zero',
  places: str = '',
  labels: Array | None = None,
  log_priors: Array | None = None,
  collectives: Collectives | None = None,
  memory: int = MEMORY,
) -> Denoiser:
  """A score machine as a Denoiser, at one time for the whole batch.

  Args:
    name: in MACHINES.
    images: training images [N, H, W, C].
    size: side k of the patches, odd; or ((b_1, k_1), (b_2, k_2), ...) with increasing b: k_1 for
      noise levels up to b_1, k_2 up to b_2, and so on, the last for all above.
    padding: 'zero' or 'circular', beyond the edges of the query (LS, and places 'all': of the
      images too). bbELS has zeros.
    places: 'interior' or 'all': where training patches come from (ELS); '' is interior for zero
      padding and all for circular padding.
    labels: class [N] of each image; the denoiser then takes cond [B], and each query sees its class
      only.
    log_priors: [N]; -inf leaves an image out.
    collectives: where several devices share the images, each its part.
    memory: bytes of a block of images, about.

  Returns:
    The Denoiser; without any open image x_0 is 0.

  Raises:
    UserError: on a patch that is even or larger than the images, an unknown name, a class without
      images; by the Denoiser: on queries of another shape; outside jit also on b = 0 (nan inside)
      or an unknown class (x_0 = 0 inside).
  """
  if name not in MACHINES:
    raise UserError(f'unknown machine {name!r}; valid: {", ".join(MACHINES)}')
  places = places or ('interior' if padding == 'zero' else 'all')
  if padding not in patches.PADDINGS:
    raise UserError(f'unknown padding {padding!r}; valid: {", ".join(patches.PADDINGS)}')
  if name in WHOLE:
    size = 1  # they have no patches
  levels = ((math.inf, int(size)),) if isinstance(size, (int, np.integer)) else tuple(size)
  return of(
    lambda shape, k: MACHINES[name](shape, k, padding, places),
    images,
    levels,
    labels,
    log_priors,
    collectives,
    memory,
  )


def of(
  build: Callable[[tuple[int, ...], int], Parts],
  images: Array,
  levels: tuple[tuple[float, int], ...],
  labels: Array | None = None,
  log_priors: Array | None = None,
  collectives: Collectives | None = None,
  memory: int = MEMORY,
) -> Denoiser:
  """The Denoiser of a machine of one's own: build(shape, patch size) -> Parts; everything else as
  in `make`."""
  shape = images.shape[1:]
  if not levels or any(low[0] >= high[0] for low, high in zip(levels, levels[1:])):
    raise UserError(
      f'patch sizes must be a number or ((b, size), ...) with increasing noise levels b, got '
      f'{levels}'
    )
  for _, k in levels:
    patches.check(k, shape)
  sizes = sorted({k for _, k in levels})
  branches = [build(shape, k) for k in sizes]
  edges, which = (
    np.array([b for b, _ in levels[:-1]]),
    np.array([sizes.index(k) for _, k in levels]),
  )
  known = None if labels is None or isinstance(labels, jax.core.Tracer) else np.unique(labels)

  def denoise(x, time, cond):
    if x.shape[1:] != shape:
      raise UserError(
        f'a machine of {" x ".join(map(str, shape))} images was asked about '
        f'{" x ".join(map(str, x.shape[1:]))}; valid: {shape}'
      )
    if not isinstance(time.b, jax.core.Tracer) and np.any(np.asarray(time.b) <= 0):
      raise UserError(
        'noise level b = 0 has no posterior over images; valid: b > 0 (end the grid before the '
        'clean time)'
      )
    if (
      known is not None
      and not isinstance(cond, jax.core.Tracer)
      and not np.all(np.isin(cond, known))
    ):
      raise UserError(
        f'class {np.setdiff1d(cond, known)[0]} has no training images; valid: '
        f'{", ".join(map(str, known))}'
      )
    a, b = jnp.asarray(time.a, x.dtype), jnp.asarray(time.b, x.dtype)
    priors = (
      jnp.zeros(len(images), x.dtype) if log_priors is None else jnp.asarray(log_priors, x.dtype)
    )
    data = (
      jnp.asarray(images, x.dtype),
      priors,
      jnp.zeros(len(images), jnp.int32) if labels is None else jnp.asarray(labels),
    )
    wanted = jnp.zeros(len(x), jnp.int32) if labels is None else jnp.asarray(cond)
    answer = lambda parts: jax.lax.map(
      lambda query: _answer(parts, *query, data, a, b, collectives, memory), (x, wanted)
    )
    if len(branches) == 1:
      x0 = answer(branches[0])
    else:
      level = jnp.asarray(which)[jnp.searchsorted(jnp.asarray(edges, x.dtype), b)]
      x0 = jax.lax.switch(level, [lambda parts=parts: answer(parts) for parts in branches])
    return marginals.from_x0(x, x0, time)

  return denoise


def _answer(parts, x, label, data, a, b, collectives, memory):
  """E[x_0 | x], [H, W, C], of one query."""
  N = len(data[0])
  n = min(N, max(1, memory // (3 * x.dtype.itemsize * max(part.pairs for part in parts.parts))))
  count = -(-N // n)
  n = -(-N // count)  # blocks alike

  def absorb(streams, block):
    first = jnp.minimum(
      block * n, N - n
    )  # the last block starts among images that the one before had: nothing is padded or copied
    images, priors, labels = (jax.lax.dynamic_slice_in_dim(y, first, n) for y in data)
    priors = jnp.where((labels == label) & (first + jnp.arange(n) >= block * n), priors, -jnp.inf)
    out = []
    for part, stream in zip(parts.parts, streams):
      logits, weigh = part.observe(x, a * images, images, b**-2)
      prior = jnp.repeat(priors, part.units).reshape((-1,) + (1,) * len(part.shape))
      out.append(mixtures.absorb(stream, logits + prior, weigh))
    return out, None

  streams = [mixtures.start(part.shape, part.entries, x.dtype) for part in parts.parts]
  streams, _ = jax.lax.scan(absorb, streams, jnp.arange(count))
  if collectives is not None:
    streams = [mixtures.merge(stream, *collectives) for stream in streams]
  return parts.join([mixtures.means(stream).mean for stream in streams])
