"""Feynman-Kac correctors, the hallucination measure and guidance towards minorities, where the
answer is known: mixtures of Gaussians.

  python -m experiments.studies.beyond_sampling --workdir=runs/beyond
"""

import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot
from scipy import stats
from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion import files, samplers
from gmm_diffusion.denoisers import exact, guidance
from gmm_diffusion.maths import grids, noise, schedules
from gmm_diffusion.metrics import estimates, hallucination
from gmm_diffusion.samplers import fkc, watch
from gmm_diffusion.samplers.run import initial_state, run
from gmm_diffusion.types import Prediction

X = np.linspace(-4, 4, 16001)
GROUPS, PARTICLES, STEPS = 128, 256, (50, 200)
ONE = (np.array([-1.0, 1.2]), np.array([0.1, 0.2]), np.array([0.4, 0.6]))
TWO = (np.array([0.8, 0.0]), np.array([0.5, 1.0]), np.array([0.5, 0.5]))
CASES = {
  'power 2': ([ONE], [2.0]),
  'power 1/2': ([ONE], [0.5]),
  'product': ([ONE, TWO], [1.0, 1.0]),
  'guidance 2': ([TWO, ONE], [-1.0, 2.0]),
}
# blur, eta and window of the hallucination measure
SETTINGS = tuple(itertools.product((0.2, 0.3), (0.0, 1.0), (watch.WINDOW, (0.05, 0.5), (0.5, 5.0))))
KEPT = 0.96  # of the samples near a mode; the paper removes 95 % of the others with it
SHOWN = (0.3, 1.0, watch.WINDOW)
MODES, WIDTH = np.array([-1.0, 0.0, 1.0]), 0.05


def denoiser_of(model):
  means, variances, priors = model
  return exact.mixture(jnp.asarray(means, jnp.float32)[:, None], variances, jnp.log(priors))


def density_of(model):
  return sum(p * stats.norm.pdf(X, m, v**0.5) for m, v, p in zip(*model))


def target_of(models, powers):
  out = np.prod([density_of(model) ** beta for model, beta in zip(models, powers)], 0)
  return out / (out.sum() * (X[1] - X[0]))


def summary(groups, mean):
  """Variance about the known mean and share on the right, with intervals over groups."""
  of = {
    'variance': lambda x: ((x - mean) ** 2).mean(1),
    'right': lambda x: (x > 0).mean(1),
  }
  return {name: estimates.of_mean(one(groups)) for name, one in of.items()}


def without_weights(models, powers, schedule, grid, seed):
  """The sum of scores, as guidance usually is: [GROUPS, PARTICLES]."""
  parts = [denoiser_of(model) for model in models]

  def mixed(x, time, cond):
    eps = sum(beta * part(x, time, cond).eps for part, beta in zip(parts, powers))
    return Prediction(x - time.b * eps, eps)  # a = 1

  ids = np.arange(GROUPS * PARTICLES)
  x = samplers.draw(mixed, schedule, (1,), ids, seed, 'ddim', grid=grid, eta=1.0)
  return np.asarray(x).reshape(GROUPS, PARTICLES)


def corrected():
  """Rows of the table of correctors, and the samples for its picture."""
  schedule = schedules.edm(sigma_min=0.005, sigma_max=20.0)
  rows, drawn, cell = [], {}, X[1] - X[0]
  for steps, case in tqdm(list(itertools.product(STEPS, CASES)), desc='correctors', unit='case'):
    grid, (models, powers) = grids.make(schedule, steps, 'karras'), CASES[case]
    target = target_of(models, powers)
    mean = np.sum(target * X) * cell
    known = {
      'variance': np.sum(target * (X - mean) ** 2) * cell,
      'right': np.sum(target * (X > 0)) * cell,
    }
    found = {'without weights': without_weights(models, powers, schedule, grid, 1)}
    for scheme in fkc.SCHEMES:
      out = fkc.draw(
        [denoiser_of(model) for model in models], powers, schedule, (1,), np.arange(GROUPS), 1,
        PARTICLES, grid=grid, scheme=scheme,
      )  # fmt: skip
      found[scheme] = np.asarray(out.particles)[..., 0]
    drawn[case] = target, found
    for method, groups in found.items():
      rows += [
        {
          'case': case,
          'steps': steps,
          'method': method,
          'metric': name,
          'known': float(known[name]),
          **value.record(),
        }
        for name, value in summary(groups, mean).items()
      ]
  return rows, drawn


def area(score, positive):
  """(area under the ROC curve, an upper bound of its standard error)."""
  hits, rest = positive.sum(), (~positive).sum()
  auc = stats.mannwhitneyu(score[positive], score[~positive]).statistic / (hits * rest)
  return float(auc), float(np.sqrt(auc * (1 - auc) / min(hits, rest)))


def watched(count):
  """AUC of both hallucination measures by window, eta and blur, with the share of made-up samples
  above the threshold that leaves KEPT of the others; and the data of the picture."""
  grid, rows, shown = grids.make(schedules.linear(), 200, 'trailing'), [], None
  for soften, eta, window in tqdm(SETTINGS, desc='hallucinations', unit='setting'):
    denoiser = exact.mixture(jnp.asarray(MODES, jnp.float32)[:, None], WIDTH**2, soften=soften)
    kernel = watch.watched(samplers.make('ddim', {'eta': eta}), window)
    plan, _ = kernel.plan(grid, (1,))
    keys = noise.sample_keys(0, np.arange(count))

    @jax.jit
    def draw(plan):
      at = lambda n: noise.at_step(keys, n, (1,))
      return run(kernel, denoiser, grid, plan, initial_state(grid, keys, (1,)), at)

    out = draw(plan)
    far = np.abs(np.asarray(out.x) - MODES).min(1) > 5 * WIDTH
    score = np.asarray(watch.spread(out.state))
    at = hallucination.times(schedules.linear(), window)
    finished = hallucination.unsteadiness(denoiser, out.x, at, np.arange(count))
    for measure, found in (('on the way', score), ('finished images', np.asarray(finished))):
      auc, error = area(found, far)
      removed = estimates.of_share(found[far] > np.quantile(found[~far], KEPT))
      rows.append(
        {
          'soften': soften, 'eta': eta, 'window': list(window), 'measure': measure,
          'hallucinations': int(far.sum()), 'samples': count, 'auc': auc, 'error': error,
          'removed': removed.record(),
        }
      )  # fmt: skip
    if (soften, eta, window) == SHOWN:
      shown = np.asarray(out.x)[:, 0], score
  return rows, shown


def minorities(count):
  """Share of a component of 5 % by the scale of exact guidance, and how much of it is intact."""
  means, variances = np.array([[-0.5, 0.0], [0.5, 0.3]], np.float32), np.array([0.02, 0.01])
  priors = jnp.log(jnp.array([0.95, 0.05]))
  mixture = exact.mixture(means, variances, priors)
  log_prob = exact.log_responsibility(means, variances, priors)
  rows = []
  for scale in (0.0, 1.0, 3.5):
    guided = guidance.classifier(mixture, log_prob, scale)
    x = np.asarray(
      samplers.draw(
        guided, schedules.cosine(), (2,), np.arange(count), 2, 'ddim', 100, eta=1.0,
        cond=jnp.ones(count, jnp.int32),
      )
    )  # fmt: skip
    distance = np.linalg.norm(x[:, None] - means[None], axis=-1) / np.sqrt(variances)
    rare, intact = distance[:, 1] < distance[:, 0], distance.min(1) < 3.03  # 99 % of a component
    for name, flags in (('share', rare), ('intact', intact)):
      value = estimates.of_mean(flags)
      rows.append(
        {
          'scale': scale,
          'metric': name,
          **value.record(),
        }
      )
  return rows


def picture(path, drawn, seen):
  figure, axes = pyplot.subplots(1, 5, figsize=(17, 3.4), dpi=90, layout='constrained')
  for axis, (case, (target, found)) in zip(axes, drawn.items()):
    axis.plot(X, target, 'k', lw=1.5, label='known')
    for method, color in (('without weights', 'tab:orange'), ('geometric', 'tab:blue')):
      axis.hist(
        found[method].reshape(-1), np.linspace(-3, 3, 81), density=True, histtype='step',
        color=color, label={'geometric': 'corrected'}.get(method, method),
      )  # fmt: skip
    axis.set(title=case, xlim=(-3, 3), yticks=[])
  axes[0].legend(fontsize=8)
  x, score = seen
  axes[4].semilogy(x, np.maximum(score, 1e-9), '.', ms=2, alpha=0.4)
  axes[4].set(title='H of each sample; modes at -1, 0, 1', xlabel='sample', ylim=(1e-7, 1))
  files.write(path, lambda name: figure.savefig(name))
  pyplot.close(figure)


def main():
  parser = common.parser(__doc__, 'runs/beyond')
  parser.add_argument('--count', type=int, default=20000, help='samples, but for the correctors')
  args = parser.parse_args()
  (correctors, drawn), (hallucinations, seen) = corrected(), watched(args.count)
  found = {
    'groups': GROUPS,
    'particles': PARTICLES,
    'steps': list(STEPS),
    'count': args.count,
    'correctors': correctors,
    'hallucinations': hallucinations,
    'minorities': minorities(args.count),
  }
  common.save(args.workdir, 'beyond_sampling', found)
  picture(os.path.join(args.workdir, 'beyond_sampling.png'), drawn, seen)


if __name__ == '__main__':
  main()
