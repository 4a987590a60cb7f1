"""Errors that a user of the package meets."""

LONGEST, HEAD = 1000, 700  # characters of a message; more is cut out of its middle


def printable(text: object) -> str:
    """Escape what does not print, such as line breaks and the control sequences of a terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in str(text)
    )


def one_message(message: str) -> str:
    """Make a message one line, however hostile the words in it, and not too long."""
    line = printable(message)
    return line if len(line) <= LONGEST else f"{line[:HEAD]} ... {line[HEAD - LONGEST :]}"


class InputError(ValueError):
    """An input that cannot be used.

    The message names the file or argument, what was found there, and the way out. The command line prints
    it as one line and exits with status 2.
    """

    def __init__(self, message: str = ""):
        super().__init__(one_message(message))


class InputWarning(UserWarning):
    """An input that can be used, with a limit that the user should know."""

    def __init__(self, message: str = ""):
        super().__init__(one_message(message))
