"""Files that appear whole: written under a temporary name, then renamed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ivimbayes.io.text import one_line

UMASK = os.umask(0o077)  # it can only be read by setting it


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to `path` when the block ends without an error.

    Raises
    ------
    OSError
        Of `path`, where it cannot be written.
    """
    path, temporary = Path(path), None
    try:
        handle, name = tempfile.mkstemp(prefix=".part-", suffix=f"-{path.name[-100:]}", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~UMASK)
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or one_line(error), str(path)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
