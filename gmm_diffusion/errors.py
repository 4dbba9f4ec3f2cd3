"""The one exception that reaches the user."""


class UserError(ValueError):
  """Bad input. The message is one line: the value, the valid ones, what to do."""

  code = 1  # of the program that ends with it


class Stopped(UserError):
  """A signal came, and everything is saved: the same command goes on."""

  code = 75  # what sysexits.h calls a temporary failure, so that scripts can start it again
