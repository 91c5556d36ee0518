"""Runs a function of the tests in a process of its own, on another backend."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parent


def on(backend, function, *arguments, without_tensorflow=False):
    """What a function of a test file gives there, through JSON; strings are its arguments.

    Skips where the backend is not installed.
    """
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    block = "sys.modules['tensorflow'] = None" if without_tensorflow else "pass"
    code = f"""
import json, sys
{block}
import {function.__module__} as tests
print(json.dumps(tests.{function.__name__}(*sys.argv[1:])))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
