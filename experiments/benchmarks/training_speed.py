"""A training step of the CIFAR-10 network of DDPM, here and in PyTorch (the U-Net of diffusers in a
plain loop with Adam and an average of the weights), on the same processor in alternation.

Needs torch and diffusers, which nothing else here does:

  python -m experiments.benchmarks.training_speed
"""

import importlib.metadata
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import common
from gmm_diffusion import parallel, specs
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build, loss, trainer
from gmm_diffusion.errors import UserError

DECAY = 0.9999


def updates(
  spec: specs.Spec, data: Any, loss_fn: Callable[..., Any], batch: Any
) -> Callable[[], Any]:
  """A call that makes one update of the network and waits for its end."""
  params = jax.jit(lambda: build.init(build.net(spec, data), data.shape, 0))()
  optimiser = trainer.make_optimiser(spec.train)
  state = trainer.State(jnp.zeros((), jnp.int32), params, params, optimiser.init(params))
  update, kept = trainer.updater(spec.train, optimiser, loss_fn), [parallel.replicate(state)]

  def step():
    kept[0], values = update(kept[0], parallel.split(batch))
    jax.block_until_ready((kept[0], values))

  return step


def ours(spec: specs.Spec, images: np.ndarray, data: Any) -> dict[str, Callable[[], Any]]:
  """{'forward' | 'step': a call that waits for its end}."""
  module = build.net(spec, data)
  params = jax.jit(lambda: build.init(module, data.shape, 0))()
  batch = (images, np.zeros(len(images), np.int32), np.arange(len(images), dtype=np.int32))
  x, t = jnp.zeros(images.shape), jnp.full(len(images), 500.0)
  apply = jax.jit(lambda params, x: module.apply(params, x, t))

  step = updates(spec, data, loss.denoising_loss(spec, data), batch)
  return {'forward': lambda: jax.block_until_ready(apply(params, x)), 'step': step}


def torchs(images: np.ndarray) -> dict[str, Callable[[], Any]]:
  """The same in PyTorch."""
  try:
    import diffusers
    import torch
  except ImportError as error:
    raise UserError(
      f'this benchmark needs torch and diffusers ({error}); pip install them'
    ) from error
  net = diffusers.UNet2DModel(
    sample_size=32,
    block_out_channels=(128, 256, 256, 256),
    down_block_types=('DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'),
    attention_head_dim=None,
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
    norm_eps=1e-6,
    dropout=0.1,
  )
  average = [p.detach().clone() for p in net.parameters()]
  optimiser = torch.optim.Adam(net.parameters(), 2e-4)
  signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
  x0 = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
  count = sum(p.numel() for p in net.parameters())

  def step():
    t = torch.randint(1000, (len(x0),))
    noise, a = torch.randn_like(x0), signal[t][:, None, None, None]
    found = net(a.sqrt() * x0 + (1 - a).sqrt() * noise, t).sample
    optimiser.zero_grad()
    torch.nn.functional.mse_loss(found, noise).backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimiser.step()
    with torch.no_grad():
      torch._foreach_lerp_(average, list(net.parameters()), 1 - DECAY)

  def forward():
    with torch.no_grad():
      net(x0, torch.full((len(x0),), 500))

  return {'forward': forward, 'step': step, 'parameters': lambda: count}


def serve(images: np.ndarray, connection: Any) -> None:
  """Calls what it is told to, in a process of its own: with both libraries in one process, the
  threads of each are in the other's way."""
  calls = torchs(images)
  connection.send(calls['parameters']())
  while what := connection.recv():
    start = time.perf_counter()
    calls[what]()
    connection.send(time.perf_counter() - start)


def main():
  parser = common.parser(__doc__, 'runs/training_speed')
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  spec = common.spec_of('cifar10:train', ['data.name=none', f'train.batch={args.batch}'])
  data = sources.load(spec.data)
  images = np.random.RandomState(0).randint(0, 256, (args.batch, 32, 32, 3)).astype(np.uint8)
  context = multiprocessing.get_context('spawn')
  theirs, connection = context.Pipe()
  context.Process(target=serve, args=(images, connection), daemon=True).start()
  mine, rows = ours(spec, images, data), []
  own, found = (
    sum(p.size for p in jax.tree.leaves(build.template(spec, data)['net'])),
    theirs.recv(),
  )
  assert own == found, (own, found)

  def here(what):
    start = time.perf_counter()
    mine[what]()
    return time.perf_counter() - start

  def there(what):
    theirs.send(what)
    return theirs.recv()

  for what in ('forward', 'step'):
    seconds = {'here': [], 'PyTorch': []}
    for _ in range(args.repeats):
      for name, timed in (('here', here), ('PyTorch', there)):
        timed(what)  # compiles, or takes the memory back from the other
        seconds[name].append(timed(what))
    ratio = np.array(seconds['here']) / seconds['PyTorch']
    rows.append({'what': what, 'seconds': seconds, 'ratio': float(np.median(ratio))})
    print(
      f'{what:8} here {np.median(seconds["here"]):.2f} s, PyTorch '
      f'{np.median(seconds["PyTorch"]):.2f} s, ratio {np.median(ratio):.2f} '
      f'({ratio.min():.2f} to {ratio.max():.2f})',
      flush=True,
    )
  libraries = {name: importlib.metadata.version(name) for name in ('torch', 'diffusers')}
  theirs.send('')
  common.save(args.workdir, 'training_speed', {'batch': args.batch, **libraries, 'rows': rows})


if __name__ == '__main__':
  main()
