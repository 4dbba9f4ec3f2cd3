"""DiT's .pt files: the transformer under its own names, beside a fixed table of positions."""

from collections.abc import Collection
from typing import Any

from gmm_diffusion.checkpoints.importers.recipe import Recipe, plain
from gmm_diffusion.nets.dit import position_table


def recipe(
  part: str, module: Any, template: Any, names: Collection[str], side: int
) -> tuple[Recipe, list[str]]:
  """(recipe, the source's names that belong to it); side: of the sample."""
  del part
  table = position_table(side // module.patch, module.channels)[None]
  return plain(template)._replace(constants={'pos_embed': table}), list(names)
