"""The samplers that tables compare, by the names of their columns, at equal numbers of network
evaluations."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion import samplers, specs
from gmm_diffusion.denoisers import exact
from gmm_diffusion.engine import build
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import noise
from gmm_diffusion.samplers.run import run


class Column(NamedTuple):
  """name: in samplers.NAMES. options: what this column fixes. published: the sampler's name in
  published/ddim_gmm_tables.csv."""

  name: str
  options: dict[str, Any] = {}
  published: str = ''


AUTHORS = dict(extrapolate=False)  # columns are what was published

# The order is that of the tables.
COLUMNS = {
  'DDIM': Column('ddim', published='ddim'),
  'RAND': Column('ddim_gmm_rand', published='ddim_gmm_rand'),
  'ORTHO': Column('ddim_gmm_ortho', published='ddim_gmm_ortho'),
  'ORTHO-VUB': Column('ddim_gmm_ortho_vub', published='ddim_gmm_ortho_vub'),
  'ORTHO*': Column('ddim_gmm_ortho_shared', published='ddim_gmm_ortho_shared'),
  'ORTHO-VUB*': Column('ddim_gmm_ortho_vub_shared', published='ddim_gmm_ortho_vub_shared'),
  'control': Column('ddim_noise_ortho'),
  'exact': Column('ddim_gmm', dict(covariance='exact', infeasible='shrink')),
  'RFIM': Column('rfim', published='rfim'),
  'RFIM-RAND': Column('rfim_gmm_rand', published='rfim_gmm_rand'),
  'RFIM-ORTHO': Column('rfim_gmm_ortho', published='rfim_gmm_ortho'),
  'RFIM-ORTHO-VUB': Column('rfim_gmm_ortho_vub', published='rfim_gmm_ortho_vub'),
  'RFIM-GMM': Column('rfim_gmm_ortho_vub_shared', published='rfim_gmm'),
  'RFIM control': Column('rfim_noise_ortho'),
  'DDPM': Column('ddpm'),
  'DPM-Solver++ 2M': Column('dpmpp', dict(order=2, **AUTHORS), published='dpm_solver'),
  'DPM-Solver++ 3M': Column('dpmpp', dict(order=3, **AUTHORS)),
  'DPM-Solver++ SDE': Column('dpmpp_sde', dict(order=2, **AUTHORS)),
  'DEIS 1': Column('deis', dict(order=1, **AUTHORS)),
  'DEIS 2': Column('deis', dict(order=2, **AUTHORS)),
  'DEIS 3': Column('deis', dict(order=3, **AUTHORS)),
  'UniPC 2 bh1': Column('unipc', dict(order=2, bh='bh1', **AUTHORS)),
  'UniPC 2 bh2': Column('unipc', dict(order=2, bh='bh2', **AUTHORS)),
  'UniPC 3 bh1': Column('unipc', dict(order=3, bh='bh1', **AUTHORS)),
  'UniPC 3 bh2': Column('unipc', dict(order=3, bh='bh2', **AUTHORS)),
  'Heun': Column('heun'),
  'BDIA': Column('bdia'),
  'time shift': Column('time_shift'),
}
SOURCE = ('DDIM', 'RAND', 'ORTHO', 'ORTHO-VUB', 'ORTHO-VUB*', 'control')
FAST = tuple(list(COLUMNS)[list(COLUMNS).index('DDPM') :])


def check(names) -> None:
  for name in names:
    if name not in COLUMNS:
      raise UserError(f'unknown column {name!r}; valid: {", ".join(COLUMNS)}')


def sampler_of(spec: specs.Spec, column: str, **options: Any) -> specs.Sampler:
  """The column's sampler with other options as in the spec or given."""
  return dataclasses.replace(
    spec.sampler, name=COLUMNS[column].name, **{**options, **COLUMNS[column].options}
  )


def takes(column: str, option: str) -> bool:
  """Whether the column's sampler has an option that the column leaves open."""
  one = specs.Sampler(name=COLUMNS[column].name)
  return (
    option in samplers.resolve(one.name, one.options())[1] and option not in COLUMNS[column].options
  )


@functools.cache
def evaluations(schedule: specs.Schedule, sampler: specs.Sampler) -> int:
  """Network evaluations per sample, counted by a run on a Gaussian in the plane."""
  process = build.schedule(schedule)
  grid = build.grid(process, sampler)
  kernel = samplers.make(sampler.name, dict(sampler.options(), components=2, priors=()), process)
  plan, _ = kernel.plan(grid, (2,))
  keys = noise.sample_keys(0, np.arange(1))
  fn = jax.jit(
    lambda grid, plan: jnp.asarray(
      run(
        kernel,
        exact.gaussian(0.0, 1.0),
        grid,
        plan,
        jnp.ones((1, 2)),
        lambda n: noise.at_step(keys, n, (2,)),
      ).nfe
    )
  )
  return int(fn(grid, plan))


def at_budget(schedule: specs.Schedule, sampler: specs.Sampler, nfe: int) -> specs.Sampler | None:
  """The sampler with as many steps as `nfe` evaluations allow; None where one step costs more."""
  count = lambda steps: evaluations(schedule, dataclasses.replace(sampler, steps=steps))
  steps = nfe
  while steps and (cost := count(steps)) > nfe:
    steps = min(steps - 1, steps * nfe // cost + 1)
  return dataclasses.replace(sampler, steps=steps) if steps else None
