"""A small network of 28 x 28 images that others trained, from its state dict: an example of a
denoiser of one's own [github.com/BrianPulfer/PapersReimplementations, DDPM, MIT].

T = 1000, linear betas, eps prediction, images in [-1, 1]. The time is a row of a stored table, so
it is asked at whole times only.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.checkpoints import tensor_files
from gmm_diffusion.maths import marginals
from gmm_diffusion.types import Array, Denoiser, Prediction, Time

SHAPE = (28, 28, 1)
_NORM = 1e-5


def weights(path: str) -> dict[str, np.ndarray]:
  """The tensors of a file, float32, by their names without 'network.'."""
  with tensor_files.open_tensors(path) as found:
    names = [name for name in found.shapes if name.startswith('network.')]
    return {name.removeprefix('network.'): np.float32(found.read(name)) for name in names}


def denoiser(arrays: dict[str, Any], clip: bool = True) -> Denoiser:
  """The denoiser of these weights; with `clip` x_0 is clipped to [-1, 1]."""

  def denoise(x: Array, time: Time, cond: Any = None) -> Prediction:
    del cond
    found = marginals.from_eps(x, _network(arrays, x, time.t), time)
    return marginals.from_x0(x, jnp.clip(found.x0, -1, 1), time) if clip else found

  return denoise


def _network(w, x, t):
  """In NHWC: a loop with convolutions in NCHW takes five times as long on CPUs."""
  w = {name: jnp.asarray(part) for name, part in w.items()}
  row = w['time_embed.weight'][jnp.round(t).astype(jnp.int32)]

  def conv(name, x, stride=1, pad=0):
    return convolved(x, w[f'{name}.weight'].transpose(2, 3, 1, 0), name, pad, strides=stride)

  def up(name, x, stride, pad):
    kernel = w[f'{name}.weight'][:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
    return convolved(x, kernel, name, len(kernel) - 1 - pad, dilation=stride)

  def convolved(x, kernel, name, pad, strides=1, dilation=1):
    out = jax.lax.conv_general_dilated(
      x, kernel, (strides, strides), [(pad, pad)] * 2, lhs_dilation=(dilation, dilation),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip
    return out + w[f'{name}.bias']

  def added(name, x):
    h = jax.nn.silu(row @ w[f'{name}.0.weight'].T + w[f'{name}.0.bias'])
    return x + (h @ w[f'{name}.2.weight'].T + w[f'{name}.2.bias'])

  def blocks(name, x):
    for i in range(3):
      here = f'{name}.{i}'
      if f'{here}.ln.weight' in w and (name, i) != ('b_out', 2):
        mean = x.mean((1, 2, 3), keepdims=True)
        spread = jnp.sqrt(x.var((1, 2, 3), keepdims=True) + _NORM)
        scale, offset = (w[f'{here}.ln.{part}'].transpose(1, 2, 0) for part in ('weight', 'bias'))
        x = (x - mean) / spread * scale + offset
      x = jax.nn.silu(conv(f'{here}.conv1', x, pad=1))
      x = jax.nn.silu(conv(f'{here}.conv2', x, pad=1))
    return x

  one = blocks('b1', added('te1', x))
  two = blocks('b2', added('te2', conv('down1', one, 2, 1)))
  three = blocks('b3', added('te3', conv('down2', two, 2, 1)))
  low = conv('down3.2', jax.nn.silu(conv('down3.0', three)), 2, 1)
  low = blocks('b_mid', added('te_mid', low))
  low = up('up1.2', jax.nn.silu(up('up1.0', low, 2, 1)), 1, 0)
  x = blocks('b4', added('te4', jnp.concatenate([three, low], -1)))
  x = blocks('b5', added('te5', jnp.concatenate([two, up('up2', x, 2, 1)], -1)))
  x = blocks('b_out', added('te_out', jnp.concatenate([one, up('up3', x, 2, 1)], -1)))
  return conv('conv_out', x, pad=1)
