"""ConfigDict -> frozen dataclasses, the form in which settings enter the package.

A key that no dataclass knows, or a value of another type or out of range, is an error that names
the key and the valid ones. Types, defaults, ranges and help are here, in the form of options.py;
what a value means in detail stands where it is used.
"""

import dataclasses
import os
from typing import Any

from gmm_diffusion import options
from gmm_diffusion.errors import UserError
from gmm_diffusion.options import BATCH, COUNT, NUMBER, SEED, WIDTH, option
from gmm_diffusion.task_specs import (
  Annotate,
  Creativity,
  Distill,
  Evaluate,
  Finetune,
  Inverse,
  Masked,
  Posterior,
  Quantise,
  Restoration,
  Segmentation,
  Train,
  Tune,
)


@dataclasses.dataclass(frozen=True)
class Data:
  """Where the data come from (data.sources; segmentation: tasks.segmentation.scenes)."""

  name: str = option(
    'digits',
    "digits, toy, crafted: built in; folder: images in 'path'; npz: the file 'path'; tfds: "
    "'dataset' in 'path'; none: released models",
    ('digits', 'toy', 'folder', 'npz', 'tfds', 'crafted', 'none'),
  )
  dataset: str = option('', 'name for tfds, such as mnist; imagenet names the classes of none')
  path: str = option(
    '', 'folder of images, file of an .npz, folder of tfds, or of BSDS500 for segmentation'
  )
  size: int = option(
    0,
    'folder, npz, tfds: side to which images are resized and cropped, 0 leaves them as they are; '
    'none: side of the RGB images that a released model makes',
    '[0, 16384]',
  )
  colour: str = option(
    '',
    "what images are converted to; '': npz and tfds leave them as they are, folder makes rgb",
    ('', 'rgb', 'grey'),
  )
  labels: str = option(
    'folder',
    "folder: 'folder', the first one below path; none; or a CSV with the columns file,label",
  )
  held_out: float = option(
    0.0,
    "folder, npz: share that is kept from training, where there is no 'train' and 'test'",
    '[0, 1)',
  )
  skip_unreadable: bool = option(False, 'folder: leave out images that cannot be read')
  stream: bool = option(False, 'folder, npz, tfds: read images when they are used, not into memory')
  flip: bool = option(False, 'images are mirrored at random while training')
  classes: int = option(0, 'none: number of classes of a released model', '[0, 1000000]')
  images: str = option(
    '', 'segmentation: folder of own images, which replace the test set, or to annotate'
  )
  masks: str = option('', 'segmentation: folder of their masks')
  split: str = option('test', 'segmentation: what is evaluated', ('val', 'test'))
  limit: int = option(0, 'only so many training items, the first ones; 0 is all', NUMBER)

  @property
  def title(self) -> str:
    """What the data are called on pages."""
    folder = os.path.basename(os.path.normpath(self.path)) if self.name == 'folder' else ''
    return self.dataset or folder or self.name


@dataclasses.dataclass(frozen=True)
class Weights:
  """Where released weights come from."""

  format: str = option(
    '', "'': trained here; random: drawn; else a name in checkpoints.importers.FORMATS"
  )
  path: str = option('', "file, or folder of a diffusers model; '': below the workdir")
  url: str = option('', 'where --mode=fetch gets them')
  size: int = option(0, 'bytes of the download, as far as known', '[0, 1e15]')
  sha256: str = option('', 'of the download, as far as known; a prefix will do')


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The noise schedule; options that are None have the default of the one that is named."""

  name: str = option('linear', 'a name in maths.schedules.SCHEDULES')
  T: int | None = option(None, 'number of times of a discrete schedule', '[1, 1000000]')
  beta_min: float | None = option(None, 'linear, sqrt_linear: first variance', '(0, 1)')
  beta_max: float | None = option(None, 'linear, sqrt_linear: last variance', '(0, 1)')
  offset: float | None = option(None, 'cosine: keeps the first variances from 0', '[0, 1]')
  cap: float | None = option(None, 'cosine: largest variance', '(0, 1)')
  sigma_min: float | None = option(None, 'edm: least noise level', '(0, 1e6]')
  sigma_max: float | None = option(None, 'edm: largest noise level', '(0, 1e6]')
  sigma_data: float | None = option(None, 'edm: deviation of the data', '(0, 1e6]')
  signal_power: float | None = option(None, 'power: how fast the signal falls', '[0, 100]')
  noise_power: float | None = option(None, 'power: how late noise is added', '[0, 100]')
  noise_end: float | None = option(None, 'power: deviation of the noise at the end', '(0, 1e6]')


@dataclasses.dataclass(frozen=True)
class Net:
  """The denoising network; options that are None have the default of the one that is named."""

  name: str = option('unet', 'a name in nets.NETS')
  channels: int | None = option(None, 'width of the first level', WIDTH)
  multipliers: tuple[float, ...] | None = option(
    None, 'unet: width of each level over channels', '(0, 64]'
  )
  blocks: int | None = option(None, 'residual or transformer blocks (of each level)', '[1, 1024]')
  attention: tuple[int, ...] | None = option(
    None, 'unet: sides (pixels) of the levels with attention', WIDTH
  )
  head_channels: int | None = option(
    None, "unet: channels of an attention head; 0 uses 'heads'", '[0, 16384]'
  )
  heads: int | None = option(None, 'attention heads', '[1, 1024]')
  labels: str = option(
    'null',
    'null: one more label for "no class", which classifier-free guidance needs; plain: the classes '
    'only; none: no labels',
    ('null', 'plain', 'none'),
  )
  context_dim: int | None = option(
    None, 'unet: width of the context for cross-attention; 0 has none', '[0, 16384]'
  )
  transformer_depth: tuple[int, ...] | None = option(
    None, 'unet: blocks of each transformer (with a context): one number, or one a level', '[1, 64]'
  )
  scale_shift: bool | None = option(None, 'unet: time embedding as scale and shift, or added')
  resblock_updown: bool | None = option(None, 'unet: residual blocks change the resolution')
  pad_end: bool | None = option(None, 'unet: strided convolutions pad at the end only (DDPM)')
  attention_kind: str | None = option(
    None,
    'unet: dot; em for probabilistic attention; soft for linear time',
    ('dot', 'em', 'soft'),
  )
  attention_ratio: int | None = option(
    None, 'unet, soft: side of the windows whose means are landmarks', '[1, 1024]'
  )
  attention_normalise: str | None = option(
    None,
    'unet, soft: rows, by the sum of the weights; landmarks, as SOFT-Norm; none',
    ('none', 'landmarks', 'rows'),
  )
  legacy_attention: bool | None = option(None, 'unet: order of the packed q, k, v (ADM 64: False)')
  eps: float | None = option(None, 'unet, dit: of the normalisations', '(0, 1)')
  freq_shift: int | None = option(None, 'unet, dit: form of the time embedding', '[0, 1]')
  sin_first: bool | None = option(None, 'unet: form of the time embedding (DDPM: True)')
  patch: int | None = option(None, 'dit: side of the patches that are tokens', '[1, 1024]')
  padding: str = option(
    'zero', 'cnn, and machines beside it: beyond the edges', ('zero', 'circular')
  )
  final: str | None = option(None, 'cnn: last layer, a name in nets.cnn.FINALS')
  temperature: tuple[float, ...] | None = option(
    None, 'cnn: of final=gumbel, at the start and end of the training', '(0, 1e6]'
  )
  dropout: float | None = option(None, 'unet: rate in residual blocks while training', '[0, 1)')
  remat: bool | None = option(
    None, 'unet, dit: blocks are computed again for the gradient, which takes less memory'
  )
  learn_sigma: bool = option(False, 'twice the output channels: a learned variance comes last')
  dtype: str = option('float32', 'of the computation', ('float32', 'bfloat16'))
  checkpoint: int = option(
    0, 'not while training: the step of the checkpoint to use; 0 is the last', '[0, 100000000]'
  )
  average: int = option(
    0,
    'not while training: which average of the weights; 0 is the first, then train.averages',
    '[0, 3]',
  )
  weights: Weights = Weights()

  def options(self) -> dict[str, Any]:
    """What was set of what concerns the network alone."""
    others = 'name', 'labels', 'learn_sigma', 'dtype', 'checkpoint', 'average', 'weights'
    return _set(self, others)


@dataclasses.dataclass(frozen=True)
class Autoencoder:
  """The first stage of latent diffusion (nets.autoencoder)."""

  name: str = option('', "vq or kl; '' is none", ('', 'vq', 'kl'))
  latent_channels: int = option(3, 'channels of the latents', WIDTH)
  z_channels: int = option(
    0, 'channels between coders and latents; 0: latent_channels', '[0, 16384]'
  )
  codes: int = option(8192, 'vq: size of the codebook', '[1, 10000000]')
  channels: int = option(128, 'width of the first level', WIDTH)
  multipliers: tuple[float, ...] = option(
    (1.0, 2.0, 4.0), 'width of each level over channels', '(0, 64]'
  )
  blocks: int = option(2, 'residual blocks of each level', '[1, 1024]')
  attention: tuple[int, ...] = option((), 'sides (pixels) of the levels with attention', WIDTH)
  scale: float = option(
    1.0,
    'the network sees latents times this; a file with its own value overrides it; 0: training '
    'makes their deviation 1',
    '[0, 1e6]',
  )
  batch: int = option(8, 'images coded or decoded at a time on each device', BATCH)
  weights: Weights = Weights()


@dataclasses.dataclass(frozen=True)
class Classifier:
  """ADM's classifier of noisy images (nets.unet.Classifier), which guides."""

  scale: float = option(0.0, 'multiplies its gradient; 0 is none', '[0, 1e6]')
  channels: int = option(128, 'width of the first level', WIDTH)
  multipliers: tuple[float, ...] = option(
    (1.0, 1.0, 2.0, 2.0, 4.0, 4.0), 'width of each level over channels', '(0, 64]'
  )
  blocks: int = option(2, 'residual blocks of each level', '[1, 1024]')
  attention: tuple[int, ...] = option((32, 16, 8), 'sides of the levels with attention', WIDTH)
  head_channels: int = option(64, 'channels of an attention head', WIDTH)
  trained: str = option(
    '', "the workdir of one from --mode=train with train.what=classifier; '': released weights"
  )
  weights: Weights = Weights()


@dataclasses.dataclass(frozen=True)
class Denoiser:
  """What predicts the clean image, and how it is guided."""

  name: str = option('network', 'a name in denoisers.NAMES: network, or one that is exact')
  prediction: str = option('eps', 'what the network outputs, a name in maths.marginals.PREDICTIONS')
  clip: bool = option(True, 'clip x_0 to [-1, 1]')
  size: int | None = option(None, 'score machines: side of the patches, odd', '[1, 16383]')
  padding: str | None = option(None, 'LS, ELS, consistent: beyond the edges', ('zero', 'circular'))
  places: str | None = option(None, 'ELS: where patches come from', ('', 'interior', 'all'))
  guidance: float = option(1.0, 'classifier-free scale; 1 is the conditional model', '[0, 1e6]')
  guidance_interval: tuple[float, ...] = option(
    (), '(low, high) in b_t / a_t, where to guide; () is everywhere', '[0, 1e30]'
  )
  guidance_channels: int = option(
    0, 'how many leading channels are guided (3 of 4 in the code of DiT); 0 is all', '[0, 16384]'
  )


@dataclasses.dataclass(frozen=True)
class Sampler:
  """The sampler and its grid; options that are None have the default of the sampler's own code, and
  each sampler takes those it has."""

  name: str = option('ddim', 'a name in samplers.NAMES')
  steps: int = option(10, 'steps of the grid', '[1, 1000000]')
  grid: str = option('trailing', 'a name in maths.grids.GRIDS')
  end: str = option('clean', "clean, or first: finish at the schedule's first time")
  rho: float | None = option(
    None, 'grid karras: larger puts more steps near clean data', '(0, 1000]'
  )
  times: tuple[float, ...] | None = option(
    None, 'the grid by hand: falling times of the schedule, in place of steps, grid and rho'
  )
  eta: float | None = option(None, '0 is deterministic, 1 has the variance of DDPM', '[0, 1]')
  variance: str | None = option(None, 'ddpm: small, large or learned')
  components: int | None = option(None, 'mixture: K', '[1, 10000000]')
  scale: float | None = option(None, 'mixture: length of the offsets; posterior_*: their factor')
  scale_interval: tuple[float, ...] | None = option(
    None, 'mixture: (low, high) in b_t / a_t, the steps with offsets; () is all'
  )
  offsets: str | None = option(None, 'mixture: rand, rand_centred or ortho')
  form: str | None = option(None, 'mixture: A or B')
  covariance: str | None = option(None, 'mixture: diagonal, vub or exact')
  infeasible: str | None = option(None, 'mixture: above the largest scale: clip, shrink or error')
  priors: tuple[float, ...] | None = option(None, 'mixture: K numbers; () is uniform')
  shared: bool | None = option(None, 'mixture: one draw of offsets for all steps')
  offsets_seed: int | None = option(None, 'mixture: seed of the offsets', SEED)
  last_step: str | None = option(
    None, 'mixture: what ends at clean data: mean, or as in the source'
  )
  order: int | None = option(None, 'multistep samplers: 1 to 3 (deis, ipndm: 4)', '[1, 4]')
  solver: str | None = option(None, 'dpmpp: published or exact')
  lower_final: str | None = option(None, 'dpmpp, unipc: always, never or source')
  bh: str | None = option(None, 'unipc: bh1 or bh2')
  extrapolate: bool | None = option(
    None, 'multistep samplers: extrapolate x_0 over the step to clean data; False as the authors do'
  )
  ratios: tuple[float, ...] | None = option(
    None, 'multistep samplers: how far ahead each prediction is moved (DC-Solver); () is 1'
  )
  compensate: int | None = option(None, 'with ratios: degree in which they are moved', '[1, 2]')
  gamma: float | None = option(None, 'bdia: in [0, 1]')
  churn: float | None = option(None, 'heun: noise added to each step', '[0, 1e6]')
  churn_min: float | None = option(None, 'heun: only from this b_t / a_t on', '[0, 1e6]')
  churn_max: float | None = option(None, 'heun: only up to this b_t / a_t', '[0, 1e6]')
  churn_noise: float | None = option(None, 'heun: deviation of that noise', '[0, 1e6]')
  level: float | None = option(None, 'one_step: b / a where the network is asked', '(0, 1e6]')
  directions: int | None = option(None, 'posterior_*: how many of its file', '[1, 10000]')
  places: str | None = option(None, 'posterior_gmm: axes or corners')
  posterior: str | None = option(None, 'posterior_*: its file; not set: WORKDIR/residuals.npz')
  path: str | None = option(None, 'tuned: its file; not set: WORKDIR/tuned/STEPS.json')
  shift_window: int | None = option(None, 'time_shift: width of the search', NUMBER)
  shift_cutoff: int | None = option(None, 'time_shift: no shift for so many clean times', NUMBER)

  def options(self) -> dict[str, Any]:
    """What was set of what concerns the kernel and not the grid."""
    return _set(self, ('name', 'steps', 'grid', 'end', 'rho', 'times'))


@dataclasses.dataclass(frozen=True)
class Sample:
  """--mode=sample."""

  count: int = option(64, 'samples', COUNT)
  batch: int = option(64, 'at a time on each device; halved where memory is short', BATCH)
  shard: int = option(1024, 'samples of a file: what is lost at most by a stop', COUNT)
  label: str = option('', "numbers or names of classes, by commas, taken in turn; '' is all")
  png: bool = option(False, 'also each image as a PNG file')
  drop: float = option(
    0.0, 'share with the least steady predictions that is drawn in excess and left out', '[0, 0.9]'
  )
  gif: bool = option(False, 'also a .gif: x_0 as predicted in each step, of the first 16')


@dataclasses.dataclass(frozen=True)
class Spec:
  """Everything a run depends on."""

  task: str = option(
    'diffusion',
    'what is done with it',
    ('diffusion', 'segmentation', 'creativity', 'restoration', 'masked'),
  )
  seed: int = option(0, 'of training and sampling', SEED)
  data: Data = Data()
  schedule: Schedule = Schedule()
  net: Net = Net()
  autoencoder: Autoencoder = Autoencoder()
  classifier: Classifier = Classifier()
  denoiser: Denoiser = Denoiser()
  train: Train = Train()
  finetune: Finetune = Finetune()
  distill: Distill = Distill()
  quantise: Quantise = Quantise()
  sampler: Sampler = Sampler()
  sample: Sample = Sample()
  inverse: Inverse = Inverse()
  evaluate: Evaluate = Evaluate()
  tune: Tune = Tune()
  posterior: Posterior = Posterior()
  segmentation: Segmentation = Segmentation()
  annotate: Annotate = Annotate()
  creativity: Creativity = Creativity()
  restoration: Restoration = Restoration()
  masked: Masked = Masked()

  def __post_init__(self):
    options.check(self)
    if self.task == 'creativity' and self.denoiser.name != 'network':
      raise UserError(
        f"task 'creativity' compares networks with creativity.machines; denoiser.name must be "
        f'network, got {self.denoiser.name!r}'
      )
    net, wanted, interval = self.net, self.segmentation, self.denoiser.guidance_interval
    for name in ('net', 'autoencoder', 'classifier'):
      if getattr(self, name).multipliers == ():
        raise UserError(f'{name}.multipliers must have at least one entry, got ()')
    kind = net.attention_kind or 'dot'
    if kind != 'dot' and (net.name != 'unet' or net.context_dim or net.weights.format):
      raise UserError(
        f"net.attention_kind {kind!r} needs a U-Net trained here, without a context; use 'dot'"
      )
    self.train.check_averages()
    if self.train.keep_every % self.train.checkpoint_every:
      raise UserError(
        f'train.keep_every {self.train.keep_every} must be a multiple of train.checkpoint_every '
        f'{self.train.checkpoint_every}'
      )
    if self.quantise.activations == 1:
      raise UserError('quantise.activations must be 0 or in [2, 16], got 1')
    if len(wanted.crop) != 2 or any(side % 16 for side in wanted.crop):
      raise UserError(
        f'segmentation.crop must be two multiples of 16, each at least 32, got {wanted.crop}'
      )
    if wanted.slots < wanted.clicks:
      raise UserError(
        f'segmentation.slots {wanted.slots} must be at least segmentation.clicks {wanted.clicks}'
      )
    if interval and not (len(interval) == 2 and interval[0] <= interval[1]):
      raise UserError(
        f'denoiser.guidance_interval must be () or (low, high) with low <= high, got {interval}'
      )


def _set(section, others):
  """{name: value} of the fields that are set, without some."""
  values = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
  return {key: v for key, v in values.items() if v is not None and key not in others}


def from_config(config: Any) -> Spec:
  """Spec of a ConfigDict (or any nested mapping); keys left out have their defaults.

  Raises:
    UserError: on an unknown key, a value of the wrong type, or a value out of range.
  """
  return options.read(Spec, config)


def check_key(key: str) -> None:
  """Raises UserError unless a dotted key, such as 'sampler.steps', exists and holds a value."""
  kind, path = Spec, ''
  for part in key.split('.'):
    kind = options.find(kind, part, path)
    path += part + '.'
  if dataclasses.is_dataclass(kind):
    raise UserError(
      f'config key {key!r} is a section; set its keys one by one, such as '
      f'{key}.{dataclasses.fields(kind)[0].name}'
    )
