"""What the configs share: every key with its default, and the variants after the colon."""

import dataclasses

from ml_collections import ConfigDict

from gmm_diffusion import specs

# The source's five variants; evaluation adds the isotropic control of each.
SOURCE_VARIANTS = ('ddim', 'ddim_gmm_rand', 'ddim_gmm_ortho', 'ddim_gmm_ortho_vub', 'ddim_gmm_ortho_shared', 'ddim_gmm_ortho_vub_shared')


def defaults() -> ConfigDict:
  """All keys of gmm_diffusion/specs.py with their defaults."""
  return ConfigDict(dataclasses.asdict(specs.Spec()))


def arguments(arg: str, valid: tuple[str, ...]) -> set[str]:
  """The variants in configs/NAME.py:ARG[,ARG]."""
  found = set(filter(None, (arg or '').split(',')))
  if not found <= set(valid):
    raise ValueError(f'unknown config argument {", ".join(sorted(found - set(valid)))!r}; valid: {", ".join(valid)}')
  return found
