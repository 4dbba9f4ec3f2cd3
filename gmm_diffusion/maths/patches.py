"""Squared distances between all k x k windows of a query and all those of a block of images.

With windows w_p(x) at place p,

  (1) d(p, p') = |w_p(x) - w_p'(u)|^2 = sum over a window of |x(p + e) - u(p' + e)|^2

Three forms of (1), equal but for rounding; C channels, operations per pair of windows:

  patches  one matrix product of unrolled windows       2 (k^2 C + 2 k)
  strips   matrix product of k x 1 strips, box sums     2 (k C + 2), and log2(k) additions
           along the columns
  boxes    matrix product of pixels, box sums along     2 (C + 2), and 2 log2(k) additions:
           rows and columns                             an integral image for every displacement

The products give whole squared distances: of vectors (-2 u, |u|^2, 1) and (x, 1, |x|^2), in
`patches` strip by strip, so that all forms round alike where windows are near each other. Box sums
are made by doubling (windows of 1, 2, 4, ...), so nothing is subtracted and rounding stays that of
a sum. No array is larger than images x places x pixels of a block (times the overhang of k - 1
pixels on each axis in the box forms): (images x places x pixels x window) never exists.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.types import Array

_HIGHEST = jax.lax.Precision.HIGHEST
FORMS = ('patches', 'strips', 'boxes')
PADDINGS = {'zero': 'constant', 'circular': 'wrap'}
# What one element of a product costs beyond its product, in operations of a matrix product: box
# sums along the columns only, and along the rows and columns. Measured on two AVX-512 cores
# (experiments/benchmarks/machine_speed.py); only the choice depends on it.
_COLUMN_PASS, _ROW_PASS = 50, 150


def check(size: int, shape: tuple[int, ...]) -> None:
  """Raises UserError unless size is an odd window that fits into images of shape [H, W, C]."""
  if size < 1 or size % 2 == 0:
    raise UserError(
      f'patch size must be odd, so that a patch has a centre; got {size}; valid: 1, 3, ... up to '
      f'{min(shape[:2])}'
    )
  if size > min(shape[:2]):
    raise UserError(
      f'patch size {size} is larger than the images of {shape[0]} x {shape[1]}; valid: odd, at '
      f'most {min(shape[:2])}'
    )


def pad(images: Array, size: int, padding: str) -> Array:
  """[..., H, W, C] with (size - 1) / 2 more pixels on each side, so that every pixel is the centre
  of a window."""
  if padding not in PADDINGS:
    raise UserError(f'unknown padding {padding!r}; valid: {", ".join(PADDINGS)}')
  r = size // 2
  return jnp.pad(
    images, [(0, 0)] * (images.ndim - 3) + [(r, r), (r, r), (0, 0)], mode=PADDINGS[padding]
  )


def centres(images: Array, size: int) -> Array:
  """The centres of all windows, [..., H - size + 1, W - size + 1, C]."""
  r = size // 2
  return images[..., r : images.shape[-3] - r, r : images.shape[-2] - r, :]


def strips(images: Array, size: int, axis: int = -3) -> Array:
  """Windows along one spatial axis, laid out along the channels: [..., H - size + 1, W, size C] for
  the rows."""
  n = images.shape[axis] - size + 1
  return jnp.concatenate(
    [jax.lax.slice_in_dim(images, j, j + n, axis=axis) for j in range(size)], -1
  )


def windows(images: Array, size: int) -> Array:
  """All windows, unrolled: [..., H - size + 1, W - size + 1, size^2 C]."""
  return strips(strips(images, size, -3), size, -2)


def box(values: Array, size: int, axes: tuple[int, ...]) -> Array:
  """Sums of `size` neighbours along a diagonal: the index runs along all `axes` at once.

  Each axis becomes size - 1 shorter. By doubling: sums over 1, 2, 4, ... neighbours, added up as
  the binary digits of size say.
  """
  lengths = [values.shape[axis] - size + 1 for axis in axes]

  def at(array, offset, lengths):
    for axis, n in zip(axes, lengths):
      array = jax.lax.slice_in_dim(array, offset, offset + n, axis=axis)
    return array

  parts, doubled, width, offset = [], values, 1, 0
  while True:
    if size & width:
      parts.append(at(doubled, offset, lengths))
      offset += width
    if 2 * width > size:
      return sum(parts[1:], parts[0])
    shorter = [doubled.shape[axis] - width for axis in axes]
    doubled, width = at(doubled, 0, shorter) + at(doubled, width, shorter), 2 * width


def squares(images: Array, size: int) -> Array:
  """|w_p|^2 of all windows, [..., H - size + 1, W - size + 1]."""
  values = jnp.sum(images**2, -1)
  return box(box(values, size, (values.ndim - 2,)), size, (values.ndim - 1,))


def cost(form: str, query: tuple[int, ...], image: tuple[int, ...], size: int) -> float:
  """Operations of `distances` per image, with the box sums counted as what takes as long."""
  (H, W, C), (U, V, _) = query, image
  h, w, u, v = (n - size + 1 for n in (H, W, U, V))
  return {
    'patches': 2.0 * (size**2 * C + 2 * size) * h * w * u * v,
    'strips': (2.0 * (size * C + 2) + _COLUMN_PASS) * h * W * u * V,
    'boxes': (2.0 * (C + 2) + _ROW_PASS) * H * W * U * V + _COLUMN_PASS * h * W * u * V,
  }[form]


def cheapest(query: tuple[int, ...], image: tuple[int, ...], size: int) -> str:
  """The form with the lowest cost for a padded query and image of the given shapes [H, W, C]."""
  return min(FORMS, key=lambda form: cost(form, query, image, size))


def distances(query: Array, images: Array, size: int, form: str = '') -> Array:
  """Equation (1) for all windows of a query and all windows of each image.

  Args:
    query: [H, W, C], padded as wanted.
    images: [n, U, V, C], times the signal level, padded as wanted.
    size: k, odd.
    form: a name in FORMS; '' takes the cheapest.

  Returns:
    [n, U - k + 1, V - k + 1, H - k + 1, W - k + 1]: units first, pixels last.
  """
  form = form or cheapest(query.shape, images.shape[1:], size)
  query, images = _centred(query, images)
  if form == 'patches':
    out = vector_distances(windows(images, size), windows(query, size), size)
  elif form == 'strips':
    # a loop over images: what it returns exists once, and is not computed again in each use
    right = strips(query, size)
    out = jax.lax.map(
      lambda image: box(vector_distances(strips(image, size), right), size, (1, 3)), images
    )
  elif form == 'boxes':
    out = jax.lax.map(lambda image: _boxes(vector_distances(image, query), size), images)
  else:
    raise UserError(f'unknown form {form!r}; valid: {", ".join(FORMS)}')
  return jnp.maximum(out, 0)


def _centred(query, images):
  """Both about the mean colour of the images, where cancellation is least."""
  colour = jnp.mean(images, tuple(range(images.ndim - 1)))
  return query - colour.reshape((1,) * (query.ndim - 1) + (-1,)), images - colour.reshape(
    (1,) * (images.ndim - 1) + (-1,)
  )


def _sides(left, right, pieces=1):
  """Vectors [..., K + 2 pieces] whose inner products are the squared distances of left and right;
  but for rounding, which may make them negative.

  Each of the equal pieces of a vector is followed by its own square. Where long vectors are near
  each other, the products of a piece then cancel before those of the next are added, so that
  rounding is that of a piece and not that of the whole.
  """

  def build(x, factor, square_first):
    x = x.reshape(x.shape[:-1] + (pieces, -1))
    ends = [jnp.sum(x**2, -1, keepdims=True), jnp.ones_like(x[..., :1])]
    x = jnp.concatenate([factor * x, *(ends if square_first else ends[::-1])], -1)
    return x.reshape(x.shape[:-2] + (-1,))

  return build(left, -2, True), build(right, 1, False)


def vector_distances(left: Array, right: Array, pieces: int = 1) -> Array:
  """|l - r|^2 of all vectors of left [..., K] and right [..., K], as one matrix product: the axes
  of left, then those of right. More pieces (see `_sides`) round less."""
  left, right = _sides(left, right, pieces)
  return jnp.tensordot(left, right, ((left.ndim - 1,), (right.ndim - 1,)), precision=_HIGHEST)


def _boxes(pixels, size):
  """Box sums of distances of pixels [U, V, H, W] along rows and columns; one row of places at a
  time."""
  row = lambda u: box(jax.lax.dynamic_slice_in_dim(pixels, u, size, 0), size, (0, 2))[0]
  return box(jax.lax.map(row, jnp.arange(pixels.shape[0] - size + 1)), size, (1, 3))


def row_distances(query: Array, images: Array, size: int) -> Array:
  """Equation (1) for windows of the same row band: query [G, k, W, C] and images [n, G, k, V, C] ->
  [n, v, G, x]."""
  query, images = _centred(query, images)

  def unroll(x):  # [..., G, k, W, C] -> [..., G, W, k C]
    x = jnp.moveaxis(x, -3, -2)
    return x.reshape(x.shape[:-2] + (-1,))

  left, right = _sides(unroll(images), unroll(query))
  return jnp.maximum(
    box(jnp.einsum('ngvk,gxk->nvgx', left, right, precision=_HIGHEST), size, (1, 3)), 0
  )


def same_distances(query: Array, images: Array, size: int) -> Array:
  """Equation (1) at the same place, p' = p: query [H, W, C] and images [n, H, W, C] -> [n, H - k +
  1, W - k + 1]."""
  return squares(query[None] - images, size)


def bands(images: Array, size: int, rows: np.ndarray) -> Array:
  """The `size` rows that start at each of `rows`: [..., G, size, W, C]."""
  return jnp.stack(
    [jax.lax.slice_in_dim(images, int(y), int(y) + size, axis=images.ndim - 3) for y in rows],
    images.ndim - 3,
  )
