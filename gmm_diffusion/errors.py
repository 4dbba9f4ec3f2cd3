"""The one exception that reaches the user."""


class UserError(ValueError):
  """Bad input. The message is one line: the value, the valid ones, what to do."""
