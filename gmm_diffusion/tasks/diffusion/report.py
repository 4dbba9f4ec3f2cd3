"""The page of --mode=evaluate."""

from collections.abc import Sequence
from typing import Any

from gmm_diffusion.engine import sample_sets
from gmm_diffusion.metrics.estimates import difference
from gmm_diffusion.reports import page
from gmm_diffusion.tasks.diffusion import verdict as verdict_lib
from gmm_diffusion.tasks.diffusion.verdict import Row, Verdict, control_of, judge, stands_out

MOMENTS = (
  'What each step does to q(x_s | x_0), whose mean should be a_s x_0 and whose covariance b_s² I. '
  'Residuals: length of the mean offset, and ‖covariance error‖ / √D; '
  'added var.: per coordinate.'
)
HOW = (
  'Samplers start from the same noise and are compared sample by sample. A difference counts as '
  'shown where it is outside its 95 % interval, widened for the number of comparisons.'
)


def _table(rows: Sequence[Row], lower: dict[str, bool], verdict: Verdict | None) -> page.Html:
  rows = [row for row in rows if row.metrics]
  metrics = [name for name in lower if any(name in row.metrics for row in rows)]
  with_controls = any(row.control for row in rows)
  head = ['sampler', 'evaluations'] if verdict else ['images']
  head += [f'{name} {"↓" if lower[name] else "↑"}' for name in metrics]
  head += [f'{verdict.metric} minus its control'] * with_controls if verdict else []
  body = []
  for row in rows:
    name = row.names[0] + ' (control)' * (row.kind == 'control')
    cells: list[Any] = [page.lines([name, *(f'= {other}' for other in row.names[1:])])]
    cells += [row.nfe or ''] if verdict else []
    cells += [row.metrics.get(name, '') for name in metrics]
    if verdict and with_controls:
      control = control_of(row, rows) if row.control else None
      values = control and (row.metrics[verdict.metric], control.metrics[verdict.metric])
      cells.append(difference(*values) if values else '')
    body.append(cells)
  best = verdict.best if verdict and stands_out(verdict, rows) else None
  kind = lambda row: 'best' if row is best else '' if row.kind == 'sampler' else 'quiet'
  return page.table(head, body, [kind(row) for row in rows])


def _pictures(rows: Sequence[Row], verdict: Verdict | None, vectors: bool) -> list[page.Html]:
  """Strips of the rows that the verdict is about; the others folded."""
  together = lambda some: (
    page.row([page.figure(row.strip, row.names[0], smooth=True) for row in some])
    if vectors
    else page.Html(''.join(page.strip(row.names[0], row.strip) for row in some))
  )
  if not verdict:
    return [together(rows)]
  drawn = [row for row in rows if row.kind != 'data']
  value = lambda row: row.metrics[verdict.metric].value
  mixtures = [row for row in drawn if row.control]
  mixture = min(mixtures, key=lambda row: abs(value(row) - value(verdict.first)), default=None)
  wanted = [row for row in rows if row.kind == 'data']
  for row in (drawn[0], verdict.first, mixture, mixture and control_of(mixture, rows)):
    if row and not any(row is other for other in wanted):
      wanted.append(row)
  rest = [row for row in rows if not any(row is other for other in wanted)]
  return [together(wanted)] + [page.folded(f'{len(rest)} more', together(rest))] * bool(rest)


def _of_images(row: Row) -> str:
  values = [f'{verdict_lib.called(name)} {value}' for name, value in row.metrics.items()]
  return f'{row.name}: {", ".join(values)}.'


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
  more: Sequence[page.Section] = (),
  vectors: bool = False,
) -> list[str]:
  """Writes the page; returns its verdict.

  Args:
    path, title, command, facts, config: as in page.document.
    rows: one per kernel, in order; those that were drawn are judged.
    lower: metric -> whether lower is better; its order is that of the columns.
    curve: PNG of the training curve, if there is one.
    notes: sentences below the table.
    more: sections about the model, behind the pictures.
    vectors: whether the pictures are plots of points.
  """
  drawn = any(row.nfe for row in rows)
  verdict = judge(rows, lower) if drawn else None
  words = verdict.words if verdict else [_of_images(rows[0])]
  sections: list[page.Section] = [
    ('Metrics', [_table(rows, lower, verdict), *([HOW] * drawn), *notes]),
    (
      'The same noise, side by side' if drawn else 'The first images',
      _pictures(rows, verdict, vectors),
    ),
  ]
  sections += more
  mixtures = [row for row in rows if row.report]
  if mixtures:
    text = sample_sets.format_report
    folded = [page.folded(row.name, text(row.report), shown=row is mixtures[0]) for row in mixtures]
    sections.append(('What the mixtures do to the moments', [MOMENTS, *folded]))
  if curve:
    sections.append(('Training', [page.figure(curve, smooth=True)]))
  page.document(path, title, words, sections, command, facts, config)
  return words
