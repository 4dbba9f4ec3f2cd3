"""What mkdocs adds to the pages of this folder: the results, all settings, and the API from the
docstrings."""

import pathlib
import typing

from mkdocs.structure.files import File

from gmm_diffusion import options, specs

ROOT = pathlib.Path(__file__).parent.parent
BESIDE = ('CONTRIBUTING.md', 'CHANGELOG.md')
RESULTS = 'experiments/results/'


def on_files(files, config):
  """Adds what lies outside of docs/, and a page for each part of the package."""
  for name in BESIDE:
    files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
  for path in sorted((ROOT / RESULTS).iterdir()):
    files.append(File.generated(config, 'results/' + path.name, abs_src_path=str(path)))
  parts = {'index': []}
  for path in sorted((ROOT / 'gmm_diffusion').rglob('*.py')):
    words = path.relative_to(ROOT).with_suffix('').parts
    part = words[1] if len(words) > 2 else 'index'
    if path.read_text(encoding='utf-8').strip():
      parts.setdefault(part, []).append('.'.join(words).removesuffix('.__init__'))
  for part, modules in parts.items():
    title = 'gmm_diffusion' if part == 'index' else f'gmm_diffusion.{part}'
    text = f'# {title}\n\n' + '\n\n'.join(f'::: {module}' for module in modules) + '\n'
    files.append(File.generated(config, f'api/{part}.md', content=text))
  files.append(File.generated(config, 'settings.md', content=settings()))
  return files


def settings():
  """The table of all settings."""
  rows = [
    '# All settings',
    '',
    '| key | type | default | what it is | valid |',
    '|---|---|---|---|---|',
  ]
  for key, kind, field in options.leaves(specs.Spec):
    name = str(kind) if typing.get_origin(kind) else kind.__name__
    valid = field.metadata['valid']
    words = valid if isinstance(valid, str) else ', '.join(map(str, valid))
    default = "''" if field.default == '' else field.default
    rows.append(
      f'| `{key}` | {name} | `{default}` | {field.metadata["help"]} | {words and f"`{words}`"} |'
    )
  return '\n'.join(rows) + '\n'


def on_page_markdown(markdown, **_):
  """Links to what lies outside of docs/ follow it to where it was added."""
  markdown = markdown.replace(f'](../{RESULTS}', '](results/')
  for name in BESIDE:
    markdown = markdown.replace(f'](../{name}', f']({name}')
  markdown = markdown.replace('](../../docs/', '](../')  # of the list of results
  return markdown.replace('](docs/', '](').replace(f']({RESULTS}', '](results/')
