"""Training of any loss: EMA, orbax checkpoints, resume.

What happens in step n depends on (seed, n) and the position in the batch only: a run that was
killed and resumed equals an uninterrupted one, and the number of devices changes rounding alone.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from gmm_diffusion import files, parallel, specs
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.errors import UserError
from gmm_diffusion.reports import plots


class State(NamedTuple):
  """step: updates done. ema: averaged parameters, those to sample from."""

  step: Any
  params: Any
  ema: Any
  optimiser: Any


def updater(
  spec: specs.Train,
  optimiser: optax.GradientTransformation,
  loss_fn: Callable[[Any, Any, Any], Any],
):
  """(State, batch) -> (State, loss) on every device, for loss_fn(params, step, batch)."""

  def update(state, batch):
    loss, gradient = parallel.mean(jax.value_and_grad(loss_fn)(state.params, state.step, batch))
    updates, opt_state = optimiser.update(gradient, state.optimiser, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    decay = jnp.minimum(spec.ema, (1 + step) / (10 + step))  # forgets the random start quickly
    averaged = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)
    return State(step, params, averaged, opt_state), loss

  return parallel.over_devices(update, donate=True)


def make_optimiser(spec: specs.Train) -> optax.GradientTransformation:
  rate = (
    optax.linear_schedule(0.0, spec.learning_rate, spec.warmup)
    if spec.warmup
    else spec.learning_rate
  )
  return optax.chain(optax.clip_by_global_norm(spec.clip_norm), optax.adam(rate))


def fit(
  spec: specs.Train,
  fresh: Callable[[], State],
  make: Callable[[], Any],
  batch: Callable[[int, slice], Any],
  about: dict[str, Any],
  workdir: str,
) -> None:
  """Trains from the latest checkpoint of the workdir, if there is one, to spec.steps.

  Args:
    spec: of the loop.
    fresh: the state to start from.
    make: () -> an `updater`, called when there is something to do.
    batch: (step, this host's part of the batch) -> host arrays with a leading batch axis.
    about: what the weights belong to.
    workdir: where checkpoints/, training.json and training.png go.
  """
  store = Store(workdir, create=True)
  curve_path = os.path.join(workdir, 'training.json')
  curve = []
  if store.latest() is None:
    state = jax.jit(fresh)()
  else:
    if store.difference(about):
      raise UserError(
        f'{store.path} holds the checkpoint of another network; use another --workdir, or remove '
        f'that folder'
      )
    state = State(**store.training(jax.eval_shape(fresh)._asdict()))
    curve = [row for row in files.read_json(curve_path, []) if row['step'] <= store.latest()]
  start = int(state.step)
  if start >= spec.steps:
    print(f'already trained to step {start}')
    store.close()
    return

  update = make()
  state = parallel.replicate(state)
  mine = parallel.host_slice(spec.batch)
  with tqdm(
    total=spec.steps, initial=start, desc='training', unit='step', dynamic_ncols=True
  ) as bar:
    losses = []
    for step in range(start, spec.steps):
      state, loss = update(state, parallel.split(batch(step, mine)))
      losses.append(loss)
      bar.update()
      done = step + 1
      last = done == spec.steps
      save = last or done % spec.checkpoint_every == 0
      if save or done % spec.log_every == 0:
        mean = float(np.mean(parallel.unreplicate(losses)))
        if not np.isfinite(mean):
          bar.close()
          store.close()
          kept = store.latest()
          raise UserError(
            f'loss is {mean} between steps {done - len(losses)} and {done}; lower '
            f'train.learning_rate ({spec.learning_rate:g}) or train.clip_norm; '
            + (f'checkpoint {kept} is kept' if kept else 'no checkpoint was written')
          )
        curve.append({'step': done, 'loss': mean})
        bar.set_postfix(loss=f'{mean:.4f}')
        losses = []
      if save:
        local = parallel.unreplicate(state)
        store.save(done, {'net': local.ema}, local._asdict(), about)
        if parallel.is_main():
          files.write_json(curve_path, curve)
  store.close()
  if parallel.is_main():
    plots.training_curve(os.path.join(workdir, 'training.png'), curve)
