"""Released checkpoints by format.

recipe_of(format, part, module, template, names, side) -> (Recipe, names that belong to the part),
where part is 'net', 'autoencoder' or 'classifier', template the network's abstract parameters,
names those of the file and side that of a sample.
"""

from collections.abc import Collection
from typing import Any

from gmm_diffusion.checkpoints.importers import compvis, diffusers, dit, guided_diffusion
from gmm_diffusion.checkpoints.importers.recipe import Recipe

FORMATS = ('guided_diffusion', 'compvis', 'diffusers', 'dit')


def recipe_of(
  form: str, part: str, module: Any, template: Any, names: Collection[str], side: int
) -> tuple[Recipe, list[str]]:
  if form == 'dit':
    return dit.recipe(part, module, template, names, side)
  return {'guided_diffusion': guided_diffusion, 'compvis': compvis, 'diffusers': diffusers}[
    form
  ].recipe(part, module, template, names)
