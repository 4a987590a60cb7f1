"""Errors that a user of the package meets."""


class InputError(ValueError):
    """An input that cannot be used.

    The message names the file or argument, what was found there, and the way out. The command line prints
    it as one line and exits with status 2.
    """


class InputWarning(UserWarning):
    """An input that can be used, with a limit that the user should know."""
