"""What --mode=sample says of restored images: how near they are to the true ones."""

import os

import numpy as np

from gmm_diffusion.engine import measuring, sample_sets, shards
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.metrics import estimates, restoration
from gmm_diffusion.reports import images, records

METRICS = {'PSNR': restoration.psnr, 'SSIM': restoration.ssim}
_SHOWN = 10  # images in the picture


def judge(one: Run, out: sample_sets.Stored, count: int) -> None:
  """PSNR and SSIM of samples with ids 0..count-1, printed and as records, and a picture: the true
  images, what is measured of them, and what is made of that. Of measurements that were given, no
  true images are known."""
  spec, data, ids = one.spec, one.data, np.arange(count)
  parts = shards.ranges(count, spec.sample.shard)
  restored = np.concatenate([out.part(part)['x'] for part in parts])
  path = f'{out.path.removesuffix(".npz")}-restored.png'
  first = ids[:: spec.inverse.draws][:_SHOWN]
  seen = measuring.shown(measuring.measure(spec, data, first), data.shape)
  rows, words = [seen, restored[first]], 'measured, restored'
  if not spec.inverse.measured:
    true = measuring.originals(spec, data, ids)
    _compare(one, out, restored, true)
    rows, words = [true[first], *rows], f'true, {words}'
  images.save(path, images.grid(np.concatenate(rows), len(first)))
  print(f'{words}: {path}')


def _compare(one, out, restored, true):
  """PSNR and SSIM, printed and as records."""
  spec = one.spec
  found = {
    name: _of_images(metric(restored, true), spec, one.data) for name, metric in METRICS.items()
  }
  for name, value in found.items():
    print(f'{name} {value}' + ' dB' * (name == 'PSNR'))
  shared = {
    'kind': 'restoration',
    'sampler': spec.sampler.name,
    'set': os.path.basename(out.path).removesuffix('.npz'),
    'n': len(restored),
    'seed': spec.seed,
    'nfe': out.nfe,
    **records.common(spec, one.command),
  }
  records.add(
    one.workdir,
    [{**shared, 'metric': name, **value.record()} for name, value in found.items()],
  )


def _of_images(values, spec, data):
  """The mean over images of what their samples have on average."""
  _, of, counts = np.unique(
    measuring.numbers(spec, data, np.arange(len(values))), return_inverse=True, return_counts=True
  )
  return estimates.of_mean(np.bincount(of, values) / counts)
