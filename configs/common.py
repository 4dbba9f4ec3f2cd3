"""What the configs share: every key with its default, the variants after the colon, and the
released models."""

import dataclasses
import typing

from ml_collections import ConfigDict, config_dict

from gmm_diffusion import options, specs

# The source's five variants; evaluation adds the isotropic control of each.
SOURCE_VARIANTS = (
  'ddim',
  'ddim_gmm_rand',
  'ddim_gmm_ortho',
  'ddim_gmm_ortho_vub',
  'ddim_gmm_ortho_shared',
  'ddim_gmm_ortho_vub_shared',
)

# The source's protocol [GMM section 4], each a variant such as
# imagenet256.py:ldm,steps20,eta0.5,scale10.
PRESETS = {
  **{f'steps{n}': {'steps': n} for n in (10, 20, 50, 100)},
  **{f'eta{eta:g}': {'eta': eta} for eta in (0.0, 0.2, 0.5, 1.0)},
  **{f'scale{scale:g}': {'scale': scale} for scale in (0.01, 0.1, 1.0, 10.0)},
}

ADM = 'https://openaipublic.blob.core.windows.net/diffusion/jul-2021/'
HUB = 'https://huggingface.co/'
LDM = 'https://ommer-lab.com/files/latent-diffusion/'


def defaults() -> ConfigDict:
  """All keys of gmm_diffusion/specs.py with their defaults."""
  out = ConfigDict(dataclasses.asdict(specs.Spec()))
  for key, kind, field in options.leaves(specs.Spec):
    if field.default is None:  # the type is kept for what sets the key
      kind = typing.get_origin(kind) or kind
      out.update_from_flattened_dict({key: config_dict.placeholder(kind)})
  return out


def arguments(arg: str, valid: tuple[str, ...]) -> set[str]:
  """The variants in configs/NAME.py:ARG[,ARG]."""
  found = set(filter(None, (arg or '').split(',')))
  if not found <= set(valid):
    raise ValueError(
      f'unknown config argument {", ".join(sorted(found - set(valid)))!r}; valid: '
      f'{", ".join(valid)}'
    )
  return found


def released(
  arg: str, size: int, models: tuple[str, ...], more: tuple[str, ...] = ()
) -> tuple[ConfigDict, str, bool]:
  """(config of a released model of size x size images, which of `models`, whether to run locally);
  the first is the default. more: further arguments that are valid."""
  found = arguments(arg, (*models, *more, 'runlocal', *PRESETS))
  chosen = [model for model in models if model in found] or [models[0]]
  if len(chosen) > 1:
    raise ValueError(
      f'config arguments {" and ".join(chosen)!r} exclude each other; valid: one of '
      f'{", ".join(models)}'
    )
  config = defaults()
  config.data.update(name='none', size=size)
  config.sampler.update(name='ddim_gmm', steps=10, components=8, scale=1.0, grid='leading')
  config.sample.update(count=16, batch=8)
  config.evaluate.samplers = SOURCE_VARIANTS
  presets = sorted(found & set(PRESETS))
  if len({key for name in presets for key in PRESETS[name]}) < len(presets):
    raise ValueError(
      f'config arguments {", ".join(presets)} set the same key twice; valid: one each of steps, '
      f'eta and scale'
    )
  for name in presets:
    config.sampler.update(PRESETS[name])
  return config, chosen[0], 'runlocal' in found


def adm(config: ConfigDict, file: str, **options) -> None:
  """An ADM U-Net [ADM table 4]; released as `file`."""
  config.net.update(
    channels=256,
    multipliers=(1.0, 1.0, 2.0, 2.0, 4.0, 4.0),
    blocks=2,
    attention=(32, 16, 8),
    head_channels=64,
    learn_sigma=True,
    labels='plain',
  )
  config.net.update(options)
  config.net.weights.update(format='guided_diffusion', url=ADM + file)


def adm_classifier(config: ConfigDict, file: str, scale: float, **options) -> None:
  """The classifier that guides it; scale of its gradient as its authors use it."""
  config.classifier.update(scale=scale, **options)
  config.classifier.weights.update(format='guided_diffusion', url=ADM + file)


def ddpm(config: ConfigDict, repository: str, **options) -> None:
  """A DDPM U-Net in diffusers form; the defaults are those of the 256 x 256 models."""
  config.net.update(
    channels=128,
    multipliers=(1.0, 1.0, 2.0, 2.0, 4.0, 4.0),
    blocks=2,
    attention=(16,),
    head_channels=0,
    heads=1,
    labels='none',
    scale_shift=False,
    resblock_updown=False,
    pad_end=True,
    eps=1e-6,
    freq_shift=1,
    sin_first=True,
  )
  config.net.update(options)
  config.net.weights.update(
    format='diffusers', url=f'{HUB}google/{repository}/resolve/main/diffusion_pytorch_model.bin'
  )


def ldm(config: ConfigDict, **options) -> None:
  """A latent diffusion model in the source's setting; the defaults are the face and bedroom models
  over the VQ-f4 stage."""
  config.schedule.update(name='sqrt_linear', beta_min=0.0015, beta_max=0.0195)
  config.net.update(
    channels=224,
    multipliers=(1.0, 2.0, 3.0, 4.0),
    blocks=2,
    attention=(32, 16, 8),
    head_channels=32,
    labels='none',
    scale_shift=False,
    resblock_updown=False,
  )
  config.net.update(options)
  config.autoencoder.name = 'vq'
  config.denoiser.clip = False
  config.sampler.end = 'first'


def ldm_weights(config: ConfigDict, file: str) -> None:
  """One CompVis file for network and first stage."""
  for section in (config.net, config.autoencoder):
    section.weights.update(format='compvis', url=LDM + file)


def kl_f8(config: ConfigDict) -> None:
  """The KL-f8 first stage [LDM table 8]."""
  config.autoencoder.update(name='kl', latent_channels=4, multipliers=(1.0, 2.0, 4.0, 4.0))


def kl_f8_weights(config: ConfigDict) -> None:
  """Those of Stable Diffusion, fine-tuned, for KL-f8."""
  config.autoencoder.scale = 0.18215
  config.autoencoder.weights.update(
    format='diffusers',
    url=HUB + 'stabilityai/sd-vae-ft-mse/resolve/main/diffusion_pytorch_model.safetensors',
    size=334643276,
    sha256='a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815',
  )


def from_scratch(config: ConfigDict, local: bool, dataset: str, **train) -> ConfigDict:
  """The same network to be trained here, on a prepared tfds set; train: as its authors do.

  An autoencoder stays the released one.
  """
  if config.classifier.scale:
    raise ValueError('a network is trained without the classifier that guides; leave _guided out')
  if local:
    shrink(config)
    config.autoencoder.scale = 0.0
    train = dict(steps=200, batch=16, learning_rate=1e-3, warmup=20, ema=0.99)
  config.data.update(name='tfds', dataset=dataset, path='~/tensorflow_datasets', flip=True)
  config.data.update(stream=not local, limit=1000 if local else 0)
  config.net.weights.update(format='', url='', size=0, sha256='')
  config.train.update(checkpoint_every=max(train['steps'] // 200, 100))
  config.train.update(train)
  return config


def shrink(config: ConfigDict) -> ConfigDict:
  """A model of the same kind with random weights that a laptop samples in seconds; its images are
  noise."""
  config.data.size = 32
  side = 32 // 2 ** (len(config.autoencoder.multipliers) - 1) if config.autoencoder.name else 32
  config.net.update(channels=32, blocks=1, attention=(side // 2,), head_channels=16)
  if config.net.name == 'dit':
    config.net.update(blocks=2, heads=2)
  else:
    config.net.multipliers = (1.0, 2.0)
  if config.net.context_dim:
    config.net.context_dim = 32
  config.autoencoder.update(channels=32, blocks=1, codes=64)
  config.classifier.update(
    channels=32, blocks=1, multipliers=(1.0, 2.0), attention=(16,), head_channels=16
  )
  for section in (config.net, config.autoencoder, config.classifier):
    section.weights.format = 'random'
  config.sample.update(count=4, batch=4)
  return config
