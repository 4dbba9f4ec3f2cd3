"""diffusers folders: UNet2DModel, UNet2DConditionModel, AutoencoderKL, VQModel and
DiTTransformer2DModel."""

import re
from collections.abc import Collection
from typing import Any

from gmm_diffusion.checkpoints.importers.recipe import Part, Recipe, equal, pack, plain
from gmm_diffusion.nets.dit import DiT

BLOCK = {
  'in_layers.0': 'norm1',
  'in_layers.2': 'conv1',
  'emb_layers.1': 'time_emb_proj',
  'out_layers.0': 'norm2',
  'out_layers.3': 'conv2',
  'skip_connection': 'conv_shortcut',
}
ATTENTION = {'norm': 'group_norm', 'proj_out': 'to_out.0'}
# files written before diffusers 0.15 have the old names
OLD = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}


def recipe(
  part: str, module: Any, template: Any, names: Collection[str]
) -> tuple[Recipe, list[str]]:
  """(recipe, the source's names that belong to it)."""
  names = set(names)
  if part == 'autoencoder':
    rename, heads, legacy = _autoencoder(module), lambda width: 1, False
  elif isinstance(module, DiT):
    rename, heads, legacy = _dit, lambda width: module.heads, False
  else:
    rename, heads, legacy = _unet(module), module._heads, module.legacy_attention

  def known(name):
    for new, old in OLD.items():
      older = name.replace(f'.{new}.', f'.{old}.')
      if name not in names and older in names:
        return older
    return name

  def split(name):
    return tuple(known(rename(name).replace('.qkv.', f'.to_{letter}.')) for letter in 'qkv')

  out = pack(plain(template), heads, legacy, split, lambda name: known(rename(name)))
  if isinstance(module, DiT):
    out = _merge(out, module.blocks)
  return out, sorted(names)


def _inner(rest, attention):
  """Names inside a block."""
  for ours, theirs in (ATTENTION if attention else BLOCK).items():
    if rest.startswith(ours + '.'):
      return theirs + rest[len(ours) :]
  return rest


def _unet(module):
  fixed = {
    'input_blocks.0.0': 'conv_in',
    'time_embed.0': 'time_embedding.linear_1',
    'time_embed.2': 'time_embedding.linear_2',
    'out.0': 'conv_norm_out',
    'out.2': 'conv_out',
  }
  step, plain_attention = module.blocks + 1, not module.context_dim

  def rename(name):
    stem, leaf = name.rsplit('.', 1)
    if stem in fixed:
      return f'{fixed[stem]}.{leaf}'
    kind, numbers, rest = re.fullmatch(
      r'(input_blocks|middle_block|output_blocks)\.(\d+(?:\.\d+)?)\.(.*)', name
    ).groups()
    if kind == 'middle_block':
      place = {'0': 'resnets.0', '1': 'attentions.0', '2': 'resnets.1'}[numbers]
      return f'mid_block.{place}.{_inner(rest, plain_attention and numbers == "1")}'
    index, part = map(int, numbers.split('.'))
    level, block = divmod(index - (kind == 'input_blocks'), step)
    side = 'down' if kind == 'input_blocks' else 'up'
    if rest.startswith(('op.', 'conv.')):
      return f'{side}_blocks.{level}.{side}samplers.0.conv.{leaf}'
    attention = part == 1
    place = 'attentions' if attention else 'resnets'
    return f'{side}_blocks.{level}.{place}.{block}.{_inner(rest, attention and plain_attention)}'

  return rename


def _autoencoder(module):
  levels = len(module.multipliers)
  middle = {'block_1': 'resnets.0', 'attn_1': 'attentions.0', 'block_2': 'resnets.1'}

  def rename(name):
    name = name.replace('.norm_out.', '.conv_norm_out.')
    found = re.fullmatch(r'(encoder|decoder)\.mid\.(\w+)\.(.*)', name)
    if found:
      coder, place, rest = found.groups()
      return f'{coder}.mid_block.{middle[place]}.{_inner(rest, place == "attn_1")}'
    found = re.fullmatch(r'(encoder|decoder)\.(down|up)\.(\d+)\.(.*)', name)
    if not found:
      return name
    coder, side, level, rest = found.groups()
    level = (
      int(level) if side == 'down' else levels - 1 - int(level)
    )  # up blocks are numbered in order of use
    kind, _, rest = rest.partition('.')
    if kind in ('downsample', 'upsample'):
      return f'{coder}.{side}_blocks.{level}.{kind}rs.0.{rest}'
    block, _, rest = rest.partition('.')
    place = 'attentions' if kind == 'attn' else 'resnets'
    return f'{coder}.{side}_blocks.{level}.{place}.{block}.{_inner(rest, kind == "attn")}'

  return rename


_DIT = {
  'x_embedder.proj': 'pos_embed.proj',
  'final_layer.adaLN_modulation.1': 'proj_out_1',
  'final_layer.linear': 'proj_out_2',
}
_DIT_BLOCK = {
  'attn.qkv': 'attn1.qkv',
  'attn.proj': 'attn1.to_out.0',
  'mlp.fc1': 'ff.net.0.proj',
  'mlp.fc2': 'ff.net.2',
  'adaLN_modulation.1': 'norm1.linear',
}
_DIT_EMBEDDERS = {
  't_embedder.mlp.0': 'timestep_embedder.linear_1',
  't_embedder.mlp.2': 'timestep_embedder.linear_2',
  'y_embedder.embedding_table': 'class_embedder.embedding_table',
}


def _dit(name):
  stem, leaf = name.rsplit('.', 1)
  if stem in _DIT:
    return f'{_DIT[stem]}.{leaf}'
  if stem in _DIT_EMBEDDERS:
    return f'transformer_blocks.0.norm1.emb.{_DIT_EMBEDDERS[stem]}.{leaf}'
  _, index, rest = stem.split('.', 2)
  return f'transformer_blocks.{index}.{_DIT_BLOCK[rest]}.{leaf}'


def _merge(recipe, blocks):
  """Every block of the file has a copy of the embedders; they must be equal."""
  parts = dict(recipe.parts)
  for path, part in parts.items():
    first, marker = part.names[0], 'transformer_blocks.0.norm1.emb.'
    if first.startswith(marker):
      copies = tuple(first.replace(marker, marker.replace('0', str(i), 1)) for i in range(blocks))
      parts[path] = Part(
        copies, part.shapes * blocks, lambda *xs, build=part.build: build(equal(*xs))
      )
  return Recipe(parts, recipe.constants)
