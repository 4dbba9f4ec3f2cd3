"""What the judges of the report say of samplers for N calls, and of the model in many steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from gmm_diffusion import files
from gmm_diffusion.maths import grids
from gmm_diffusion.tasks.diffusion.tune_page import Judged
from gmm_diffusion.tune import tiers
from gmm_diffusion.tune.race import Candidate
from gmm_diffusion.tune.subject import Subject
from gmm_diffusion.types import StepGrid

ODE = 100  # steps of the limit without noise
LONG = 250  # steps of the model's own samples where they are the reference


def judged(
  some: Sequence[Candidate],
  tuner: tiers.Tuner,
  values: Callable[[np.ndarray], list[float]],
  judges: Mapping[str, bool],
  seeds: int,
  samples: int,
  mark: str,
) -> list[Judged]:
  """What the judges say of each sampler, for each seed of the report.

  The race ranks samplers by its own score. So that the tuned sampler is compared with the strongest
  untuned one, each judge also ranks the finalists of the race, on noise that the report does not
  have, and the one that it ranks first is judged too.

  Args:
    some: samplers; tables that are equal count once.
    tuner: the one that found them.
    values: samples [n, *shape] -> the metric of each judge.
    judges: their names, and whether lower values of their metric are better.
    seeds, samples: streams of noise, and samples of each.
    mark: what `values` depends on.
  """

  def of(one, seed):
    def make():
      stream = tiers.stream(tuner.settings.seed, seed)
      x = tuner.subject.draw(one.table, stream, np.arange(samples), tuner.bands(one.bands))
      return {'values': np.array(values(x))}

    key = tiers.hash_of(one.table)
    name = f'report-{key}-{files.fingerprint(mark, "values")}-{samples}-{seed}.npz'
    return tuner.keep(name, f'{tuner.mark} {mark}', make)['values']

  bar = tqdm(tuner.finalists, desc='finalists', unit='sampler', dynamic_ncols=True)
  ranked = np.array([of(one, seeds) for one in bar])
  signs = np.where(list(judges.values()), 1, -1)
  first = [tuner.finalists[i] for i in np.argmin(signs * ranked, 0)]
  ranks = [(name, tiers.hash_of(one.table)) for name, one in zip(judges, first, strict=True)]
  out, known = [], {}
  for one in (*some, *first):  # in this order, each once
    known.setdefault(tiers.hash_of(one.table), one)
  for key, one in known.items():
    bar = tqdm(range(seeds), desc='report', unit='seed', dynamic_ncols=True)
    each = np.array([of(one, seed) for seed in bar]).T.tolist()
    by = tuple(name for name, other in ranks if other == key)
    out.append(Judged(str(one), key, each[0], each[1] if len(each) > 1 else None, by))
  return out


def long_run(subject: Subject) -> tuple[str, dict[str, Any], StepGrid]:
  """(a sampler with noise, its options, its grid of many steps): draws what the model has
  learned."""
  steps = min(LONG, len(subject.schedule.training_times))
  if subject.schedule.discrete:
    return 'ddpm', {}, grids.make(subject.schedule, steps, 'trailing')
  # steps are so close at the end that a line through two of them would carry the last noise on
  return 'dpmpp_sde', {'extrapolate': False}, grids.make(subject.schedule, steps, 'log_snr')


def limits(
  subject: Subject,
  judges: Callable[[np.ndarray], list[float]],
  streams: Sequence[int],
  samples: int,
  keep: Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]],
) -> list[dict[str, Any]]:
  """What the judges say of the model in many steps, without and with noise, as in `limit`.

  Args:
    subject: the denoiser.
    judges: samples [n, *shape] -> the metric of each.
    streams: seeds of the noise.
    samples: of each.
    keep: (name, make) -> what make() returns, perhaps from an earlier run.
  """
  noisy = long_run(subject)
  steps = min(ODE, len(subject.schedule.training_times))
  times = subject.times(np.asarray(grids.make(subject.schedule, steps, 'log_snr').t))
  ode = 'dpmpp', {'extrapolate': False}, grids.from_times(subject.schedule, times)
  out = []
  for what, (name, options, grid) in (
    (f'the ODE in {steps} steps', ode),
    (f'{noisy[0]} in {len(noisy[2].t)} steps', noisy),
  ):
    values = []
    for stream in tqdm(streams, desc=what, unit='seed', dynamic_ncols=True):

      def make(name=name, options=options, grid=grid, stream=stream):
        drawn = subject.end(name, options, grid, stream, np.arange(samples))
        return {'values': np.array(judges(drawn))}

      values.append(keep(f'limits-{name}-{samples}-{stream}.npz', make)['values'])
    out.append(limit(what, values))
  return out


def limit(what: str, values: Sequence[Sequence[float]]) -> dict[str, Any]:
  """{'what', 'values' of the first judge, 'second' of another}: from [seeds, judges]."""
  first, *more = np.array(values).T.tolist()
  return {'what': what, 'values': first, **({'second': more[0]} if more else {})}
