"""The settings of the modes train, finetune, distill, quantise, tune, posterior and evaluate, of
measurements, and of the tasks segmentation, creativity, restoration and masked, in the form of
options.py; the rest: specs.py."""

import dataclasses

from gmm_diffusion.errors import UserError
from gmm_diffusion.options import BATCH, COUNT, NUMBER, WIDTH, option


@dataclasses.dataclass(frozen=True)
class Train:
  """Optimiser and loop."""

  what: str = option(
    'denoiser',
    'the denoiser, or a classifier of noisy images that guides one',
    ('denoiser', 'classifier'),
  )
  start: str = option('', "the workdir of a network to start from; '': random weights")
  steps: int = option(1000, 'optimiser updates', '[1, 100000000]')
  batch: int = option(128, 'items of an update, over all devices', BATCH)
  accumulate: int = option(
    1, 'parts of a batch that are computed one after another, which takes less memory', BATCH
  )
  optimiser: str = option('adam', 'adam, or adamw with weight decay', ('adam', 'adamw'))
  weight_decay: float = option(0.01, 'adamw: of each weight, times the rate', '[0, 1e3]')
  learning_rate: float = option(1e-3, 'of the optimiser, after the warm-up', '(0, 1e38]')
  warmup: int = option(100, 'steps in which the rate rises from 0', '[0, 100000000]')
  decay: str = option(
    'constant',
    'the rate after the warm-up: constant; cosine, to 0 at the last step; rsqrt, as 1 / sqrt(step)',
    ('constant', 'cosine', 'rsqrt'),
  )
  decay_from: int | None = option(
    None, 'rsqrt: the step from which the rate falls; the end of the warm-up', '[1, 100000000]'
  )
  clip_norm: float = option(1.0, 'longest gradient', '(0, 1e30]')
  ema: float = option(0.999, 'decay of the averaged weights, those to sample from', '[0, 1)')
  ema_half_life: float | None = option(
    None, 'the same as the number of images after which a weight counts half', '(0, 1e15)'
  )
  ema_width: float | None = option(
    None, 'in their place: a power average, whose deviation is this share of training', '(0, 0.288)'
  )
  averages: tuple[float, ...] = option(
    (),
    'further averages, up to three, by numbers of the same kind; net.average uses one',
    '(0, 1e15]',
  )
  loss: str = option(
    'simple',
    'weights of noise levels: simple has none; elbo, those of the sampler; min_snr; p2',
    ('simple', 'elbo', 'min_snr', 'p2'),
  )
  vlb: float = option(0.001, 'net.learn_sigma: weight of the bound on the likelihood', '[0, 1e6]')
  gamma: float | None = option(
    None, 'min_snr: the largest ratio that counts (5); p2: the exponent (1)', '(0, 1e6]'
  )
  times: str = option(
    'uniform',
    'which times are drawn: uniform, or log_normal in b_t / a_t',
    ('uniform', 'log_normal'),
  )
  log_mean: float = option(-1.2, 'log_normal: mean of ln(b_t / a_t)', '[-20, 20]')
  log_deviation: float = option(1.2, 'log_normal: its deviation', '(0, 20]')
  low_discrepancy: bool = option(False, 'the times of a batch are spread evenly')
  noisy: float = option(0.0, 'share of the items that are known with noise alone', '[0, 1]')
  noise_level: float = option(0.2, 'b / a of that noise', '(0, 1e6]')
  consistency: float = option(
    0.0, 'noisy: weight of the loss that makes predictions below that level agree', '[0, 1e6]'
  )
  label_dropout: float = option(0.1, 'share of labels replaced by "no class"', '[0, 1)')
  log_every: int = option(50, 'steps between values of the loss', '[1, 100000000]')
  loggers: tuple[str, ...] = option(
    (), 'where the rows of metrics.jsonl go, too', ('tensorboard', 'wandb')
  )
  sample_every: int = option(
    0, 'steps between pictures of 16 samples from the same noise; 0 is none', '[0, 100000000]'
  )
  checkpoint_every: int = option(500, 'steps between checkpoints', '[1, 100000000]')
  keep: int = option(2, 'how many of the last checkpoints stay', '[1, 1000000]')
  keep_every: int = option(
    0, 'steps between checkpoints that stay for good; 0 is none', '[0, 100000000]'
  )

  def check_averages(self) -> None:
    """Raises UserError on numbers of averages that do not go together."""
    if self.ema_width and self.ema_half_life:
      raise UserError('train.ema_width and train.ema_half_life are both set; leave one of them out')
    kind, most = 'ema', 1.0
    if self.ema_width or self.ema_half_life:
      kind, most = ('ema_width', 0.288) if self.ema_width else ('ema_half_life', 1e15)
    if len(self.averages) > 3 or not all(number < most for number in self.averages):
      raise UserError(
        f'train.averages must be at most three numbers like train.{kind}, below {most:g}, got '
        f'{self.averages}'
      )


@dataclasses.dataclass(frozen=True)
class Finetune:
  """--mode=finetune: a trained network made better at the few steps of the sampler. Optimiser,
  averaging and logs are those of 'train', with a constant rate."""

  start: str = option('', 'the workdir where the network was trained')
  steps: int = option(100, 'optimiser updates', '[1, 100000000]')
  batch: int = option(128, 'samples of an update, over all devices', '[2, 1000000]')
  learning_rate: float = option(1e-4, 'of the optimiser', '(0, 1e38]')
  kernel: str = option(
    'energy', 'of the distance to the data', ('energy', 'polynomial', 'gaussian')
  )
  features: str = option(
    'identity',
    'what is compared: identity, the pixels; classifier or rotation, of another seed than those '
    'of evaluate.features',
    ('identity', 'classifier', 'rotation'),
  )


@dataclasses.dataclass(frozen=True)
class Inverse:
  """Measurements of images (engine.measuring), to be restored: by any denoiser without training, or
  by task 'restoration', which learns it."""

  operator: str = option(
    '',
    "what is measured: identity, mask (inpainting), box (super-resolution), blur; '' is nothing",
    ('', 'identity', 'mask', 'box', 'blur'),
  )
  method: str = option(
    'pigdm',
    'how the denoiser is guided (denoisers.inverse); exact: the posterior of the training images, '
    'for denoiser empirical',
    ('dps', 'pigdm', 'moment', 'stsl', 'exact'),
  )
  noise: float = option(0.05, 'deviation of the noise, of images in [-1, 1]', '[0, 1e6]')
  hidden: str = option(
    'middle',
    'mask: what is not seen: middle, bottom, right, random, or the file of an image that is white '
    'there',
  )
  factor: int = option(2, 'box: pixels that become one, each way', '[1, 16384]')
  width: float = option(1.0, 'blur: deviation in pixels', '(0, 1e4]')
  images: str = option('', "folder of images to measure; '': the test images")
  measured: bool = option(False, 'the images of that folder are the measurements')
  draws: int = option(1, 'samples for each image', COUNT)


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """--mode=evaluate: what to compare with what, and how."""

  samplers: tuple[str, ...] = option(
    ('ddim', 'ddim_gmm', 'ddim_noise'), "each draws 'count' samples; names in samplers.NAMES"
  )
  count: int = option(1000, 'samples of each', COUNT)
  store: bool = option(True, 'keep the samples, or only their features')
  images: str = option('', 'folder, .npz or tfds:NAME:SPLIT, evaluated in place of samples')
  reference: str = option(
    '', "the same kinds of path, or an .npz with mu and sigma; '': the first training items"
  )
  reference_count: int = option(10000, 'how many of these', COUNT)
  features: str = option('classifier', 'a name in metrics.features.FEATURES')
  inception: str = option('', "weights file of inception; '': under its public name in the cache")
  metrics: tuple[str, ...] = option((), 'names in metrics.METRICS; () is all that can be computed')
  neighbours: int = option(3, 'k of precision and recall', '[1, 10000]')
  cache: str = option('', "folder for feature networks and references; '': the workdir")
  skip_unreadable: bool = option(False, 'leave out images that cannot be read, and say how many')


@dataclasses.dataclass(frozen=True)
class Tune:
  """--mode=tune (tune.tiers): the best sampler for a number of calls."""

  calls: tuple[int, ...] = option((5,), 'of the denoiser for each sample', '[2, 1000]')
  tier: int = option(
    2,
    'last one: 0 race, times, ratios; 1 closed form; 2 coefficients and noise; 3 gradient',
    '[0, 3]',
  )
  bands: int = option(1, 'more than 1: tiers 1 and 3 also try tables of so many', '[1, 64]')
  samples: int = option(512, 'by which tiers propose; 4 times as many select', '[16, 1000000]')
  steps: int = option(300, 'of the gradient', '[6, 1000000]')
  batch: int = option(256, 'samples in a step of the gradient, over all devices', BATCH)
  minutes: float = option(
    0.0, 'for each number of calls, then the best so far; 0: no limit', '[0, 1e6]'
  )
  reference: str = option(
    'data',
    "what samples should be like: the data, or the model's own in 250 steps",
    ('data', 'model'),
  )
  seeds: int = option(8, 'of the report', '[2, 1000]')
  limits: bool = option(
    False, 'the report also shows what the model reaches in 100 steps without noise and 250 with it'
  )


@dataclasses.dataclass(frozen=True)
class Posterior:
  """--mode=posterior: the residuals of the denoiser, for the samplers posterior_*."""

  count: int = option(2048, 'items that are given noise', COUNT)
  levels: int = option(24, 'of noise, even in log(a^2 / b^2)', '[2, 1000]')
  directions: int = option(16, 'that are kept at each level', '[1, 10000]')
  reference: str = option(
    'data', "what the items are: the data, or the model's own in 250 steps", ('data', 'model')
  )


@dataclasses.dataclass(frozen=True)
class Distill:
  """--mode=distill: a trained network that makes samples in one call. The noise level of that call
  is sampler.level; optimiser, averaging and logs are those of 'train', with a constant rate."""

  start: str = option('', 'the workdir of the network')
  steps: int = option(1000, 'updates of the network that makes samples', '[1, 100000000]')
  batch: int = option(128, 'samples of an update, over all devices', BATCH)
  learning_rate: float = option(1e-4, 'of the optimiser', '(0, 1e38]')
  fake_steps: int = option(
    5, 'updates, for each of these, of the network that learns what is made', '[1, 1000]'
  )
  nodes: int = option(0, 'K of DisBack: networks on the way; 0 is DMD', '[0, 100]')
  record: int = option(1000, 'with nodes: updates in which the way is recorded', COUNT)


@dataclasses.dataclass(frozen=True)
class Quantise:
  """--mode=quantise: a trained network with numbers of few bits, in a workdir of its own."""

  start: str = option('', 'the workdir of the network')
  weights: int = option(8, 'bits of the weights', '[2, 8]')
  activations: int = option(
    0, 'bits of what enters each layer; 0 leaves it as it is, else at least 2', '[0, 16]'
  )
  count: int = option(256, 'samples in which the inputs of layers are looked at', COUNT)
  times: str = option(
    'uniform',
    'when: uniform over the steps of the sampler; normal, mostly in its second half; noise or '
    'clean, the first or last step alone',
    ('uniform', 'normal', 'noise', 'clean'),
  )


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """Interactive segmentation (tasks.segmentation)."""

  encoder: str = option(
    'scratch', 'of the image', ('scratch', 'efficientnet_lite0', 'efficientnet_lite2')
  )
  encoder_path: str = option('', 'file of its released weights; else those of the extra `encoder`')
  encoder_rate: float = option(0.1, 'learning rate of released weights over others', '[0, 1]')
  weights: str = option('', 'file of a trained network; else that of the workdir')
  channels: int = option(32, 'of the network', WIDTH)
  blocks: int = option(2, 'of the network', '[1, 1024]')
  heads: int = option(2, 'of the network', '[1, 1024]')
  head_channels: int = option(16, 'of the network', WIDTH)
  key_steps: int = option(2, 'adaptations of the keys', '[0, 1000]')
  value_steps: int = option(2, 'adaptations of the values', '[0, 1000]')
  pixels: bool = option(True, 'pixels read the network by colour and place, not by place alone')
  corrections: int = option(1, 'most clicks on its own errors, while training', '[0, 100]')
  crop: tuple[int, ...] = option((96, 128), 'height and width to train on', '[32, 16384]')
  size: int = option(240, 'images with a longer side are worked on at it', WIDTH)
  slots: int = option(40, 'clicks that a session holds', '[1, 10000]')
  clicks: int = option(20, 'clicks that the simulated annotator makes', '[1, 10000]')
  objects: int = option(200, 'how many are evaluated, one of each image first', COUNT)
  batch: int = option(8, 'objects at a time on each device', BATCH)
  baseline: bool = option(True, 'also the network that takes clicks as channels')


@dataclasses.dataclass(frozen=True)
class Annotate:
  """--mode=annotate: the page on which a person segments data.images."""

  host: str = option('127.0.0.1', 'where it is served; 127.0.0.1 is for this machine alone')
  port: int = option(0, 'of the page; 0: any that is free', '[0, 65535]')
  open: bool = option(True, 'show it in the browser of this machine')


@dataclasses.dataclass(frozen=True)
class Creativity:
  """Score machines beside networks that differ in their final layer (tasks.creativity)."""

  networks: tuple[str, ...] = option(
    ('none', 'top1', 'gumbel', 'softmax', 'identity'),
    'names in nets.cnn.FINALS; patch sizes are calibrated on the first',
  )
  machines: tuple[str, ...] = option(
    ('ELS', 'bbELS', 'LS', 'IS', 'consistent'), 'names in denoisers.score_machines.MACHINES'
  )
  sizes: tuple[int, ...] = option((3, 5, 7, 9), 'patch sizes to choose from', '[1, 1024]')
  images: int = option(0, 'training images that machines see, the first ones; 0 is all', NUMBER)
  pairs: int = option(100, "samples of machines, of the same noise as the networks' first", COUNT)
  probes: int = option(8, 'trajectories to calibrate on', COUNT)


@dataclasses.dataclass(frozen=True)
class Restoration:
  """Networks that learn to restore what `inverse` measures, or pairs of images
  (tasks.restoration)."""

  models: tuple[str, ...] = option(
    ('residual', 'conditional', 'regression'),
    'each a network: diffusion of the residual, diffusion of the image, or no diffusion',
  )
  pairs: str = option(
    '',
    "folder of degraded images with the names of those in data.path; '': inverse.operator makes "
    'them',
  )
  images: str = option('', "--mode=sample: folder of degraded images; '': of the test images")
  steps: tuple[int, ...] = option((1, 2, 5, 10), 'evaluated, for each sampler', '[1, 1000]')


@dataclasses.dataclass(frozen=True)
class Masked:
  """Masked diffusion of images with few levels (tasks.masked)."""

  levels: int = option(17, 'to which each channel is rounded', '[2, 256]')
  predictor: str = option(
    'network',
    'what says what masked pixels may be: network; exact: the training images',
    ('network', 'exact'),
  )
  epsilon: float = option(0.2, 'exact: probability that a pixel is anything', '(0, 1]')
  width: float = option(0.5, 'exact: how far a pixel may be off, in levels', '[0, 256]')
  order: str = option(
    'first_hitting',
    'of the pixels: as many in each call, or ancestral',
    ('first_hitting', 'ancestral'),
  )
  calls: int = option(0, '--mode=sample: of the predictor for an image; 0: one a pixel', '[0, 1e6]')
  compared: tuple[int, ...] = option(
    (64, 32, 16, 8, 4, 2, 1), 'calls that are evaluated', '[1, 1e6]'
  )
  counts: str = option(
    'uniform',
    'first_hitting: pixels of each call: uniform, cosine, or best, those that lose least',
    ('uniform', 'cosine', 'best'),
  )
  draws: int = option(64, 'of the masked pixels, for the bound on the bits of an image', COUNT)
