"""CompVis .ckpt files (latent-diffusion): one file holds U-Net, class embedding and first stage."""

from collections.abc import Collection
from typing import Any

from gmm_diffusion.checkpoints.importers.recipe import Recipe, pack, plain

UNET = 'model.diffusion_model.'
CONTEXT = 'context_emb.weight'
# names inside the first stage: ours -> theirs
BLOCK = {
  'in_layers.0': 'norm1',
  'in_layers.2': 'conv1',
  'out_layers.0': 'norm2',
  'out_layers.3': 'conv2',
  'skip_connection': 'nin_shortcut',
}


def recipe(
  part: str, module: Any, template: Any, names: Collection[str]
) -> tuple[Recipe, list[str]]:
  """(recipe, the source's names that belong to it). The U-Net's moving average is taken where the
  file has one."""
  return (_autoencoder if part == 'autoencoder' else _unet)(template, names)


def _unet(template, names):
  # files without the average may still hold its counters
  counters = ('model_ema.decay', 'model_ema.num_updates')
  ema = any(name.startswith('model_ema.') and name not in counters for name in names)

  def rename(name):
    if name == CONTEXT:
      return 'cond_stage_model.embedding.weight'
    # the moving average is stored under names without their dots
    return (
      'model_ema.' + (UNET.removeprefix('model.') + name).replace('.', '') if ema else UNET + name
    )

  mine = 'model_ema.' if ema else UNET
  return plain(template, rename), [
    name for name in names if name.startswith(mine) and name not in counters
  ]


def _autoencoder(template, names):
  # inside a latent diffusion file, or in a file of its own
  prefix = (
    'first_stage_model.' if any(name.startswith('first_stage_model.') for name in names) else ''
  )

  def rename(name):
    for ours, theirs in BLOCK.items():
      name = name.replace(f'.{ours}.', f'.{theirs}.')
    return prefix + name

  def split(name):
    return tuple(rename(name.replace('.qkv.', f'.{letter}.')) for letter in 'qkv')

  used = ('encoder.', 'decoder.', 'quant_conv.', 'post_quant_conv.', 'quantize.')
  owned = [name for name in names if name.startswith(tuple(prefix + start for start in used))]
  return pack(plain(template), lambda width: 1, False, split, rename), owned
