"""Networks whose convolutions and dense layers have weights, and inputs, of few bits.

It needs no other network: kernels are stored as whole numbers with one step for each output
channel, and become floats when the network is called; an interceptor rounds what enters a layer.
Everything else stays as it is: normalisations, activations, softmax, sums and biases.

Variables of such a network have a second collection beside 'params', 'quantised'. Under the path of
each layer it has 'step', float32 [channels], and where inputs are rounded 'input', float32 [3]:
step, low and high of maths.quantise. Kernels of up to 4 bits are packed: two numbers in a byte,
from the two halves of the axis before the last, where its length is even.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.maths import quantise
from gmm_diffusion.types import Array

LAYERS = (nn.Conv, nn.Dense)
NAME = 'quantised'


@contextlib.contextmanager
def _intercepted(handle: Callable[[nn.Module, str, Array, Callable[..., Array]], Array]):
  """Within it, a layer returns handle(layer, its path, input, how it would be called)."""

  def intercept(call, arguments, options, context):
    # a layer without a path is the one that `apply` calls in the place of another
    inside = type(context.module) in LAYERS and context.module.path
    if inside and context.method_name == '__call__':
      (x,) = arguments
      return handle(context.module, '/'.join(context.module.path), x, call)
    return call(*arguments, **options)

  with nn.intercept_methods(intercept):
    yield


@contextlib.contextmanager
def watched(see: Callable[[str, Array], None]) -> Iterator[None]:
  """Within it, see(path of a layer, its input) is called before each layer."""

  def handle(layer, path, x, call):
    see(path, x)
    return call(x)

  with _intercepted(handle):
    yield


def layers(init: Callable[[], Any]) -> list[str]:
  """Paths of the layers that are called while variables are made by `init`, which is traced."""
  found: dict[str, None] = {}
  with watched(lambda path, x: found.update({path: None})):
    jax.eval_shape(init)
  return list(found)


def packs(shape: tuple[int, ...], bits: int) -> bool:
  """Whether a kernel of this shape is stored as two numbers in a byte."""
  return bits <= 4 and shape[-2] % 2 == 0


def pack(codes: Array) -> Array:
  """Whole numbers in [-8, 7], [..., 2 M, C] -> uint8 [..., M, C]."""
  low, high = np.split(np.asarray(codes).astype(np.int8) & 15, 2, axis=-2)
  return (low | high << 4).astype(np.uint8)


def unpack(packed: Array) -> Array:
  """The inverse of `pack`, int8."""
  signed = lambda x: (x.astype(jnp.int8) ^ 8) - 8
  return jnp.concatenate([signed(packed & 15), signed(packed >> 4)], -2)


def kernel(codes: Array, step: Array, dtype: Any) -> Array:
  """The kernel of stored numbers, int8 or packed uint8, with its step."""
  whole = unpack(codes) if codes.dtype == jnp.uint8 else codes
  return (whole * step.reshape((1,) * (whole.ndim - 1) + (-1,))).astype(dtype)


def of(
  variables: Any, paths: list[str], bits: int, inputs: dict[str, tuple[float, float, float]]
) -> Any:
  """Host variables with kernels of `bits`.

  Args:
    variables: {'params': ...} of floats.
    paths: of the layers.
    bits: in [2, 8].
    inputs: (step, low, high) of what enters each layer; {} leaves inputs as they are.
  """
  search = jax.jit(quantise.step_of_channels, static_argnums=1)
  params, found = _copy(variables['params']), {}
  for path in paths:
    layer = _at(params, path)
    x = np.asarray(layer['kernel'], np.float32)
    step = np.asarray(search(x, bits))
    codes = np.asarray(
      quantise.codes(x, step.reshape((1,) * (x.ndim - 1) + (-1,)), *quantise.limits(bits, True))
    )
    layer['kernel'] = pack(codes) if packs(x.shape, bits) else codes.astype(np.int8)
    found[path] = {'step': step} | (
      {'input': np.asarray(inputs[path], np.float32)} if inputs else {}
    )
  return {'params': params, NAME: found}


def template(variables: Any, paths: list[str], bits: int, inputs: bool) -> Any:
  """What `of` returns, for abstract variables."""
  params, found = _copy(variables['params']), {}
  for path in paths:
    layer = _at(params, path)
    shape = layer['kernel'].shape
    packed = (*shape[:-2], shape[-2] // 2, shape[-1]), jnp.uint8
    layer['kernel'] = jax.ShapeDtypeStruct(*(packed if packs(shape, bits) else (shape, jnp.int8)))
    found[path] = {'step': jax.ShapeDtypeStruct(shape[-1:], jnp.float32)}
    if inputs:
      found[path]['input'] = jax.ShapeDtypeStruct((3,), jnp.float32)
  return {'params': params, NAME: found}


def apply(module: nn.Module, variables: Any, *arguments: Any) -> Any:
  """module.apply, of variables that may be quantised."""
  if NAME not in variables:
    return module.apply(variables, *arguments)
  params, found = variables['params'], variables[NAME]

  def handle(layer, path, x, call):
    if path not in found:
      return call(x)
    own = _at(params, path)
    # tied to the input of its layer: what does not change in a loop over steps would be moved out
    # of it, and all kernels held as floats
    codes, x = jax.lax.optimization_barrier((own['kernel'], x))
    if 'input' in found[path]:
      step, low, high = found[path]['input'].astype(jnp.float32)
      near = quantise.rounded(x.astype(jnp.float32), step, low, high).astype(x.dtype)
      x = x + jax.lax.stop_gradient(near - x)  # derivatives are those of the network
    whole = {**own, 'kernel': kernel(codes, found[path]['step'], layer.dtype or jnp.float32)}
    return layer.clone(parent=None, name=None).apply({'params': whole}, x)

  with _intercepted(handle):
    return module.apply({'params': params}, *arguments)


def _copy(tree: Any) -> Any:
  """The same leaves in new dicts."""
  return jax.tree.map(lambda leaf: leaf, tree)


def _at(params: Any, path: str) -> Any:
  for part in path.split('/'):
    params = params[part]
  return params
