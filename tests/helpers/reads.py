"""Which settings the package reads, by the types of its expressions.

`spec.train.steps` is a read of Train.steps where `spec` is known to be a Spec: by the annotation of
a parameter or of a field, by the return annotation of a function, or by an assignment of such an
expression. A name alone is never enough.
"""

import ast


class Package:
  """The parsed modules {dotted name: path} of a package, their classes and functions; known: a
  package whose classes they use, and whose own reads do not count."""

  def __init__(self, modules, known=None):
    self.trees, self.returns = {}, {}
    self.names, self.fields = (dict(known.names), dict(known.fields)) if known else ({}, {})
    for module, path in modules.items():
      with open(path, encoding='utf-8') as file:
        self.trees[module] = ast.parse(file.read())
    for module, tree in self.trees.items():
      self.names[module] = names = {}
      for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
          for alias in node.names:
            names[alias.asname or alias.name] = f'{node.module}.{alias.name}'
      for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
          names[node.name] = f'{module}.{node.name}'
    for module, tree in self.trees.items():
      for node in tree.body:
        if isinstance(node, ast.ClassDef):
          self.fields[f'{module}.{node.name}'] = {
            entry.target.id: self.type_of(module, entry.annotation)
            for entry in node.body
            if isinstance(entry, ast.AnnAssign)
          }
          for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == '__init__':
              self.fields[f'{module}.{node.name}'] |= dict(self.assigned(module, method))
        elif isinstance(node, ast.FunctionDef):
          self.returns[f'{module}.{node.name}'] = self.type_of(module, node.returns)

  def assigned(self, module, method):
    """(field, class) of what __init__ keeps of its arguments."""
    kinds = {one.arg: self.type_of(module, one.annotation) for one in method.args.args}
    for node in ast.walk(method):
      if isinstance(node, ast.Assign):
        pair = lambda one: one.elts if isinstance(one, ast.Tuple) else [one]
        for target, value in zip(pair(node.targets[0]), pair(node.value)):
          if isinstance(target, ast.Attribute) and isinstance(value, ast.Name):
            yield target.attr, kinds.get(value.id)

  def name_of(self, module, node):
    """The full name that a name or a dotted name stands for."""
    if isinstance(node, ast.Name):
      return self.names[module].get(node.id)
    if isinstance(node, ast.Attribute):
      whole = self.name_of(module, node.value)
      again = self.names.get(whole, {}).get(node.attr)  # a module may hand on what it imports
      return again or (whole and f'{whole}.{node.attr}')
    return None

  def type_of(self, module, annotation):
    """The class of an annotation; that of `X | None` is X."""
    if isinstance(annotation, ast.BinOp):
      return self.type_of(module, annotation.left)
    return annotation and self.name_of(module, annotation)

  def reads(self):
    """{(full name of a class, field)} of all reads."""
    found = set()
    for module, tree in self.trees.items():
      _Reader(self, module, found).run(tree, {})
    return found


class _Reader:
  def __init__(self, package, module, found):
    self.package, self.module, self.found = package, module, found

  def run(self, node, scope):
    """Walks a node in order; scope is {name: class}."""
    if isinstance(node, (ast.FunctionDef, ast.Lambda)):
      scope = dict(scope)
      for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
        if one.arg != 'self':
          scope[one.arg] = self.package.type_of(self.module, one.annotation)
    if isinstance(node, ast.ClassDef):
      for method in node.body:
        if isinstance(method, ast.FunctionDef):
          self.run(method, scope | {'self': f'{self.module}.{node.name}'})
      return
    if isinstance(node, ast.Assign):
      self.run(node.value, scope)
      for target in node.targets:
        self.bind(target, node.value, scope)
      return
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
      self.found.add((self.kind(node.value, scope), node.attr))
    for child in ast.iter_child_nodes(node):
      self.run(child, scope)

  def bind(self, target, value, scope):
    if isinstance(target, ast.Name):
      scope[target.id] = self.kind(value, scope)
    elif isinstance(target, ast.Tuple):
      values = value.elts if isinstance(value, ast.Tuple) else [ast.Constant(None)] * 99
      for one, part in zip(target.elts, values):
        self.bind(one, part, scope)

  def kind(self, node, scope):
    """The class of an expression, or None."""
    if isinstance(node, ast.Name):
      return scope.get(node.id)
    if isinstance(node, ast.Attribute):
      return self.package.fields.get(self.kind(node.value, scope), {}).get(node.attr)
    if isinstance(node, ast.Call):
      name = self.package.name_of(self.module, node.func)
      if isinstance(node.func, ast.Attribute) and node.func.attr in ('replace', '_replace'):
        return self.kind(node.args[0] if node.args else node.func.value, scope)
      return name if name in self.package.fields else self.package.returns.get(name)
    return None
