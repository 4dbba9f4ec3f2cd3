"""What tuning reached: the numbers of the report split, in words, tables and pictures."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gmm_diffusion import metrics
from gmm_diffusion.metrics.estimates import Estimate, of_mean, p_of_mean
from gmm_diffusion.reports import page, plots
from gmm_diffusion.samplers import linear, tuned
from gmm_diffusion.tasks.diffusion.verdict import called
from gmm_diffusion.tune.tiers import Found, hash_of

HOW = (
  'Tuning, selection and this report have noise of their own; the report alone uses the judge, its '
  'features and its reference. A proposal is kept where its gain on the selection split excludes '
  'zero and no part of the score is shown to be worse. Values of the report are means over seeds '
  'with 95 % t intervals, differences are paired by seed, and p values are corrected for all '
  'comparisons of this table [Holm 1979]. The race ranks by its own score, so each judge also '
  'ranks the finalists, on noise that the report does not have, and its first is in the table. '
  'The words about finalists go by 95 % intervals that are not corrected.'
)
LIMITS = (
  "Rows of the tier 'limit' are no samplers for so many calls: as many training items as there are "
  'samples, none of them in the reference, and the model in very many steps.'
)
OPTIMISM = (
  'The tuning score of a winner is too good, since it was chosen by those samples; the selection '
  'score of the same table shows by how much.'
)
STATES = 'What the states keep of mean and variance'
KEPT = (
  f'{STATES}: where the denoiser knows x_0, the state after each call should be a draw of '
  'q(x | x_0). The table has the differences of its factor of x_0 and of its variance; of several '
  'bands the largest. '
  'A tuned sampler need not keep this, since the denoiser does not know x_0.'
)


class Judged(NamedTuple):
  """what: a sampler in words; key: hash of its table; values: of the metric, one for each seed;
  second: the same of the second judge, if there is one; first_by: the judges that rank it first
  among the untuned finalists of the race."""

  what: str
  key: str
  values: list[float]
  second: list[float] | None = None
  first_by: tuple[str, ...] = ()


def holm(p: Sequence[float]) -> list[float]:
  """Holm's corrected p values."""
  order, out, most = np.argsort(p), np.zeros(len(p)), 0.0
  for rank, i in enumerate(order):
    most = max(most, min(1.0, (len(p) - rank) * p[i]))
    out[i] = most
  return out.tolist()


def report(judged: Sequence[Judged], found: Found, about: dict[str, Any]) -> dict[str, Any]:
  """The report of a file: rows with what each sampler reached, and its difference to the winner of
  the race; of an untuned one that a judge ranks first, also that of the tuned one to it."""
  fixed = next(one for one in judged if one.key == hash_of(found.fixed.table))
  best = next(one for one in judged if one.key == hash_of(found.best.table))
  rows, p = [], []
  for one in judged:
    value = of_mean(one.values)
    row = {
      'what': one.what, 'mean': value.value, 'interval': [value.low, value.high],
      'values': one.values, 'fixed': one is fixed, 'best': one is best,
    }  # fmt: skip
    if one is not fixed:
      away = np.subtract(one.values, fixed.values)
      difference = of_mean(away)
      row['minus_fixed'] = difference.value
      row['minus_fixed_interval'] = [difference.low, difference.high]
      p.append(p_of_mean(away))
    if one.second:
      row['second'] = _by_second(one.second, fixed.second)
    if one.first_by:
      row['first_by'] = list(one.first_by)
      row['best_minus'] = _differences(best, one)
    rows.append(row)
  corrected = iter(holm(p))
  for row in rows:
    if not row['fixed']:
      row['p'] = next(corrected)
  return {**about, 'seeds': len(fixed.values), 'rows': rows}


def _differences(best, one):
  """[(mean, low, high)] of the tuned sampler minus another, by each judge."""
  pairs = [(best.values, one.values), *([(best.second, one.second)] if one.second else [])]
  away = [of_mean(np.subtract(*pair)) for pair in pairs]
  return [[it.value, it.low, it.high] for it in away]


def _by_second(values, fixed):
  """What the second judge says of a sampler, and of its difference to the winner of the race."""
  value, away = of_mean(values), of_mean(np.subtract(values, fixed))
  return {
    'mean': value.value, 'interval': [value.low, value.high], 'values': values,
    'minus_fixed': away.value, 'minus_fixed_interval': [away.low, away.high],
  }  # fmt: skip


def verdict(found: dict[str, Any]) -> str:
  """What a file found, in a sentence or two."""
  calls, rows = found['calls'], found['report']['rows']
  best = next(row for row in rows if row['best'])
  fixed = next(row for row in rows if row['fixed'])
  name = found['report']['metric']
  others = _other_opinions(found)
  if best is fixed:
    return (
      f'{calls} calls: nothing that was tuned is shown to beat the winner of the race, '
      f'{fixed["what"]}, with a '
      f'{called(name)} of {_estimate(fixed)}.{others}'
    )
  sure = best['p'] < 0.05
  lower = metrics.LOWER_IS_BETTER[name]
  better = (best['minus_fixed'] < 0) == lower
  word = ('better than' if better else 'worse than') if sure else 'not shown to differ from'
  return (
    f'{calls} calls: the result, {best["what"]}, has a {called(name)} of {_estimate(best)}, '
    f'{word} the winner of the race, {fixed["what"]}, with {_estimate(fixed)}.'
    f'{_second_opinion(best, fixed, found)}{others}'
  )


def _other_opinions(found):
  """What the judges say where they rank another of the finalists first than the race does."""
  out, about = '', found['report']
  names = [about['features'], *([about['second']] if 'second' in about else [])]
  for row in about['rows']:
    if row['fixed'] or row['best'] or 'first_by' not in row:
      continue
    words = []
    for k, name in enumerate(names):
      higher = k == 0 and not metrics.LOWER_IS_BETTER[about['metric']]
      _, low, high = row['best_minus'][k]
      worse, better = (high < 0, low > 0) if higher else (low > 0, high < 0)
      word = 'worse than' if worse else 'better than' if better else 'not shown to differ from'
      words.append(f'{word} {_estimate(row["second"] if k else row)} by {_kind(name)}')
    first = ' and '.join(map(_kind, row['first_by']))
    out += f' Of the finalists of the race, {row["what"]} is the first by {first}: '
    out += f'the result is {" and ".join(words)}.'
  return out


def _second_opinion(best, fixed, found):
  """What the second judge says of the tuned sampler, in a sentence."""
  if 'second' not in best:
    return ''
  low, high = best['second']['minus_fixed_interval']
  word = (
    'agrees that it is better'
    if high < 0
    else 'has it for worse'
    if low > 0
    else 'sees no difference'
  )
  return (
    f' A second judge, which no network taught ({found["report"]["second"]}), {word}: '
    f'{_estimate(best["second"])} against {_estimate(fixed["second"])}.'
  )


def _estimate(row):
  return str(Estimate(row['mean'], *row['interval']))


def _table(found):
  evidence = {line['what']: line for line in found['evidence']}
  name = found['report']['metric']
  arrow = '↓' if metrics.LOWER_IS_BETTER[name] else '↑'
  second = found['report'].get('second')
  head = ['tier: sampler', f'{name} {arrow}', 'minus winner of the race', 'p']
  head += [f'{second} ↓'] if second else []
  head += ['tuning score', 'selection score', 'gain', 'kept']
  body, kinds = [], []
  for row in found['report']['rows']:
    line = evidence.get(row['what'], {})
    gain = line.get('gain')
    gain = (
      ''
      if gain is None
      else str(Estimate(gain, gain - 1.96 * line['error'], gain + 1.96 * line['error']))
    )
    away = row.get('minus_fixed')
    body.append([
      _short(f'{line.get("tier") or _untuned(row)}: {row["what"]}'), _estimate(row),
      '' if away is None else str(Estimate(away, *row['minus_fixed_interval'])),
      f'{row["p"]:.2g}' if 'p' in row else '',
      *([_estimate(row['second'])] if second else []),
      *(f'{line[key]:.4f}' if key in line else '' for key in ('tuning', 'selection')),
      gain, {True: 'yes', False: 'no'}.get(line.get('kept'), ''),
    ])  # fmt: skip
    kinds.append('best' if row['best'] else '')
  for limit in found['report'].get('limits', ()):
    row = [f'limit: {limit["what"]}', _mean(limit['values']), *[''] * (len(head) - 2)]
    if 'second' in limit:
      row[head.index(f'{second} ↓')] = _mean(limit['second'])
    body.append(row)
    kinds.append('')
  return page.table(head, body, kinds)


def _untuned(row):
  """Why a sampler that no tier proposed is in the table."""
  if 'first_by' not in row:
    return 'config'
  return f'untuned, first by {" and ".join(map(_kind, row["first_by"]))}'


def _kind(name):
  """The kind of features, without what tells trained ones apart."""
  return name.partition('-')[0]


def _mean(values):
  return str(of_mean(values)) if len(values) > 1 else f'{values[0]:.3f}'


def _short(text, most=30):
  """A long name on several lines."""
  words, out = text.split(), ['']
  for word in words:
    if len(out[-1]) + len(word) > most:
      out.append('')
    out[-1] = f'{out[-1]} {word}'.strip()
  return page.lines(out)


def tables_of(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
  """The tables in a file with their names: one where nothing beat the winner of the race."""
  fixed, best = found['fixed']['table'], found['table']
  first = 'winner of the race', fixed
  return [first] if fixed == best else [first, ('tuned', best)]


def _pictures(found):
  """Times of the calls and coefficients, of the winner of the race and the tuned sampler."""
  tables = tables_of(found)
  figure, axes = plots.new(1, 1 + len(tables), (3.7 + 3.7 * len(tables), 3.2))
  for (name, table), style in zip(tables, ('o--', 's-'), strict=False):
    with np.errstate(divide='ignore'):
      level = 2 * np.log(np.array(table['time_a']) / np.array(table['time_b']))
    axes[0, 0].plot(range(1, len(level) + 1), np.maximum(level, -30), style, label=name)
  axes[0, 0].set(xlabel='call', ylabel='log-SNR when asked')
  axes[0, 0].legend(fontsize=8)
  axes[0, 0].grid(alpha=0.3)
  for ax, (name, table) in zip(axes[0, 1:], tables, strict=True):
    numbers = np.array(table['weights'])[..., 0]
    most = max(np.abs(numbers).max(), 1e-9)
    ax.imshow(numbers, cmap='RdBu', vmin=-most, vmax=most)
    for n in range(len(numbers)):
      for j in range(n + 1):
        number = numbers[n, j]
        if len(numbers) <= 10 and abs(number) >= 0.005:
          colour = 'white' if abs(number) > 0.6 * most else 'black'
          ax.text(j, n, f'{number:.2f}', ha='center', va='center', fontsize=6, color=colour)
    ticks = range(0, len(numbers), max(1, len(numbers) // 5))
    ax.set(xlabel='j', ylabel='n', xticks=ticks, yticks=ticks)
    ax.set_title(f'{name}: weight of prediction j in step n')
    ax.title.set_fontsize(9)
  return page.figure(plots.png(figure), smooth=True)


def _kept(found):
  """How far the states of both tables are from draws of q(y_n | x_0), as a table."""
  tables = tables_of(found)
  far = [linear.consistency(tuned.table_of(table)) for _, table in tables]
  most = lambda value: f'{value[np.argmax(np.abs(value))]:+.3f}'
  return page.table(
    ['after call', *(f'{name}, {part}' for name, _ in tables for part in ('mean', 'variance'))],
    [
      [
        str(lines[0]['call']),
        *(most(line[part]) for line in lines for part in ('mean', 'variance')),
      ]
      for lines in zip(*far, strict=True)
    ],
  )


def _curve(found):
  """Quality against calls."""
  figure, axes = plots.new(1, 1, (6, 3.4))
  calls = [one['calls'] for one in found]
  first, by = found[0]['report']['features'], lambda row: row.get('first_by', ())
  for name, pick in (
    ('DDIM, grid of the config', lambda rows: rows[0]),
    ('winner of the race', lambda rows: next(row for row in rows if row['fixed'])),
    ('untuned, first by the judge', lambda rows: next(row for row in rows if first in by(row))),
    ('tuned', lambda rows: next(row for row in rows if row['best'])),
  ):
    rows = [pick(one['report']['rows']) for one in found]
    mean = np.array([row['mean'] for row in rows])
    low, high = np.array([row['interval'] for row in rows]).T
    axes[0, 0].errorbar(calls, mean, [mean - low, high - mean], marker='o', capsize=3, label=name)
  for limit, style in zip(found[0]['report'].get('limits', ()), (':', '--', '-.'), strict=False):
    axes[0, 0].axhline(
      np.mean(limit['values']), color='0.5', linestyle=style, label=limit['what'], zorder=0
    )
  plots.over_calls(axes[0, 0], calls)
  axes[0, 0].set(ylabel=found[0]['report']['metric'], yscale='log')
  axes[0, 0].legend(fontsize=8)
  axes[0, 0].grid(alpha=0.3, which='both')
  return page.figure(plots.png(figure), smooth=True)


def write(
  path: str,
  title: str,
  command: str,
  config: dict[str, Any],
  found: Sequence[dict[str, Any]],
  strips: Sequence[tuple[str, bytes]] = (),
) -> list[str]:
  """Writes the page of some files; returns its verdict.

  Args:
    path, title, command, config: as in page.document.
    found: what is in the files, by calls; the limits drawn are those of the first.
    strips: (name, PNG) of samples with the same noise.
  """
  words = [verdict(one) for one in found]
  sections: list[page.Section] = []
  if len(found) > 1:
    sections.append(('Quality against calls', [_curve(found)]))
  for one in found:
    sections.append(
      (f'{one["calls"]} calls', [_table(one), _pictures(one), page.folded(STATES, _kept(one))])
    )
  if strips:
    sections.append(('The same noise, side by side', [page.strip(*strip) for strip in strips]))
  limits = any(one['report'].get('limits') for one in found)
  sections.append(('How to read this', [HOW, OPTIMISM, KEPT, *([LIMITS] * limits)]))
  about = {
    f'{one["calls"]} calls': f'{one["network_calls"]:,} network calls of one sample in '
    f'{one["seconds"]:.0f} s; reference: {one["reference"]}; judge: {one["report"]["features"]} on '
    f'{one["report"]["reference"]}, {one["report"]["seeds"]} seeds of {one["report"]["count"]}'
    for one in found
  }
  page.document(path, title, words, sections, command, about, config)
  return words
