"""Denoising MCMC [2209.14593], where the answer is known: the published chain beside ours on two
modes and on Gaussians around digits, and independent samples with as many calls.

  python -m experiments.studies.denoising_mcmc --workdir=runs/denoising_mcmc
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax
from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion import samplers, specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.denoisers import exact
from gmm_diffusion.maths import grids, noise, schedules
from gmm_diffusion.metrics import estimates
from gmm_diffusion.samplers import langevin

WAYS = {
  'published': {'variance': None, 'level': 'likeliest', 'choice': 'smallest'},
  'sigma drawn': {'variance': None, 'level': 'drawn', 'choice': 'smallest'},
  'and the last state': {'variance': None, 'level': 'drawn', 'choice': 'last'},
  'and a step by level': {'level': 'drawn', 'choice': 'last'},
}
HEUN = 5  # levels of the descent


def correlation(series):
  """Of a quantity [M, C] between one draw of a chain and the next, around the mean of all."""
  centred = series - series.mean()
  return float(np.mean(centred[1:] * centred[:-1]) / max(np.mean(centred**2), 1e-30))


def run(problem, way, args, step):
  """Draws after the first tenth: (x [M, C, D], sigma [M, C], calls of a draw)."""
  means, variance, log_priors, sigmas = problem
  options = {'variance': variance, **WAYS[way]}
  denoiser = langevin.of_each(exact.mixture(means, variance, log_priors))
  log_prob = langevin.level_log_prob(means, variance, sigmas, log_priors)
  ids = np.arange(args.chains)
  shape = means.shape[1:]
  start = float(sigmas[-1]) * noise.initial(noise.sample_keys(1, ids), shape)
  found = jax.jit(
    lambda start: langevin.chains(
      denoiser, log_prob, sigmas, start, ids, args.draws, args.skip, HEUN, step, **options
    )
  )(start)
  first = args.draws // 10
  return np.asarray(found.x)[first:], np.asarray(found.sigma)[first:], found.nfe


def independent(problem, args, calls):
  """As many independent samples by Heun's method with as many calls, [M, C, D]."""
  means, variance, log_priors, sigmas = problem
  schedule = schedules.edm(sigma_min=float(sigmas[0]), sigma_max=float(sigmas[-1]))
  count = (args.draws - args.draws // 10) * args.chains
  x = samplers.draw(
    exact.mixture(means, variance, log_priors), schedule, means.shape[1:], np.arange(count), 2,
    'heun', grid=grids.make(schedule, (calls + 1) // 2, 'karras'),
  )  # fmt: skip
  return np.asarray(x).reshape(-1, args.chains, *means.shape[1:])


def shares(problem, x, groups):
  """Of draws [M, C, D], the group of the component that each is nearest to: [M, C]."""
  flat = x.reshape(-1, x.shape[-1])
  near = [
    np.argmin(np.sum((part[:, None] - problem[0][None]) ** 2, -1), 1)
    for part in np.array_split(flat, max(1, len(flat) // 2000))
  ]
  return groups[np.concatenate(near)].reshape(x.shape[:2])


def rows_of(name, problem, groups, args, step):
  """Error of the shares of the groups (total variation), how far draws are from their component
  over what is known, and how alike neighbours in a chain are."""
  priors = softmax(np.asarray(problem[2]))
  known = np.bincount(groups, priors)
  rows, D = [], problem[0].shape[1]
  ways = [*WAYS, 'independent']
  for way in tqdm(ways, desc=name, unit='way'):
    if way == 'independent':
      x, sigma = independent(problem, args, rows[-1]['calls']), None
    else:
      x, sigma, calls = run(problem, way, args, step)
    found = shares(problem, x, groups)
    each = np.stack([np.mean(found == group, 0) for group in range(len(known))])  # of chains
    off = lambda part: 0.5 * np.abs(part.mean(1) - known).sum()
    chains = np.arange(args.chains)
    rest = np.array([off(each[:, chains != chain]) for chain in chains])  # leave one chain out
    error = np.sqrt((args.chains - 1) * np.mean((rest - rest.mean()) ** 2))
    nearest = np.min(
      [np.sum((x.reshape(-1, D) - mean) ** 2, 1) for mean in np.asarray(problem[0])], 0
    ).reshape(found.shape)
    spread = estimates.of_mean(nearest.mean(0) / (D * problem[1]))
    rows.append({
      'problem': name, 'way': way, 'step': step, 'calls': int(calls), 'known': known.tolist(),
      'shares': each.mean(1).tolist(), 'off': float(off(each)), 'error': float(error),
      'last group': estimates.of_mean(each[-1]).record(), 'spread': spread.record(),
      'alike': correlation((found == len(known) - 1).astype(float)),
      'sigma alike': None if sigma is None else correlation(np.log(sigma)),
      'median sigma': None if sigma is None else float(np.median(sigma)),
    })  # fmt: skip
    print({key: rows[-1][key] for key in ('way', 'off', 'error', 'spread', 'alike', 'sigma alike')})
  return rows


def main():
  parser = common.parser(__doc__, 'runs/denoising_mcmc')
  parser.add_argument('--chains', type=int, default=64)
  parser.add_argument('--draws', type=int, default=500, help='of each chain')
  parser.add_argument('--skip', type=int, default=10, help='moves between two draws')
  parser.add_argument('--steps', type=float, nargs='+', default=[0.5, 0.05])
  parser.add_argument('--items', type=int, default=300, help='digits')
  args = parser.parse_args()
  toy = (
    np.array([[-1.0], [1.0]], np.float32), 0.05**2, jnp.log(jnp.array([0.8, 0.2])),
    np.geomspace(0.01, 3, 60),
  )  # fmt: skip
  data = sources.load(specs.Data())
  means = base.to_model(data.train[: args.items]).reshape(args.items, -1)
  around = means, 0.1**2, jnp.full(args.items, -np.log(args.items)), np.geomspace(0.05, 10, 100)
  problems = (
    ('two modes', toy, np.arange(2)),
    ('digits', around, data.train_labels[: args.items]),
  )
  rows = [rows_of(name, *rest, args, step) for name, *rest in problems for step in args.steps]
  common.save(args.workdir, 'denoising_mcmc', {**vars(args), 'rows': [*itertools.chain(*rows)]})


if __name__ == '__main__':
  main()
