"""How the tensors of a released checkpoint become the parameters of a Flax network.

Networks here carry the released names, so a parameter's source is found by name; only the layout
differs: convolutions are [out, in, h, w] there and [h, w, in, out] here, matrices [out, in] and
[in, out]. A matrix may come as a 1 x 1 convolution. A recipe says for each parameter which tensors
it is made of; it is built without reading any of them.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

import numpy as np
from flax import traverse_util
from tqdm import tqdm

from gmm_diffusion.errors import UserError

Path = tuple[str, ...]


class Tensors(Protocol):
  """Named tensors in an open file (checkpoints/tensor_files.py)."""

  shapes: dict[str, tuple[int, ...]]

  def read(self, name: str) -> np.ndarray: ...


class Part(NamedTuple):
  """One parameter: the names and shapes of its tensors, and how to make it of them."""

  names: tuple[str, ...]
  shapes: tuple[tuple[int, ...], ...]
  build: Callable[..., np.ndarray]


class Recipe(NamedTuple):
  """Parts by parameter path; `constants` are tensors that must have known values and are not
  parameters."""

  parts: dict[Path, Part]
  constants: dict[str, np.ndarray] = {}

  def expected(self) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that the source must have."""
    out = {name: np.shape(value) for name, value in self.constants.items()}
    for part in self.parts.values():
      out.update(zip(part.names, part.shapes))
    return out


def plain(template: Any, rename: Callable[[str], str] = lambda name: name) -> Recipe:
  """The recipe of a network whose tensors have the network's own names, after `rename`."""
  return Recipe(
    {
      path: _part(path, leaf.shape, rename)
      for path, leaf in traverse_util.flatten_dict(template['params']).items()
    }
  )


def _part(path, shape, rename):
  *module, leaf = path
  name = '.'.join(module)
  if leaf == 'kernel':
    layout = (1, 0) if len(shape) == 2 else (3, 2, 0, 1)
    there = tuple(shape[i] for i in layout)
    return Part((rename(name + '.weight'),), (there,), kernel)
  leaf = 'weight' if leaf in ('scale', 'embedding') else leaf
  return Part((rename(f'{name}.{leaf}'),), (tuple(shape),), lambda x: x)


def kernel(x: np.ndarray) -> np.ndarray:
  """[out, in, h, w] -> [h, w, in, out] and [out, in] -> [in, out]."""
  return x.T if x.ndim == 2 else x.transpose(2, 3, 1, 0)


def pack(
  recipe: Recipe,
  heads: Callable[[int], int],
  legacy: bool,
  split: Callable[[str], tuple[str, str, str]],
  rename: Callable[[str], str] = lambda name: name,
) -> Recipe:
  """Parameters called *qkv come from three tensors, packed in the order that `attend`
  (nets/blocks.py) takes.

  Args:
    recipe: with one tensor for each, under the network's own names.
    heads: width -> number of attention heads.
    legacy: order of the packed tensor.
    split: name of a packed tensor -> names of q, k, v.
    rename: applied to all other names.
  """
  parts = {}
  for path, part in recipe.parts.items():
    name, shape = part.names[0], part.shapes[0]
    if not path[-2].endswith('qkv'):
      parts[path] = part._replace(names=(rename(name),))
      continue
    width = shape[0] // 3

    def build(*qkv, matrix=len(shape) == 2, H=heads(width)):
      if matrix:
        qkv = [kernel(x) for x in qkv]  # the packed axis comes last
      if legacy:
        qkv = [x.reshape(x.shape[:-1] + (H, -1)) for x in qkv]
      packed = np.concatenate(qkv, -1)
      return packed.reshape(packed.shape[:-2] + (-1,)) if legacy else packed

    parts[path] = Part(split(name), ((width,) + shape[1:],) * 3, build)
  return Recipe(parts, recipe.constants)


def check(
  recipe: Recipe, shapes: dict[str, tuple[int, ...]], owned: Collection[str], path: str
) -> None:
  """Raises UserError listing missing, surplus and wrongly shaped tensors.

  Args:
    recipe: what is expected.
    shapes: what the source has.
    owned: those of the source's names that belong to this network, which must all be used.
    path: of the source, for the message.
  """
  expected = recipe.expected()
  missing = [name for name in expected if name not in shapes]
  surplus = [name for name in owned if name not in expected]
  wrong = [
    f'{name} is {_words(shapes[name])} instead of {_words(shape)}'
    for name, shape in expected.items()
    if name in shapes and _matrix(shapes[name]) != _matrix(shape)
  ]
  problems = [
    f'{len(found)} {kind}: {", ".join(map(_shown, found[:5]))}{", ..." if len(found) > 5 else ""}'
    for kind, found in (
      ('missing', missing),
      ('not expected', surplus),
      ('of another shape', wrong),
    )
    if found
  ]
  if problems:
    raise UserError(
      f'{path} does not fit the network of the config; tensors {"; ".join(problems)}; '
      'check the config (variant, net.*) and the format against where the file comes from'
    )


def _shown(name):
  """A name of a file as it can stand in a message of one line."""
  return name if name.isprintable() and len(name) <= 120 else f'{name!r:.120}'


def _words(shape):
  return 'x'.join(map(str, shape)) or 'a number'


def _matrix(shape):
  """A 1 x 1 convolution counts as a matrix."""
  shape = tuple(shape)
  while len(shape) > 2 and shape[-1] == 1:
    shape = shape[:-1]
  return shape


def read(recipe: Recipe, source: Tensors, path: str, title: str) -> Any:
  """Reads a network's parameters one after another as float32: {'params': ...}.

  Raises:
    UserError: if a tensor is not finite, or copies of one tensor differ.
  """

  def tensor(name, shape):
    x = source.read(name)
    if not np.all(np.isfinite(x)):
      raise UserError(
        f'tensor {name!r} of {path} ({x.dtype}) has values that are not finite (an overflow of '
        f'half precision, or a damaged file); use a file in float32'
      )
    return np.ascontiguousarray(x, np.float32).reshape(shape)

  for name, value in recipe.constants.items():
    if not np.allclose(tensor(name, np.shape(value)), value, atol=1e-5):
      raise UserError(
        f'tensor {name!r} of {path} has other values than the fixed table it should be; is it '
        f'another network?'
      )
  out = {}
  for target, part in tqdm(recipe.parts.items(), desc=title, unit='tensor', dynamic_ncols=True):
    out[target] = np.ascontiguousarray(
      part.build(*(tensor(*pair) for pair in zip(part.names, part.shapes)))
    )
  return {'params': traverse_util.unflatten_dict(out)}


def equal(first: np.ndarray, *others: np.ndarray) -> np.ndarray:
  """The first of several copies of one tensor; raises UserError if they differ."""
  if not all(np.array_equal(first, other) for other in others):
    raise UserError(
      f'the {len(others) + 1} copies of a tensor of shape {_words(first.shape)} differ; is it '
      f'another network?'
    )
  return first
