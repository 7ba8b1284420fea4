"""`biasgym` without a new process, which would import torch and its kin each time."""

import subprocess
from unittest import mock

from typer.testing import CliRunner

from biasgym_tl.cli import main


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
