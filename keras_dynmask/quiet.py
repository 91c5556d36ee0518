"""A quiet start for the command line."""

import contextlib
import os
import sys


@contextlib.contextmanager
def quiet_start():
    """Keeps TensorFlow's greetings off the terminal while it is imported.

    No setting does: it writes them before it reads any. Only where the program is our
    own command; a library leaves the standard error alone.
    """
    program = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    if program not in ("keras-dynmask", "-m"):  # "-m": python -m keras_dynmask
        yield
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # for what it says later
    if sys.stderr is None:  # closed: nothing to keep quiet
        yield
        return
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
