"""An option that a person has set must have an effect in the run; if it has none, this says why.

What a sampler, schedule or network takes is read from its own arguments. The same command line
serves the modes of one workdir: options of training are no error while sampling. But an option that
another one stands for in this mode is (`sample.count` and `evaluate.count`).
"""

from collections.abc import Sequence

from gmm_diffusion import samplers, specs
from gmm_diffusion.denoisers import EXACT
from gmm_diffusion.engine import build
from gmm_diffusion.errors import UserError
from gmm_diffusion.samplers import SAMPLERS

SECTIONS = {  # what each task reads, besides task and seed
  'diffusion': (
    'data', 'schedule', 'net', 'autoencoder', 'classifier', 'denoiser', 'train', 'finetune',
    'distill', 'quantise', 'sampler', 'sample', 'inverse', 'evaluate', 'tune',
    'posterior',
  ),
  'segmentation': ('data', 'train', 'segmentation', 'annotate'),
  'creativity': ('data', 'schedule', 'net', 'denoiser', 'train', 'sampler', 'sample', 'creativity'),
  'restoration': (
    'data', 'schedule', 'net', 'denoiser', 'train', 'sampler', 'sample', 'inverse', 'evaluate',
    'restoration',
  ),
  'masked': ('data', 'net', 'train', 'sample', 'inverse', 'evaluate', 'masked'),
}  # fmt: skip
DATA = {  # what each data set reads, besides its name and the limit
  'digits': (),
  'toy': (),
  'crafted': (),
  'folder': ('path', 'size', 'colour', 'labels', 'held_out', 'skip_unreadable', 'stream'),
  'npz': ('path', 'size', 'colour', 'held_out', 'stream'),
  'tfds': ('dataset', 'path', 'size', 'colour', 'stream'),
  'none': ('size', 'classes', 'dataset'),
}
# task -> {an option that --mode=evaluate or --mode=sample does not read: the one that it does}
EVALUATES = {
  'diffusion': {'sample.count': 'evaluate.count', 'sampler.name': 'evaluate.samplers'},
  'restoration': {
    'sample.count': 'evaluate.count',
    'sampler.name': 'evaluate.samplers',
    'sampler.steps': 'restoration.steps',
    'sampler.times': 'restoration.steps',
  },
  'masked': {'sample.count': 'evaluate.count', 'masked.calls': 'masked.compared'},
}
SAMPLES = {
  'diffusion': {'evaluate.count': 'sample.count', 'evaluate.samplers': 'sampler.name'},
  'restoration': {
    'evaluate.count': 'sample.count',
    'evaluate.samplers': 'sampler.name',
    'restoration.steps': 'sampler.steps',
  },
  'masked': {'evaluate.count': 'sample.count', 'masked.compared': 'masked.calls'},
}

TRAINS = (  # what --mode=finetune and --mode=distill read of the section train
  'optimiser', 'weight_decay', 'clip_norm', 'ema', 'ema_half_life', 'ema_width', 'log_every',
  'sample_every', 'checkpoint_every', 'keep', 'keep_every', 'loggers',
)  # fmt: skip
OF_LOSS = (  # what only the loss of a denoiser reads
  'loss', 'gamma', 'times', 'log_mean', 'log_deviation', 'low_discrepancy', 'label_dropout',
  'noisy', 'noise_level', 'consistency', 'vlb',
)  # fmt: skip
OF_CLASSIFIER = "it belongs to a denoiser, and train.what is 'classifier'; leave it out"
OF_DENOISER = (  # what --mode=train reads for a denoiser alone
  'loss', 'gamma', 'label_dropout', 'noisy', 'noise_level', 'consistency', 'vlb', 'start',
  'sample_every', 'averages',
)  # fmt: skip
CURRENT = ('train', 'all', 'fetch', 'convert')  # modes that use no older checkpoint
READ = {  # task -> what it reads of sections that it shares with 'diffusion', if not all
  'restoration': {
    'inverse': ('operator', 'noise', 'hidden', 'factor', 'width', 'draws'),
    'evaluate': ('samplers', 'count', 'features', 'inception', 'cache', 'reference_count'),
    'sample': ('count', 'batch'),
    'denoiser': ('prediction', 'clip'),
  },
  'masked': {
    'inverse': ('operator', 'hidden', 'images', 'draws'),
    'evaluate': (
      'count', 'store', 'metrics', 'features', 'inception', 'cache', 'reference',
      'reference_count', 'neighbours',
    ),
    'sample': ('count', 'batch', 'shard', 'label', 'png'),
  },
}  # fmt: skip
NEEDS = {  # an option of training -> what it belongs to: another option, and its values
  'weight_decay': ('optimiser', ('adamw',)),
  'decay_from': ('decay', ('rsqrt',)),
  'gamma': ('loss', ('min_snr', 'p2')),
  'log_mean': ('times', ('log_normal',)),
  'log_deviation': ('times', ('log_normal',)),
}


def check(spec: specs.Spec, mode: str, given: Sequence[str]) -> None:
  """Raises UserError on the first of the given keys that has no effect."""
  for key in given:
    section, _, name = key.partition('.')
    reason = ''
    if name and section not in SECTIONS[spec.task]:
      reason = f'task {spec.task!r} does not read the section {section!r}'
    elif name not in READ.get(spec.task, {}).get(section, (name,)):
      reason = f'task {spec.task!r} reads {_keys(section, READ[spec.task][section])}'
    elif section in REASONS:
      reason = REASONS[section](spec, mode, name)
    instead = {'sample': SAMPLES, 'evaluate': EVALUATES, 'all': EVALUATES}.get(mode, {})
    if key in instead.get(spec.task, {}):
      elbo = spec.train.loss == 'elbo' and mode == 'all' and section == 'sampler'
      reason = '' if elbo else f'--mode={mode} reads {instead[spec.task][key]}'
    if reason:
      raise UserError(f'config key {key!r} has no effect: {reason}')


def _data(spec, mode, name):
  data = spec.data
  if spec.task == 'segmentation':
    if mode == 'annotate' and name != 'images':
      return '--mode=annotate reads data.images'
    taken = ('path', 'images', 'masks', 'split')
    return '' if name in taken else f'segmentation reads {_keys("data", taken)}'
  tfds = any(path.startswith('tfds:') for path in (spec.evaluate.images, spec.evaluate.reference))
  own = ('name', 'limit', *(() if data.name in ('toy', 'none') else ('flip',)), *DATA[data.name])
  taken = (*own, *(('path',) if tfds and 'path' not in own else ()))
  if name in taken:
    return ''
  others = [other for other, keys in DATA.items() if name in keys]
  return (
    f'data.name {data.name!r} reads {_keys("data", taken)}'
    + (f'; to use it, set data.name to {" or ".join(others)}' if others else '')
    + ('; images of yours to measure go into evaluate.images' if name == 'path' else '')
  )


def _schedule(spec, mode, name):
  taken = ('name', *build.schedule_options(spec.schedule))
  if name in taken:
    return ''
  return f'schedule {spec.schedule.name!r} takes {_keys("schedule", taken)}'


def _net(spec, mode, name):
  if _trains_classifier(spec, mode):
    return '' if name == 'dtype' else OF_CLASSIFIER
  if spec.denoiser.name in EXACT:
    return f'denoiser {spec.denoiser.name!r} is exact and has no network'
  if spec.task == 'masked' and spec.masked.predictor == 'exact' and name != 'labels':
    return "masked.predictor is 'exact', which has no network"
  if name.startswith('weights.') and spec.task != 'diffusion':
    return f'task {spec.task!r} trains its own networks'
  if name.startswith('weights.'):
    return _weights('net', spec.net.weights, name)
  options = build.net_options(spec.net)
  taken = (
    'name', 'labels', 'learn_sigma', 'dtype', 'checkpoint', 'average', 'weights', *options,
  )  # fmt: skip
  if name not in taken:
    return f'net {spec.net.name!r} takes {_keys("net", taken)}'
  if name in ('checkpoint', 'average') and (mode in CURRENT or spec.task != 'diffusion'):
    return f'the {"last checkpoint" if name == "checkpoint" else "first average"} is used here'
  if name == 'heads' and options.get('head_channels'):
    return (
      f'net.head_channels {options["head_channels"]} says how many heads there are; set it to 0'
    )
  if name in ('attention_ratio', 'attention_normalise') and spec.net.attention_kind != 'soft':
    return f"net.attention_kind is {options['attention_kind']!r}; it belongs to 'soft'"
  if name == 'final' and spec.task == 'creativity':
    return 'creativity.networks says which networks there are'
  return ''


def _autoencoder(spec, mode, name):
  own = spec.autoencoder
  if not own.name:
    return "there is no autoencoder; set autoencoder.name to 'vq' or 'kl'"
  if name == 'codes' and own.name != 'vq':
    return f"autoencoder.name {own.name!r} has no codes; they belong to 'vq'"
  return _weights('autoencoder', own.weights, name)


def _classifier(spec, mode, name):
  own = spec.classifier
  if _trains_classifier(spec, mode):
    return "it guides, and train.what is 'classifier'" if name in ('scale', 'trained') else ''
  if spec.denoiser.name in EXACT:
    return f'denoiser {spec.denoiser.name!r} is exact and is not guided'
  if not own.scale and name != 'scale':
    return 'classifier.scale is 0, so that there is no classifier'
  if own.trained and name.startswith('weights.'):
    return f'classifier.trained says where the classifier is: {own.trained}'
  return _weights('classifier', spec.classifier.weights, name)


def _weights(section, weights, name):
  """weights.path and the like are read for released weights only."""
  if not name.startswith('weights.') or name == 'weights.format':
    return ''
  if weights.format not in ('', build.RANDOM):
    return ''
  what = 'drawn at random' if weights.format else 'trained here'
  return f'the weights are {what}; set {section}.weights.format to that of the file'


def _denoiser(spec, mode, name):
  if _trains_classifier(spec, mode):
    return OF_CLASSIFIER
  own = spec.denoiser
  of_network = ('prediction', 'guidance', 'guidance_interval', 'guidance_channels')
  taken = ('name', 'clip', *(EXACT[own.name].options if own.name in EXACT else of_network))
  if name not in taken:
    return f'denoiser {own.name!r} takes {_keys("denoiser", taken)}'
  if name in ('guidance_interval', 'guidance_channels') and own.guidance == 1:
    return 'denoiser.guidance is 1, so that nothing is guided'
  if name == 'clip' and spec.data.name == 'toy':
    return 'points are not clipped'
  return ''


def _trains_classifier(spec, mode):
  trains = mode in ('train', 'all') and spec.task == 'diffusion'
  return trains and spec.train.what == 'classifier'


def _train(spec, mode, name):
  if mode in ('finetune', 'distill') and name not in TRAINS:
    return f'--mode={mode} reads the section {mode}, and {_keys("train", TRAINS)}'
  if name in NEEDS:
    other, values = NEEDS[name]
    if getattr(spec.train, other) not in values:
      return (
        f'it belongs to train.{other} {" or ".join(values)}, which is {getattr(spec.train, other)}'
      )
  if name in ('noise_level', 'consistency') and not spec.train.noisy:
    return 'train.noisy is 0, so that all items are clean'
  if name == 'vlb' and not spec.net.learn_sigma:
    return 'net.learn_sigma is False, so that no variance is learned'
  other = 'ema_width' if spec.train.ema_width else 'ema_half_life'
  if name == 'ema' and getattr(spec.train, other):
    return f'train.{other} says how long weights are averaged'
  if name == 'averages' and spec.task != 'diffusion':
    return f'task {spec.task!r} uses the first average'
  if name == 'what' and spec.task != 'diffusion':
    return f'task {spec.task!r} has one kind of network to train'
  if _trains_classifier(spec, mode):
    if name in OF_DENOISER:
      return OF_CLASSIFIER
    return ''
  if name == 'start' and spec.task != 'diffusion':
    return f'task {spec.task!r} trains from random weights'
  if name == 'sample_every' and spec.task in ('segmentation', 'restoration', 'masked'):
    return f'task {spec.task!r} shows no samples while it trains'
  if spec.task == 'masked' and spec.masked.predictor == 'exact':
    return "masked.predictor is 'exact' and has nothing to train"
  if spec.task in ('segmentation', 'masked'):
    return f'task {spec.task!r} has one loss' if name in OF_LOSS else ''
  if spec.denoiser.name in EXACT:
    return f'denoiser {spec.denoiser.name!r} is exact and has nothing to train'
  if spec.net.weights.format:
    return 'the weights of the network are not trained here (net.weights.format)'
  if name == 'label_dropout' and spec.net.labels != 'null':
    return f'net.labels {spec.net.labels!r} knows no "no class"; set it to \'null\''
  return ''


def _sampler(spec, mode, name):
  own = spec.sampler
  if mode == 'tune':
    taken = ('grid', 'rho')
    return '' if name in taken else 'tuning tries all samplers; of the config it shows DDIM beside'
  if mode == 'posterior':
    return 'the residuals are those of all noise levels, whatever the sampler'
  if mode == 'distill':
    called = name == 'name' and own.name == 'one_step'
    return '' if name == 'level' or called else '--mode=distill reads sampler.level'
  if mode == 'quantise' and not spec.quantise.activations:
    return 'quantise.activations is 0, so that nothing is sampled'
  one_call = own.name == 'one_step' and mode in ('sample', 'finetune', 'quantise')
  if one_call and name in ('steps', 'grid', 'rho', 'times', 'end'):
    return "sampler 'one_step' has one step, at sampler.level"
  if name in ('name', 'end', 'times'):
    return ''
  if own.times and name in ('steps', 'grid', 'rho'):
    return 'sampler.times says which steps there are'
  if name == 'rho' and own.grid != 'karras':
    return f"sampler.grid {own.grid!r} has none; it belongs to 'karras'"
  if name in ('steps', 'grid', 'rho'):
    return ''
  if name == 'compensate' and not own.ratios:
    return 'sampler.ratios are 1, so that nothing is moved'
  if name == 'extrapolate' and own.end == 'first':
    return "sampler.end is 'first', so that no step ends at clean data"
  if name == 'extrapolate' and own.ratios and own.ratios[-1] != 1:
    return 'the last of sampler.ratios, which is not 1, says how far the last step looks ahead'
  if name.startswith('churn_') and not own.churn:
    return 'sampler.churn is 0, so that nothing is added'
  compared = spec.evaluate.samplers if spec.task in ('diffusion', 'restoration') else ()
  names = {
    'sample': (own.name,),
    'finetune': (own.name,),
    'quantise': (own.name,),
    'evaluate': compared,
    'all': compared,
  }.get(mode, (own.name, *compared))
  names = names or (own.name,)
  if spec.train.loss == 'elbo':
    names += (own.name,)
  if any(name in samplers.options_of(one) for one in names):
    return ''
  takers = [one for one in SAMPLERS if name in samplers.options_of(one)]
  return (
    f'none of the samplers of this run ({", ".join(dict.fromkeys(names))}) takes it; those that '
    f'do: {", ".join(takers)}'
  )


def _finetune(spec, mode, name):
  return '' if mode == 'finetune' else f'--mode={mode} does not fine-tune'


def _distill(spec, mode, name):
  if mode != 'distill':
    return f'--mode={mode} does not distill'
  if name == 'record' and not spec.distill.nodes:
    return 'distill.nodes is 0, so that nothing is recorded'
  return ''


def _quantise(spec, mode, name):
  if mode != 'quantise':
    return f'--mode={mode} does not quantise'
  if name in ('count', 'times') and not spec.quantise.activations:
    return 'quantise.activations is 0, so that no inputs are looked at'
  return ''


def _tune(spec, mode, name):
  if mode != 'tune':
    return f'--mode={mode} does not tune'
  tier = {'bands': 1, 'steps': 3, 'batch': 3}.get(name, 0)
  if spec.tune.tier < tier:
    return f'it belongs to tier {tier}, and tune.tier is {spec.tune.tier}'
  return ''


def _posterior(spec, mode, name):
  del spec, name
  return '' if mode == 'posterior' else f'--mode={mode} measures no residuals'


def _annotate(spec, mode, name):
  return '' if mode == 'annotate' else f'--mode={mode} does not annotate'


def _sample(spec, mode, name):
  if name == 'drop' and (mode != 'sample' or spec.task != 'diffusion'):
    return f'--mode={mode} of task {spec.task!r} leaves out no samples'
  if name == 'label' and spec.denoiser.name in EXACT:
    return f'denoiser {spec.denoiser.name!r} knows no classes'
  if name == 'label' and mode == 'posterior' and spec.posterior.reference == 'data':
    return 'the items have classes of their own (posterior.reference is data)'
  return ''


def _inverse(spec, mode, name):
  own = spec.inverse
  if spec.task == 'masked' and mode != 'sample':
    return '' if name == 'hidden' else f'--mode={mode} reads inverse.hidden'
  if spec.task == 'restoration' and name == 'draws':
    return ''
  if mode != 'sample' and spec.task == 'diffusion':
    return f'--mode={mode} restores nothing'
  if not own.operator and name != 'operator':
    return "inverse.operator is '', so that nothing is measured"
  belongs = {'hidden': 'mask', 'factor': 'box', 'width': 'blur'}
  if own.operator != belongs.get(name, own.operator):
    return f'it belongs to inverse.operator {belongs[name]!r}, which is {own.operator!r}'
  return ''


def _evaluate(spec, mode, name):
  own = spec.evaluate
  if own.images and name in ('samplers', 'count', 'store'):
    return 'evaluate.images is measured in place of samples'
  if own.reference and name == 'reference_count':
    return 'evaluate.reference is used as a whole'
  if own.features != 'inception' and name == 'inception':
    return f"evaluate.features is {own.features!r}; set it to 'inception'"
  return ''


def _restoration(spec, mode, name):
  if name == 'images' and mode != 'sample':
    return f'--mode={mode} restores test images'
  return ''


def _masked(spec, mode, name):
  own = spec.masked
  if name in ('epsilon', 'width') and own.predictor == 'network' and mode in ('train', 'sample'):
    return "masked.predictor is 'network'; it belongs to 'exact'"
  if name in ('order', 'counts') and mode in ('evaluate', 'all'):
    return f'--mode={mode} compares all of them'
  if name == 'counts' and own.order == 'ancestral':
    return "masked.order 'ancestral' draws how many pixels a call reveals"
  return ''


def _keys(section, names):
  return ', '.join(f'{section}.{name}' for name in names)


def _segmentation(spec, mode, name):
  if name in ('encoder_path', 'encoder_rate') and spec.segmentation.encoder == 'scratch':
    return "segmentation.encoder 'scratch' has no released weights"
  if name == 'weights' and mode in ('train', 'all'):
    return f'--mode={mode} trains a network of its own'
  return ''


REASONS = {
  'data': _data,
  'schedule': _schedule,
  'net': _net,
  'autoencoder': _autoencoder,
  'classifier': _classifier,
  'denoiser': _denoiser,
  'train': _train,
  'finetune': _finetune,
  'distill': _distill,
  'quantise': _quantise,
  'sampler': _sampler,
  'sample': _sample,
  'inverse': _inverse,
  'evaluate': _evaluate,
  'tune': _tune,
  'posterior': _posterior,
  'annotate': _annotate,
  'segmentation': _segmentation,
  'restoration': _restoration,
  'masked': _masked,
}
