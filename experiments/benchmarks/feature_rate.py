"""What streaming stored images into features costs beyond the network, and that memory does not
grow with their number.

Rate: a folder of PNGs (and the same images as .npz) -> Inception features -> file, over bare calls
of the network on a batch that is on the device, at the same batch size and in alternation; random
weights, which cost the same. Where other work shares the machine, the ratio of processor seconds
says more than that of the clock. Memory: peak of a process that computes the Frechet distance of a
folder of 32 x 32 PNGs to a reference on 64 features, at two counts.

  python -m experiments.benchmarks.feature_rate
"""

import multiprocessing
import os
import resource
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.lib import common
from gmm_diffusion import parallel
from gmm_diffusion.data import base, image_sets
from gmm_diffusion.metrics import features as features_lib
from gmm_diffusion.metrics import frechet, inception
from gmm_diffusion.nets.inception import Inception, preprocess


def pictures(count: int, side: int) -> np.ndarray:
  """uint8 [count, side, side, 3]: smooth shapes with a little noise, which PNG compresses about as
  well as photographs."""
  random = np.random.RandomState(0)
  coarse = random.randint(0, 200, (count, side // 8, side // 8, 3)).astype(np.uint8)
  return coarse.repeat(8, 1).repeat(8, 2) + random.randint(0, 16, (count, side, side, 3)).astype(
    np.uint8
  )


def write_folder(path: str, images: np.ndarray) -> str:
  os.makedirs(path)
  for i, image in enumerate(images):
    Image.fromarray(image).save(os.path.join(path, f'{i:06d}.png'))
  return path


def network(batch: int):
  """(bare call on a batch of the device, Features) of one Inception with random weights."""
  shape = (batch, 299, 299, 3)
  params = jax.jit(Inception().init)(jax.random.key(0), jnp.zeros((1, *shape[1:])))
  bare = jax.jit(lambda params, images: Inception().apply(params, preprocess(images)))
  call = inception.activations(params, batch)
  extract = lambda images: features_lib.Extracted(*call(images)[:3])
  return (lambda images: jax.block_until_ready(bare(params, images))), features_lib.Features(
    extract, 'inception-random', {'features': 2048, 'logits': 1008, 'spatial': 2023}
  )


def rate(args, folder: str) -> dict[str, dict]:
  """Images per second of the fastest run of each way, and ratios to bare calls."""
  images = pictures(args.count, args.side)
  stored = os.path.join(folder, 'images.npz')
  np.savez(stored, images)
  ways = {'png folder': write_folder(os.path.join(folder, 'images'), images), 'npz': stored}
  bare, features = network(args.batch)
  on_device = jax.device_put(images[: args.batch])

  def bare_calls():
    for _ in range(args.count // args.batch):
      bare(on_device)

  def streamed(path):
    found, _, _ = features_lib.gather(
      features, image_sets.load(path), 'features', ('features', 'logits', 'spatial')
    )
    np.savez(os.path.join(folder, 'features.npz'), **found._asdict())

  calls = {
    'bare': bare_calls,
    **{name: lambda path=path: streamed(path) for name, path in ways.items()},
  }
  bare(on_device), features.extract(images[: args.batch])  # compile
  seconds, busy = ({name: [] for name in calls} for _ in range(2))
  for _ in range(args.repeats):
    for name, call in calls.items():
      start, cpu = time.perf_counter(), time.process_time()
      call()
      seconds[name].append(time.perf_counter() - start)
      busy[name].append(time.process_time() - cpu)
      print(f'{name}: {args.count / seconds[name][-1]:.2f} images/s', flush=True)
  ratio = lambda times: {name: min(times[name]) / min(times['bare']) for name in ways}
  return {
    'images_per_second': {name: args.count / min(values) for name, values in seconds.items()},
    'ratio_to_bare': ratio(seconds),
    'cpu_ratio_to_bare': ratio(busy),
    'all_seconds': seconds,
    'all_cpu_seconds': busy,
  }


def peak(path: str) -> dict[str, float]:
  """In a process of its own: Frechet distance of a folder to its own first 1000 images; peak memory
  in MB, seconds."""
  start = time.perf_counter()
  stored = image_sets.load(path)
  net = features_lib.FeatureNet(10)
  params = jax.tree.map(np.asarray, net.init(jax.random.key(0), jnp.zeros((1, *stored.shape))))
  call, params = (
    parallel.map_batches(lambda p, x: net.apply(p, x), 256),
    parallel.replicate(params, local=True),
  )
  features = features_lib.Features(
    lambda x: features_lib.Extracted(*call(params, base.to_model(x))),
    'classifier-random',
    {'features': 64, 'logits': 10},
  )
  found, _, count = features_lib.gather(features, stored, 'features', ('features',))
  value = frechet.frechet_distance(found.features, found.features[:1000])
  return {
    'count': count,
    'peak_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    'kept_mb': found.features.nbytes / 2**20,
    'frechet': value,
    'seconds': time.perf_counter() - start,
  }


def main():
  parser = common.parser(__doc__, 'runs/feature_rate')
  parser.add_argument('--count', type=int, default=192, help='images of the rate')
  parser.add_argument('--side', type=int, default=256)
  parser.add_argument('--batch', type=int, default=features_lib.PER_DEVICE)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument(
    '--counts', type=int, nargs=2, default=[10000, 50000], help='images of the memory'
  )
  args = parser.parse_args()
  memory = []
  for count in args.counts:
    with (
      tempfile.TemporaryDirectory() as folder,
      multiprocessing.get_context('spawn').Pool(1) as pool,
    ):
      memory.append(
        pool.apply(peak, (write_folder(os.path.join(folder, 'images'), pictures(count, 32)),))
      )
    print(memory[-1], flush=True)
  with tempfile.TemporaryDirectory() as folder:
    result = rate(args, folder)
  print('clock:', result['ratio_to_bare'], 'processor:', result['cpu_ratio_to_bare'])
  common.save(
    args.workdir,
    'feature_rate',
    {'rate': result, 'side': args.side, 'batch': args.batch, 'count': args.count, 'memory': memory},
  )


if __name__ == '__main__':
  main()
