"""The page of --mode=evaluate."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gmm_diffusion.reports import page


class Row(NamedTuple):
  """One sampler.

  Attributes:
    name: of the sampler.
    kind: 'sampler', 'control' or 'data'.
    control: name of its isotropic control, or ''.
    nfe: denoiser calls per sample; 0 for images that were not drawn here.
    metrics: name -> Estimate; a row without any is shown, but not in the table.
    strip: PNG of the seeds that all samplers share.
    report: moment report as text, or ''.
  """

  name: str
  kind: str
  control: str
  nfe: int
  metrics: dict[str, Any]
  strip: bytes
  report: str


def _table(rows: Sequence[Row], lower: dict[str, bool]) -> page.Html:
  rows = [row for row in rows if row.metrics]
  metrics = [name for name in lower if any(name in row.metrics for row in rows)]
  sampled = any(row.nfe for row in rows)
  head = ['sampler', 'evaluations'] if sampled else ['images']
  head += [f'{name} {"↓" if lower[name] else "↑"}' for name in metrics]
  head += ['its control'] * sampled
  body = [
    [row.name]
    + [row.nfe or ''] * sampled
    + [row.metrics.get(name, '') for name in metrics]
    + [row.control] * sampled
    for row in rows
  ]
  return page.table(head, body, ['' if row.kind == 'sampler' else 'quiet' for row in rows])


def write(
  path: str,
  title: str,
  command: str,
  facts: dict[str, Any],
  rows: Sequence[Row],
  lower: dict[str, bool],
  curve: bytes | None,
  config: dict[str, Any],
  notes: Sequence[str],
) -> None:
  """Writes the page.

  Args:
    path, title, command, facts, config: as in page.document.
    rows: one per sampler, in order.
    lower: metric -> whether lower is better; its order is that of the columns.
    curve: PNG of the training curve, if there is one.
    notes: sentences below the table.
  """
  sampled = any(row.nfe for row in rows)
  sections: list[page.Section] = [
    ('Metrics', [_table(rows, lower), *notes]),
    (
      'Same seeds, side by side' if sampled else 'The first images',
      [page.strip(row.name, row.strip) for row in rows],
    ),
  ]
  mixtures = [row for row in rows if row.report]
  if mixtures:
    about = (
      'What each step does to q(x_s | x_0), whose mean should be a_s x_0 and whose covariance '
      'b_s² I. Residuals: length of the mean offset, and ‖covariance error‖ / √D; added var.: per '
      'coordinate.'
    )
    reports = [page.folded(row.name, row.report, shown=row is mixtures[0]) for row in mixtures]
    sections.append(('Moment report', [about, *reports]))
  if curve:
    sections.append(('Training', [page.figure(curve, smooth=True)]))
  page.document(path, title, [], sections, command, facts, config)
