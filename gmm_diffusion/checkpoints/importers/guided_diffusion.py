"""ADM's .pt files (guided-diffusion): U-Net and noisy classifier, under the names that the networks
here have."""

from collections.abc import Collection
from typing import Any

from gmm_diffusion.checkpoints.importers.recipe import Recipe, plain


def recipe(
  part: str, module: Any, template: Any, names: Collection[str]
) -> tuple[Recipe, list[str]]:
  """(recipe, the source's names that belong to it)."""
  del part, module
  return plain(template), list(names)
