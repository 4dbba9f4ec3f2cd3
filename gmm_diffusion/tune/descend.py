"""Tier 3: the gradient of the energy distance through the one sampling loop.

A table is moved by numbers that start at 0 [additive corrections to theory: arXiv 2510.17699]:

  (1) A_n (1 + alpha_n),   B_nj + beta_nj s_n,   C_n e^{gamma_n},   l_n + w_n tanh(xi_n)

where s_n = a_{n+1} (1 - e^{-h_n}) is how much step n takes of x_0, h_n its step in log(a / b), l_n
the log-SNR at which the denoiser is asked, and w_n half of its smaller gap. The loss is

  (2) energy ED(samples, reference) + trajectory |samples - ends|^2 / D + decay (mean square of (1))

with fresh noise in each step; `ends` are those of a fine sampler from the same noise. The
denoiser is rematerialised, so memory grows by states, N for each of the N steps, and not by
activations.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gmm_diffusion import parallel
from gmm_diffusion.maths import noise as noise_lib
from gmm_diffusion.maths.bands import Bands
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.samplers import linear
from gmm_diffusion.samplers.base import Plan
from gmm_diffusion.samplers.linear import Row, Table
from gmm_diffusion.samplers.run import initial_state, run
from gmm_diffusion.tune import scores
from gmm_diffusion.tune.subject import Subject
from gmm_diffusion.types import Array, Time


class Moves(NamedTuple):
  """alpha [N, R], beta [N, N, R] of m_{n-j}, gamma [N, R] and xi [N] of (1)."""

  alpha: Array
  beta: Array
  gamma: Array
  xi: Array


class Settings(NamedTuple):
  """Steps of Adam, samples of each, its first rate, which falls to a tenth along a cosine, the
  weights of (2), and which fields of Moves move."""

  steps: int = 300
  batch: int = 256
  rate: float = 5e-3
  energy: float = 1.0
  trajectory: float = 0.0
  decay: float = 1e-3
  free: tuple[str, ...] = Moves._fields


class Theory(NamedTuple):
  """What `moved` needs of a table: its rows, s_n [N], l_n [N], w_n [N]; all float32."""

  row: Row
  natural: Array
  level: Array
  room: Array


def theory(table: Table, schedule: Schedule, whole_times: bool) -> Theory:
  """The numbers of (1) that stay."""
  steps = len(table.keep)
  with np.errstate(divide='ignore'):
    half = np.log(table.a) - np.log(table.b)
  h = np.diff(np.maximum(half, -20))
  natural = table.a[1:] * -np.expm1(-np.clip(h, 0.05, None))
  level = np.clip(schedule.log_snr(table.time.t), -40, 40)
  gaps = np.abs(np.diff(level))
  room = 0.5 * np.minimum(np.append(gaps, gaps[-1]), np.append(gaps[0], gaps))
  room[0] = 0  # pure noise stays pure noise
  row = linear.rows(table, steps)
  as_float = lambda x: jnp.asarray(x, jnp.float32)
  return jax.tree.map(as_float, Theory(row, natural, level, room * (not whole_times)))


def still(table: Table) -> Moves:
  """Moves that change nothing."""
  steps, count = table.keep.shape
  zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
  return Moves(zeros(steps, count), zeros(steps, steps, count), zeros(steps, count), zeros(steps))


def clock(schedule: Schedule) -> Callable[[Array], Time]:
  """log-SNR -> Time, differentiable, exact to the interpolation between 4,000 levels."""
  ends = np.clip(schedule.log_snr(np.array([schedule.last, schedule.first])), -40, 40)
  level = np.linspace(ends[0], ends[1], 4000)
  t = np.clip(schedule.time_of_log_snr(level), schedule.first, schedule.last)
  log_a = np.log(np.maximum(schedule.signal(t), 1e-30))
  as_float = lambda x: jnp.asarray(x, jnp.float32)

  def at(wanted):
    between = functools.partial(jnp.interp, wanted, as_float(level))
    a = jnp.exp(between(as_float(log_a)))
    return Time(between(as_float(t)), a, a * jnp.exp(-wanted / 2))

  return at


def moved(moves: Moves, known: Theory, at: Callable[[Array], Time]) -> Row:
  """Equation (1), as the rows of the kernel."""
  steps = len(moves.alpha)
  past = jnp.tril(jnp.ones((steps, steps)))[..., None]  # m_{n-j} exists where j <= n
  fixed = known.room == 0
  time = at(known.level + known.room * jnp.tanh(moves.xi))
  return Row(
    Time(*(jnp.where(fixed, old, new) for old, new in zip(known.row.time, time, strict=True))),
    known.row.keep * (1 + moves.alpha),
    known.row.weights + moves.beta * known.natural[:, None, None] * past,
    known.row.std * jnp.exp(moves.gamma),
  )


def table_of(table: Table, moves: Moves, schedule: Schedule, whole_times: bool) -> Table:
  """The table that the moves lead to."""
  known = theory(table, schedule, whole_times)
  row = moved(moves, known, clock(schedule))
  steps = len(table.keep)
  weights = np.zeros_like(table.weights)
  for n in range(steps):
    weights[n, n::-1] = np.asarray(row.weights, np.float64)[n, : n + 1]
  as_float = lambda x: np.asarray(x, np.float64)
  time = Time(
    *(
      np.where(known.room == 0, old, new)
      for old, new in zip(table.time, schedule.at(as_float(row.time.t)), strict=True)
    )
  )
  return Table(time, table.a, table.b, as_float(row.keep), weights, as_float(row.std))


def _optimiser(settings):
  rate = optax.cosine_decay_schedule(settings.rate, settings.steps, alpha=0.1)
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def beginning(table: Table, settings: Settings) -> tuple[int, Moves, Moves, Any]:
  """(steps done, moves, averaged moves, state of Adam) before the first step."""
  start = still(table)
  return 0, start, start, _optimiser(settings).init(start)


def loss_of(
  subject: Subject,
  table: Table,
  bands: Bands,
  features: scores.Features,
  reference: scores.Reference,
  settings: Settings,
  seed: int,
) -> Callable[..., Array]:
  """(moves, weights, ids [n], labels [n], ends [n, *shape]) -> (2).

  Args:
    subject: the denoiser.
    table: where the moves start.
    bands: of the table.
    features: of scores.features.
    reference: of scores.reference, or of scores.towards, whose score then stands for ED.
    settings: see Settings.
    seed: of the noise.
  """
  known, at = theory(table, subject.schedule, subject.whole_times), clock(subject.schedule)
  grid, steps = linear.grid_of(table), len(table.keep)
  kernel = linear.form(steps, bool(np.any(table.std)), bands)
  shape = subject.shape

  def loss(moves, weights, ids, cond, ends):
    keys = noise_lib.sample_keys(seed, ids)
    noise = lambda n: noise_lib.at_step(keys, n, shape)
    x = initial_state(grid, keys, shape)
    denoiser = jax.checkpoint(subject.bind(weights))
    row = moved(moves, known, at)
    x = run(kernel, denoiser, grid, Plan(row), x, noise, cond).x
    away = jnp.mean((x - ends) ** 2) if settings.trajectory else 0.0
    value = scores.energy(features(subject.clipped(x)), reference)[0] if settings.energy else 0.0
    size = sum(jnp.mean(leaf**2) for leaf in jax.tree.leaves(moves))
    return settings.energy * value + settings.trajectory * away + settings.decay * size

  return loss


def descend(
  subject: Subject,
  table: Table,
  loss: Callable[..., Array],
  settings: Settings,
  ends: np.ndarray | None = None,
  state: Any = None,
) -> Iterator[tuple[float, tuple[int, Moves, Moves, Any]]]:
  """Steps of Adam on (2), without end.

  Args:
    subject: the denoiser.
    table: where the moves start.
    loss: of `loss_of`; sample ids are fresh in every step, or those of `ends` in turn.
    settings: those of the loss.
    ends: of a fine sampler with the noise of ids 0..len - 1, where settings.trajectory is set.
    state: of `beginning`, or what was yielded last, to go on from there.

  Yields:
    (loss, (steps done, moves, averaged moves, state of Adam)).
  """
  optimiser, steps = _optimiser(settings), len(table.keep)

  def step(shared, batch):
    moves, average, optimiser_state, weights = shared
    value, gradient = jax.value_and_grad(loss)(moves, weights, *batch)
    value, gradient = parallel.mean((value, gradient))
    gradient = Moves(
      *(
        jnp.where(jnp.isfinite(x), x, 0) if name in settings.free else jnp.zeros_like(x)
        for name, x in zip(Moves._fields, gradient, strict=True)
      )
    )
    change, optimiser_state = optimiser.update(gradient, optimiser_state)
    moves = optax.apply_updates(moves, change)
    average = jax.tree.map(lambda old, new: 0.97 * old + 0.03 * new, average, moves)
    return moves, average, optimiser_state, value

  update, there_weights = parallel.over_devices(step), parallel.replicate(subject.weights)
  done, *numbers = state or beginning(table, settings)
  numbers = parallel.replicate(tuple(numbers))
  count = len(ends) if ends is not None else 2**31
  while True:
    ids = (np.arange(settings.batch) + done * settings.batch) % count
    goal = ends[ids] if ends is not None else np.zeros((settings.batch, 1), np.float32)
    batch = parallel.split((ids.astype(np.uint32), subject.labels(ids), goal))
    *numbers, value = update((*numbers, there_weights), batch)
    subject.calls += 4 * steps * settings.batch  # forward, again, and backward as two
    done += 1
    yield float(parallel.unreplicate(value)), (done, *parallel.unreplicate(tuple(numbers)))
