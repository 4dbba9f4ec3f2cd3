"""What a diffusers folder says of its model in config.json, compared with a network here.

Shapes of tensors tell most of it, but not the rest: a wrong eps, number of heads or form of the
time embedding fits any file and makes other images.
"""

import json
import math
import os
from typing import Any

from gmm_diffusion.errors import UserError
from gmm_diffusion.nets.autoencoder import Autoencoder
from gmm_diffusion.nets.dit import DiT
from gmm_diffusion.nets.unet import UNet

_LIMIT = 2**16  # bytes; they have about a thousand


def check(path: str, module: Any, side: int) -> None:
  """Raises UserError, in one line, if a config.json that is there says other things than the
  network.

  side: of a sample. Keys that the file leaves out are not compared.
  """
  if not os.path.exists(path):
    return
  try:
    with open(path, 'rb') as file:
      given = json.loads(file.read(_LIMIT))
    differs = _differences(given, module, side)
  except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
    raise UserError(
      f'cannot read {path} ({type(error).__name__}); copy it again, or give the file of weights in '
      f'place of its folder'
    ) from error
  if differs:
    raise UserError(
      f'{path} contradicts the network of the config: {"; ".join(differs)}; set these options, or '
      f'give the file of weights in place of its folder'
    )


def _differences(given, module, side):
  describe = DESCRIBE.get(type(module), lambda *_: {})
  return [
    f'{key} is {given[key]!r:.60}, here {option} makes it {value!r:.60}'
    for key, (option, value) in describe(module, side, given).items()
    if given.get(key) is not None and not _equal(given[key], value)
  ]


def _equal(there, here):
  """One number there stands for all levels, and None here for a level that does not matter."""
  if here is None:
    return True
  if isinstance(here, list):
    there = there if isinstance(there, list) else [there] * len(here)
    return len(there) == len(here) and all(map(_equal, there, here))
  if isinstance(here, float):
    return math.isclose(there, here, rel_tol=1e-6)
  return there == here


def _widths(module):
  return [int(module.channels * multiplier) for multiplier in module.multipliers]


def _unet(module, side, given):
  """{key of the file: (option here, the value that the key should have)}."""
  widths = _widths(module)
  out = {
    'block_out_channels': ('multipliers', widths),
    'layers_per_block': ('blocks', module.blocks),
    'out_channels': ('out_channels', module.out_channels),
    'norm_eps': ('eps', module.eps),
    'freq_shift': ('freq_shift', module.freq_shift),
    'flip_sin_to_cos': ('sin_first', not module.sin_first),
    'downsample_padding': ('pad_end', 0 if module.pad_end else 1),
    'resnet_time_scale_shift': ('scale_shift', 'scale_shift' if module.scale_shift else 'default'),
  }
  kinds = given.get('down_block_types') or []
  attends = [side // 2**level in module.attention for level in range(len(widths))]
  if len(kinds) == len(widths) and attends != ['Attn' in kind for kind in kinds]:
    # the same words with attention where it is here
    fitting = [
      ('Attn' if here else 'no Attn') if here != ('Attn' in kind) else kind
      for kind, here in zip(kinds, attends)
    ]
    out['down_block_types'] = ('attention', fitting)
  if not module.context_dim:
    if any(attends) and module.head_channels:
      out['attention_head_dim'] = ('head_channels', module.head_channels)
    return out
  # in these models attention_head_dim is, by an old mistake, the number of heads
  heads = 'num_attention_heads' if given.get('num_attention_heads') else 'attention_head_dim'
  of_levels = lambda value: [value(i) if attends[i] else None for i in range(len(widths))]
  return {
    **out,
    'cross_attention_dim': ('context_dim', module.context_dim),
    heads: ('head_channels', of_levels(lambda level: module._heads(widths[level]))),
    'transformer_layers_per_block': ('transformer_depth', of_levels(module._depth)),
  }


def _autoencoder(module, side, given):
  del side, given
  return {
    'block_out_channels': ('multipliers', _widths(module)),
    'layers_per_block': ('blocks', module.blocks),
    'latent_channels': ('z_channels', module.z_channels or module.latent_channels),
    **({'num_vq_embeddings': ('codes', module.codes)} if module.codes else {}),
    **({'vq_embed_dim': ('latent_channels', module.latent_channels)} if module.codes else {}),
  }


def _dit(module, side, given):
  """Without its eps, which these files state differently from how the model was trained."""
  del side, given
  return {
    'num_layers': ('blocks', module.blocks),
    'num_attention_heads': ('heads', module.heads),
    'attention_head_dim': ('channels', module.channels // module.heads),
    'patch_size': ('patch', module.patch),
  }


DESCRIBE = {UNet: _unet, Autoencoder: _autoencoder, DiT: _dit}
