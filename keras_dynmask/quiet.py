"""A quiet start for the command line."""

import contextlib
import os
import signal
import sys


@contextlib.contextmanager
def quiet_start():
    """Keeps TensorFlow's greetings off the terminal while it is imported.

    No setting does: it writes them before it reads any. And Ctrl-C just ends the program: as an
    exception it would be told at length, and in some of TensorFlow's modules be taken for an
    `ImportError`. Only where the program is our own command; a library leaves the standard
    error and the signals alone.
    """
    program = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    if program not in ("keras-dynmask", "-m"):  # "-m": python -m keras_dynmask
        yield
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # for what it says later
    with _interrupted_at_once(), _silence():
        yield


@contextlib.contextmanager
def _interrupted_at_once():
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, it may be
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _silence():
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
