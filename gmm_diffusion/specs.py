"""ConfigDict -> frozen dataclasses, the form in which settings enter the package.

A key that no dataclass knows, or a value of another type, is an error that names the key and
the valid ones. Types and defaults are here; what a value means stands where it is used.
"""

import dataclasses
import typing
from typing import Any

from gmm_diffusion.errors import UserError


@dataclasses.dataclass(frozen=True)
class Data:
  """name: 'digits', 'toy', 'tfds', 'crafted' (data.crafted) or 'none'.

  limit: only so many training items, the first ones; 0 is all. tfds reads `dataset` (such as
  'mnist') from `path`. none has no items: `size` and `classes` say what a pretrained model makes,
  RGB images of size x size; dataset 'imagenet' gives its classes their names.

  Segmentation: digit scenes, or BSDS500 in `path`; folders `images` and `masks` of one's own
  replace the test set. split: 'val' or 'test', what is evaluated.
  """

  name: str = 'digits'
  dataset: str = ''
  path: str = ''
  size: int = 0
  classes: int = 0
  images: str = ''
  masks: str = ''
  split: str = 'test'
  limit: int = 0


@dataclasses.dataclass(frozen=True)
class Weights:
  """Where released weights come from; format '' is a network trained here, 'random' draws them.

  format: a name in checkpoints.importers.FORMATS. path: file, or folder of a diffusers model ('':
  below the workdir, under the name in the url). url, size (bytes), sha256: of the download, as far
  as known; the hash may be a prefix.
  """

  format: str = ''
  path: str = ''
  url: str = ''
  size: int = 0
  sha256: str = ''


@dataclasses.dataclass(frozen=True)
class Schedule:
  """name in maths.schedules.SCHEDULES; the numbers reach the schedules that have them."""

  name: str = 'linear'
  T: int = 1000
  beta_min: float = 1e-4
  beta_max: float = 0.02


@dataclasses.dataclass(frozen=True)
class Net:
  """name in nets.NETS, its options (see there; each network takes those it has) and its weights.

  labels: 'null' has one more label for "no class", which classifier-free guidance needs; 'plain'
  has the classes only; 'none' takes no labels. dtype is that of the computation.
  """

  name: str = 'unet'
  channels: int = 64
  multipliers: tuple[float, ...] = (1.0, 2.0)
  blocks: int = 2
  attention: tuple[int, ...] = (4,)
  head_channels: int = 32
  heads: int = 1
  labels: str = 'null'
  context_dim: int = 0
  scale_shift: bool = True
  resblock_updown: bool = True
  pad_end: bool = False
  attention_kind: str = 'dot'
  legacy_attention: bool = True
  eps: float = 1e-5
  freq_shift: int = 0
  sin_first: bool = False
  patch: int = 2
  padding: str = 'zero'
  final: str = 'none'
  temperature: tuple[float, ...] = (2.0, 0.1)
  dropout: float = 0.0
  learn_sigma: bool = False
  dtype: str = 'float32'
  weights: Weights = Weights()


@dataclasses.dataclass(frozen=True)
class Autoencoder:
  """The first stage of latent diffusion (nets.autoencoder); name '' is none, else 'vq' or 'kl'.

  scale: the network sees latents times this; a file that holds its own value overrides it. batch:
  latents decoded at a time on each device.
  """

  name: str = ''
  latent_channels: int = 3
  codes: int = 8192
  channels: int = 128
  multipliers: tuple[float, ...] = (1.0, 2.0, 4.0)
  blocks: int = 2
  attention: tuple[int, ...] = ()
  scale: float = 1.0
  batch: int = 8
  weights: Weights = Weights()


@dataclasses.dataclass(frozen=True)
class Classifier:
  """ADM's classifier of noisy images (nets.unet.Classifier); scale multiplies its gradient, 0 is
  none."""

  scale: float = 0.0
  channels: int = 128
  multipliers: tuple[float, ...] = (1.0, 1.0, 2.0, 2.0, 4.0, 4.0)
  blocks: int = 2
  attention: tuple[int, ...] = (32, 16, 8)
  head_channels: int = 64
  weights: Weights = Weights()


@dataclasses.dataclass(frozen=True)
class Denoiser:
  """name: 'network', 'mixture' (the exact one of toy data) or 'empirical' (the exact one of a data
  set).

  prediction: what the network outputs, a name in maths.marginals.PREDICTIONS.
  clip: clip x_0 to [-1, 1]. guidance: classifier-free scale; 1 is the plain conditional model.
  guidance_interval: (low, high) in b_t / a_t, where to guide; () is everywhere. guidance_channels:
  how many leading channels are guided (3 of 4 in DiT's code); 0 is all.
  """

  name: str = 'network'
  prediction: str = 'eps'
  clip: bool = True
  guidance: float = 1.0
  guidance_interval: tuple[float, ...] = ()
  guidance_channels: int = 0


@dataclasses.dataclass(frozen=True)
class Train:
  """Optimiser and loop. batch is the total over all devices; steps are optimiser updates."""

  steps: int = 1000
  batch: int = 128
  learning_rate: float = 1e-3
  warmup: int = 100
  clip_norm: float = 1.0
  ema: float = 0.999
  loss: str = 'simple'
  label_dropout: float = 0.1
  log_every: int = 50
  checkpoint_every: int = 500


@dataclasses.dataclass(frozen=True)
class Sampler:
  """name in samplers.NAMES; each sampler takes the options it has (its own arguments, and
  samplers.mixture.Options)."""

  name: str = 'ddim'
  steps: int = 10
  grid: str = 'trailing'
  end: str = 'clean'
  eta: float = 0.0
  variance: str = 'small'
  components: int = 8
  scale: float = 1.0
  scale_interval: tuple[float, ...] = ()
  offsets: str = 'ortho'
  form: str = 'B'
  covariance: str = 'exact'
  infeasible: str = 'clip'
  priors: tuple[float, ...] = ()
  shared: bool = True
  offsets_seed: int = 0
  order: int = 2
  solver: str = 'published'
  lower_final: str = 'source'
  bh: str = 'bh2'
  gamma: float = 1.0
  churn: float = 0.0
  shift_window: int = 20
  shift_cutoff: int = 300

  def options(self) -> dict[str, Any]:
    """What concerns the kernel and not the grid."""
    grid = ('name', 'steps', 'grid', 'end')
    return {key: value for key, value in dataclasses.asdict(self).items() if key not in grid}


@dataclasses.dataclass(frozen=True)
class Sample:
  """count samples, `batch` at a time on each device (halved where the memory does not suffice).

  shard: samples in a file; what is lost at most when a run is stopped.
  label: numbers or names of classes, separated by commas, taken in turn; '' takes all classes.
  """

  count: int = 64
  batch: int = 64
  shard: int = 1024
  label: str = ''


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """What to compare with what, and how.

  samplers: each draws `count` samples. store: whether these are kept, or only their features.
  images: a folder, an .npz or tfds:NAME:SPLIT that is evaluated in place of samples.
  reference: the same kinds of path, or an .npz with mu and sigma; '' takes the first
  `reference_count` training items. features: a name in metrics.features.FEATURES. inception: its
  weights file ('': under its public name in the cache). metrics: names in metrics.METRICS; () is
  all standard ones that can be computed. neighbours: k of precision and recall. cache: folder for
  feature networks and references ('' = workdir). skip_unreadable: leave out images that cannot be
  read, and say how many.
  """

  samplers: tuple[str, ...] = ('ddim', 'ddim_gmm', 'ddim_noise')
  count: int = 1000
  store: bool = True
  images: str = ''
  reference: str = ''
  reference_count: int = 10000
  features: str = 'classifier'
  inception: str = ''
  metrics: tuple[str, ...] = ()
  neighbours: int = 3
  cache: str = ''
  skip_unreadable: bool = False


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """Interactive segmentation (tasks/segmentation/model.py): the network, and how it is evaluated.

  channels, blocks, heads, head_channels, key_steps, value_steps: of the network. crop: height and
  width to train on. size: images with a longer side above it are worked on at it. slots: clicks
  that a session holds. clicks: how many the simulated annotator makes, on `objects` objects (one of
  each image first), `batch` at a time on each device. baseline: also the network that takes clicks
  as channels.
  """

  channels: int = 32
  blocks: int = 2
  heads: int = 2
  head_channels: int = 16
  key_steps: int = 2
  value_steps: int = 2
  crop: tuple[int, ...] = (96, 128)
  size: int = 240
  slots: int = 40
  clicks: int = 20
  objects: int = 200
  batch: int = 8
  baseline: bool = True


@dataclasses.dataclass(frozen=True)
class Creativity:
  """Score machines beside networks that differ in their final layer (task 'creativity').

  networks: names in nets.cnn.FINALS, the first is the one that patch sizes are calibrated on.
  machines: names in denoisers.score_machines.MACHINES. sizes: patch sizes to choose from. images:
  training images that the machines see, the first ones; 0 is all. pairs: samples of machines, of
  the same noise as the networks' first. probes: trajectories to calibrate on.
  """

  networks: tuple[str, ...] = ('none', 'top1', 'gumbel', 'softmax', 'identity')
  machines: tuple[str, ...] = ('ELS', 'bbELS', 'LS', 'IS', 'consistent')
  sizes: tuple[int, ...] = (3, 5, 7, 9)
  images: int = 0
  pairs: int = 100
  probes: int = 8


@dataclasses.dataclass(frozen=True)
class Spec:
  """Everything a run depends on. task: what main.py does with it, 'diffusion', 'segmentation' or
  'creativity'."""

  task: str = 'diffusion'
  seed: int = 0
  data: Data = Data()
  schedule: Schedule = Schedule()
  net: Net = Net()
  autoencoder: Autoencoder = Autoencoder()
  classifier: Classifier = Classifier()
  denoiser: Denoiser = Denoiser()
  train: Train = Train()
  sampler: Sampler = Sampler()
  sample: Sample = Sample()
  evaluate: Evaluate = Evaluate()
  segmentation: Segmentation = Segmentation()
  creativity: Creativity = Creativity()

  def __post_init__(self):
    _choose('task', self.task, ('diffusion', 'segmentation', 'creativity'))
    _choose('data.split', self.data.split, ('val', 'test'))
    _choose('data.name', self.data.name, ('digits', 'toy', 'tfds', 'crafted', 'none'))
    _choose('denoiser.name', self.denoiser.name, ('network', 'mixture', 'empirical'))
    _choose('net.attention_kind', self.net.attention_kind, ('dot', 'em'))
    if self.net.attention_kind == 'em' and (
      self.net.name != 'unet' or self.net.context_dim or self.net.weights.format
    ):
      raise UserError(
        "net.attention_kind 'em' needs a U-Net trained here, without a context; use 'dot'"
      )
    _choose('net.dtype', self.net.dtype, ('float32', 'bfloat16'))
    _choose('net.labels', self.net.labels, ('null', 'plain', 'none'))
    _choose('autoencoder.name', self.autoencoder.name, ('', 'vq', 'kl'))
    _choose('train.loss', self.train.loss, ('simple', 'elbo'))
    for key in (
      'train.steps',
      'train.batch',
      'train.log_every',
      'train.checkpoint_every',
      'sample.count',
      'sample.batch',
      'sample.shard',
      'evaluate.count',
      'evaluate.reference_count',
      'evaluate.neighbours',
      'net.channels',
      'net.blocks',
      'schedule.T',
      'net.patch',
      'net.heads',
      'autoencoder.batch',
      'autoencoder.channels',
      'classifier.channels',
      'creativity.pairs',
      'creativity.probes',
      *(
        f'segmentation.{name}'
        for name in (
          'channels',
          'blocks',
          'heads',
          'head_channels',
          'size',
          'slots',
          'clicks',
          'objects',
          'batch',
        )
      ),
    ):
      if self.get(key) < 1:
        raise UserError(f'{key} must be at least 1, got {self.get(key)}')
    if len(self.segmentation.crop) != 2 or any(
      side < 32 or side % 16 for side in self.segmentation.crop
    ):
      raise UserError(
        f'segmentation.crop must be two multiples of 16, each at least 32, got '
        f'{self.segmentation.crop}'
      )
    if self.segmentation.slots < self.segmentation.clicks:
      raise UserError(
        f'segmentation.slots {self.segmentation.slots} must be at least segmentation.clicks '
        f'{self.segmentation.clicks}'
      )
    for key in ('train.ema', 'train.label_dropout', 'net.dropout'):
      if not 0 <= self.get(key) < 1:
        raise UserError(f'{key} must be in [0, 1), got {self.get(key)}')
    for key in (
      'seed',
      'data.limit',
      'creativity.images',
      'sampler.offsets_seed',
      'train.warmup',
      'denoiser.guidance',
      'classifier.scale',
      'denoiser.guidance_channels',
      'segmentation.key_steps',
      'segmentation.value_steps',
    ):
      if self.get(key) < 0:
        raise UserError(f'{key} must be >= 0, got {self.get(key)}')
    interval = self.denoiser.guidance_interval
    if interval and not (len(interval) == 2 and 0 <= interval[0] <= interval[1]):
      raise UserError(
        f'denoiser.guidance_interval must be () or (low, high) with 0 <= low <= high, got '
        f'{interval}'
      )
    for key in ('train.learning_rate', 'train.clip_norm', 'autoencoder.scale'):
      if not self.get(key) > 0:
        raise UserError(f'{key} must be > 0, got {self.get(key)}')

  def get(self, key: str) -> Any:
    """The value of a dotted key."""
    value = self
    for part in key.split('.'):
      value = getattr(value, part)
    return value


def _choose(key, value, valid):
  if value not in valid:
    raise UserError(f'unknown {key} {value!r}; valid: {", ".join(valid)}')


def from_config(config: Any) -> Spec:
  """Spec of a ConfigDict (or any nested mapping); keys left out have their defaults.

  Raises:
    UserError: on an unknown key, a value of the wrong type, or a value out of range.
  """
  return _section(Spec, config, '')


def check_key(key: str) -> None:
  """Raises UserError unless a dotted key, such as 'sampler.steps', exists."""
  kind, path = Spec, ''
  for part in key.split('.'):
    kind = _type_of(kind, part, path)
    path += part + '.'


def _type_of(cls, name, path):
  types = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
  if name not in types:
    raise UserError(
      f'unknown config key {path + name!r}; valid: '
      f'{", ".join(path + other for other in types) or "no keys below"}'
    )
  return types[name]


def _section(cls, values, path):
  out = {}
  for key, value in values.items():
    out[key] = _value(_type_of(cls, key, path), value, path + key)
  return cls(**out)


def _value(kind, value, key):
  if dataclasses.is_dataclass(kind):
    if not hasattr(value, 'items'):
      raise UserError(f'config key {key!r} is a section, got {value!r}')
    return _section(kind, value, key + '.')
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, (tuple, list)):
      raise UserError(f'config key {key!r} must be a tuple, got {value!r}')
    return tuple(_value(typing.get_args(kind)[0], entry, key) for entry in value)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise UserError(f'config key {key!r} must be of type {kind.__name__}, got {value!r}')
  return value
