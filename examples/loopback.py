"""Several processes on this machine, for the examples that train in more than one."""

import os
import socket
import subprocess
import sys
import time


def free_addresses(count):
    """So many addresses of this machine at which nobody listens yet."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


def run_here(environments):
    """Runs the command that this process is once in each environment.

    Returns the exit status: 0, or that of the first to fail, with which the others end, too:
    they would wait for it for ever.
    """
    command = [sys.executable, *sys.orig_argv[1:]]
    running = []
    try:
        for environment in environments:
            running.append(subprocess.Popen(command, env=os.environ | environment))
        while True:
            found = [each.poll() for each in running]
            failed = [status for status in found if status]
            if failed or None not in found:
                return failed[0] if failed else 0
            time.sleep(0.1)
    finally:
        for each in running:
            each.kill()
            each.wait()
