"""Training of any loss: EMA, orbax checkpoints, resume.

What happens in step n depends on (seed, n) and the position in the batch only: a run that was
killed and resumed equals an uninterrupted one, and the number of devices changes rounding alone.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from gmm_diffusion import files, parallel, specs
from gmm_diffusion.checkpoints.store import AVERAGES, Store
from gmm_diffusion.data import streams
from gmm_diffusion.engine import logs
from gmm_diffusion.errors import Stopped, UserError
from gmm_diffusion.maths import training
from gmm_diffusion.reports import plots

CURVE = 'training.json'  # of a workdir: [{'step', 'loss'} and perhaps logs.ERRORS, ...]
# What runs once is compiled the fastest way: a network's first weights take 3 s in place of 30.
_ONCE = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


class State(NamedTuple):
  """step: updates done. ema: averaged parameters, those to sample from. averages: by the names in
  checkpoints.store.AVERAGES, those of train.averages."""

  step: Any
  params: Any
  ema: Any
  optimiser: Any
  averages: dict[str, Any] = {}

  def stored(self) -> dict[str, Any]:
    """As checkpoints have it."""
    return {key: part for key, part in self._asdict().items() if key != 'averages' or part}


def first(params: Any, optimiser: optax.GradientTransformation) -> State:
  """The state before the first update."""
  return State(jnp.zeros((), jnp.int32), params, params, optimiser.init(params))


def updater(
  spec: specs.Train,
  optimiser: optax.GradientTransformation,
  loss_fn: Callable[[Any, Any, Any], Any],
):
  """(State, batch) -> (State, (loss, norm of the gradient, errors)) on every device.

  loss_fn(params, step, batch) is the mean loss, or that and squared errors by the noise level
  b / a, which are shown: {level in words: [their sum, how many there are]}.
  """

  def update(state, batch):
    (loss, errors), gradient = parallel.mean(in_parts(loss_fn, spec.accumulate, state, batch))
    updates, opt_state = optimiser.update(gradient, state.optimiser, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    ema, *others = (
      averaged(spec, step, average, params, number)
      for number, average in zip(_numbers(spec), (state.ema, *state.averages.values()))
    )
    state = State(step, params, ema, opt_state, dict(zip(state.averages, others)))
    return state, (loss, optax.tree.norm(gradient), errors)

  return parallel.over_devices(update, donate=True)


def in_parts(loss_fn: Callable[[Any, Any, Any], Any], parts: int, state: State, batch: Any):
  """((loss, errors), gradient) of a batch, one part of it after another in the memory of one."""

  def both(*args):
    out = loss_fn(*args)
    return out if isinstance(out, tuple) else (out, {})

  grad = lambda part: jax.value_and_grad(both, has_aux=True)(state.params, state.step, part)
  if parts == 1:
    return grad(batch)
  # item i goes to part i mod parts, so that low-discrepancy times are spread in each part too
  split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
  add = lambda total, part: (jax.tree.map(jnp.add, total, grad(part)), None)
  shapes = jax.eval_shape(grad, jax.tree.map(lambda x: x[0], split))
  zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  total, _ = jax.lax.scan(add, zero, split)
  return jax.tree.map(lambda x: x / parts, total)


def check_batch(spec: specs.Train) -> None:
  """Raises UserError unless a batch splits evenly over all devices, and there into parts."""
  parallel.check_batch(spec.batch, 'train.batch')
  per_device = parallel.per_device(spec.batch)
  if per_device % spec.accumulate:
    raise UserError(
      f'train.accumulate {spec.accumulate} does not divide the {per_device} items of a batch on '
      f'each device; valid: a divisor of {per_device}'
    )


def _numbers(spec: specs.Train) -> tuple[float, ...]:
  """Of the averages: widths, half-lives or decays."""
  first = spec.ema_width or spec.ema_half_life
  return (spec.ema if first is None else first, *spec.averages)


def decay_of(spec: specs.Train, number: float, step: Any) -> Any:
  """The decay of an average at update `step` (from 1), by its half-life or decay."""
  decay = 0.5 ** (spec.batch / number) if spec.ema_half_life else number
  return jnp.minimum(decay, (1 + step) / (10 + step))  # forgets the random start


def averaged(
  spec: specs.Train, step: Any, average: Any, params: Any, number: float | None = None
) -> Any:
  """The averaged parameters after `step` updates, the last of which led to `params`; number: of
  the average, by default the first."""
  number = _numbers(spec)[0] if number is None else number
  if spec.ema_width:
    share = training.power_share(number, step)
    return jax.tree.map(lambda e, p: e + share * (p - e), average, params)
  decay = decay_of(spec, number, step)
  return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, average, params)


def _with_averages(spec: specs.Train, state: State) -> State:
  names = AVERAGES[: len(spec.averages)]
  return state._replace(averages={name: jax.tree.map(jnp.copy, state.ema) for name in names})


def at_constant_rate(
  spec: specs.Train, steps: int, batch: int, learning_rate: float
) -> specs.Train:
  """The settings of a loop of another section, which has its own of these."""
  return dataclasses.replace(
    spec,
    steps=steps,
    batch=batch,
    learning_rate=learning_rate,
    accumulate=1,
    warmup=0,
    decay='constant',
    averages=(),
  )


def learning_rate(spec: specs.Train) -> optax.Schedule | float:
  """step -> rate."""
  peak, warmup = spec.learning_rate, spec.warmup
  if spec.decay == 'cosine':
    if warmup >= spec.steps:
      raise UserError(
        f'train.warmup {warmup} must be below train.steps {spec.steps} where train.decay is cosine'
      )
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, spec.steps)
  if spec.decay == 'rsqrt':
    start = max(spec.decay_from or warmup, 1)
    rise = lambda step: jnp.minimum(step / warmup, 1.0) if warmup else 1.0
    return lambda step: peak * rise(step) * jnp.sqrt(start / jnp.maximum(step, start))
  return optax.linear_schedule(0.0, peak, warmup) if warmup else peak


def make_optimiser(spec: specs.Train) -> optax.GradientTransformation:
  rate = learning_rate(spec)
  kind = (
    optax.adamw(rate, weight_decay=spec.weight_decay)
    if spec.optimiser == 'adamw'
    else optax.adam(rate)
  )
  return optax.chain(optax.clip_by_global_norm(spec.clip_norm), kind)


def once(fresh: Callable[[], State]) -> Callable[[], State]:
  """`fresh` of `fit`, compiled for one call."""
  return jax.jit(fresh, compiler_options=_ONCE)


def fit(
  spec: specs.Train,
  fresh: Callable[[], State],
  make: Callable[[], Any],
  batch: Callable[[int, slice], Any],
  about: dict[str, Any],
  workdir: str,
  ahead: bool = False,
  show: Callable[[int, Any], None] = lambda step, ema: None,
  section: str = 'train',
  begun: Callable[[State], State] = lambda state: state,
) -> None:
  """Trains from the latest checkpoint of the workdir, if there is one, to spec.steps.

  Args:
    spec: of the loop.
    fresh: the state to start from.
    make: () -> an `updater`, called when there is something to do.
    batch: (step, this host's part of the batch) -> host arrays with a leading batch axis.
    about: what the weights belong to.
    workdir: where checkpoints/, training.json and training.png go.
    ahead: several threads call `batch`, before it is needed.
    show: called with (step, averaged parameters) every spec.sample_every steps, by the first host.
    section: of the config, where the learning rate is set.
    begun: what else is done to `fresh` where nothing was trained yet; not compiled.

  Raises:
    UserError: the loss is not finite.
    Stopped: SIGTERM or SIGINT came, and everything is saved.
  """
  with contextlib.closing(Store(workdir, create=True, keep=(spec.keep, spec.keep_every))) as store:
    state, curve = _started(store, spec, fresh, begun, about, workdir)
    start = int(state.step)
    if start >= spec.steps:
      print(f'already trained to step {start}')
      return
    logs.check(spec.loggers)  # what is missing shows before anything slow
    if ahead:
      streams.grain()
    update, state = make(), parallel.replicate(state)
    mine, rate = parallel.host_slice(spec.batch), learning_rate(spec)
    read = lambda step: batch(step, mine)
    batches = (streams.ahead if ahead else _in_turn)(read, start, spec.steps)
    agreed = parallel.agreement()
    with (
      _alone(workdir),
      parallel.together(),
      logs.writers(spec.loggers, workdir, start, {**about, 'train': vars(spec)}) as write,
      stops() as stopped,
      tqdm(
        total=spec.steps, initial=start, desc='training', unit='step', dynamic_ncols=True
      ) as bar,
    ):
      log = logs.Log(spec, workdir, start, section, rate, write)
      for done, part in enumerate(batches, start + 1):
        part = parallel.split(part)
        if done == start + 1:
          log.expect(spec.accumulate * parallel.work(update, state, part))
        state, values = update(state, part)
        log.values.append(values)
        bar.update()
        stop = agreed(stopped[0] if stopped else 0)
        save = done == spec.steps or done % spec.checkpoint_every == 0 or stop
        if save or done % spec.log_every == 0:
          row = log.row(done, store)
          curve.append({key: row[key] for key in ('step', 'loss', logs.ERRORS) if key in row})
          bar.set_postfix(loss=f'{row["loss"]:.4f}', images=f'{row["images_per_second"]:.0f}/s')
        if save:
          _save(store, done, parallel.unreplicate(state), about, workdir, curve)
        if spec.sample_every and done % spec.sample_every == 0 and parallel.is_main():
          show(done, parallel.unreplicate(state.ema))
        if stop:
          break
      stop = stop or agreed(stopped[0] if stopped else 0)  # during the last save
  if parallel.is_main():
    plots.training_curve(os.path.join(workdir, 'training.png'), curve)
  if stop:  # after the last step too: more may follow, such as another network
    raise Stopped(
      f'stopped by {signal.Signals(stop).name} after step {done} of {spec.steps}, which is saved; '
      f'the same command goes on from there'
    )


def _save(store, step, state, about, workdir, curve):
  store.save(step, {'net': state.ema, **state.averages}, state.stored(), about)
  if parallel.is_main():
    files.write_json(os.path.join(workdir, CURVE), curve)


@contextlib.contextmanager
def _alone(workdir: str) -> Iterator[None]:
  """Nobody else trains in the workdir."""
  path = os.path.join(workdir, 'training')
  with files.claimed(path) if parallel.is_main() else contextlib.nullcontext(True) as mine:
    if not mine:
      raise UserError(
        f'another process trains in {workdir}; wait for its end, or give another --workdir'
      )
    yield


@contextlib.contextmanager
def stops() -> Iterator[list[int]]:
  """The signals SIGTERM and SIGINT that came; a second one acts as it would outside."""
  came: list[int] = []
  if threading.current_thread() is not threading.main_thread():
    yield came
    return

  def note(number, frame):
    came.append(number)
    signal.signal(number, before[number])

  before = {  # None: not a handler of Python
    number: signal.signal(number, note) or signal.SIG_DFL
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    yield came
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _in_turn(batch, start, stop):
  return map(batch, range(start, stop))


def _started(store, spec, fresh, begun, about, workdir) -> tuple[State, list[dict[str, float]]]:
  """The state to go on from, and the loss so far."""
  if store.latest() is None:
    return _with_averages(spec, begun(fresh())), []
  if store.difference(about):
    raise UserError(
      f'{store.path} holds the checkpoint of another network; use another --workdir, or remove '
      f'that folder'
    )
  template = jax.eval_shape(functools.partial(_with_averages, spec), jax.eval_shape(fresh))
  state = State(**store.training(template.stored()))
  curve = files.read_json(os.path.join(workdir, CURVE), [], _is_curve)
  return state, [row for row in curve if row['step'] <= store.latest()]


def _is_curve(rows):
  return all(
    isinstance(row, dict)
    and isinstance(row.get('step'), int)
    and isinstance(row.get('loss'), int | float)
    and isinstance(row.get(logs.ERRORS, {}), dict)
    for row in rows
  )
