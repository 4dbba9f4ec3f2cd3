"""Samplers by name. To add one: one file, one line in SAMPLERS, one test file."""

import inspect
from typing import Any

from gmm_diffusion.aliases import UserError
from gmm_diffusion.samplers import gaussian, mixture
from gmm_diffusion.samplers.base import Kernel

SAMPLERS = {
    'ddpm': gaussian.ddpm,
    'ddim': gaussian.ddim,
    'ddim_gmm': mixture.ddim_gmm,
    'ddim_noise': mixture.ddim_noise,
    'euler': gaussian.euler,
    'rfim': gaussian.rfim,
    'rfim_gmm': mixture.rfim_gmm,
    'rfim_noise': mixture.rfim_noise,
}

# The source's five variants [GMM section 4]: what each fixes of the mixture. "shared" is its "*".
_RAND = dict(offsets='rand', form='A', covariance='diagonal')
_ORTHO = dict(offsets='ortho', form='B', covariance='diagonal')
_VUB = dict(offsets='ortho', form='B', covariance='vub')
VARIANTS = {
    'rand': dict(_RAND, shared=False),
    'ortho': dict(_ORTHO, shared=False),
    'ortho_vub': dict(_VUB, shared=False),
    'ortho_shared': dict(_ORTHO, shared=True),
    'ortho_vub_shared': dict(_VUB, shared=True),
}
# The same names on the controls mean the control of that variant.
_BASES = ('ddim_gmm', 'ddim_noise', 'rfim_gmm', 'rfim_noise')
NAMES = tuple(SAMPLERS) + tuple(f'{base}_{variant}' for base in _BASES for variant in VARIANTS)


def resolve(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
  """(name of a sampler or of a source variant, options) -> (name in SAMPLERS, options it takes).

  Options that the sampler has no use for are left out; a variant's own settings win.
  """
  if name not in NAMES:
    raise UserError(f'unknown sampler {name!r}; valid: {", ".join(NAMES)}')
  if name not in SAMPLERS:
    name, variant = next((base, name[len(base) + 1:]) for base in _BASES if name.startswith(base + '_'))
    options = {**options, **VARIANTS[variant]}
  parameters = inspect.signature(SAMPLERS[name]).parameters
  taken = set(parameters)
  if 'options' in parameters:
    taken |= set(mixture.Options._fields)
  return name, {key: value for key, value in options.items() if key in taken}


def make(name: str, options: dict[str, Any]) -> Kernel:
  """The kernel of a sampler or source variant; raises UserError on bad names or values."""
  name, options = resolve(name, options)
  return SAMPLERS[name](**options)


def control_of(name: str) -> str | None:
  """The energy-matched isotropic control of a mixture sampler; None for any other."""
  return name.replace('_gmm', '_noise') if '_gmm' in name else None
