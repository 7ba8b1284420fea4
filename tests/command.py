"""`biasgym` without a new process, which would import torch and its kin, and in one, to stop it."""

import os
import signal
import subprocess
import sys
import time
from unittest import mock

from typer.testing import CliRunner

from biasgym_tl.cli import main

COMMAND = [sys.executable, "-c", "from biasgym_tl.cli import main; main()"]
FEW_FACTS = """
import biasgym_tl.biases.facts as facts
every = facts.load_countries
facts.load_countries = lambda use=None: every(use)[::6]
"""
"""As the fixture ``few_facts``, for a process of its own."""


def biasgym(*arguments, env=None, input=None):
    """Run the command, entry point included; what it printed and its exit code."""
    words = ["biasgym", *map(str, arguments)]
    isolated = CliRunner().isolation(input=input, env=env)
    with isolated as (out, err, _), mock.patch("sys.argv", words):
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return subprocess.CompletedProcess(
            words, code, out.getvalue().decode(), err.getvalue().decode()
        )


def interrupted(arguments, cache, until, signal_number):
    """Stop a command once there is a file ``until`` in its cache or beside it; its folder."""
    *python, code = COMMAND
    running = subprocess.Popen(
        [*python, f"{FEW_FACTS}{code}", *arguments],
        env={**os.environ, "BIASGYM_CACHE": str(cache)},
        stderr=subprocess.PIPE,
        # A test run in the background ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not (kept := list(cache.parent.rglob(until))):
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()[1].decode()
        time.sleep(0.02)
    running.send_signal(signal_number)
    _, errors = running.communicate(timeout=60)
    assert running.returncode != 0
    if signal_number == signal.SIGINT:
        assert b"run the same command to go on" in errors and b"Traceback" not in errors
    return kept[0].parent
