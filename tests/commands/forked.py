"""Starts command lines as processes of their own without importing torch each time: one that has it forks for each.

Reads a JSON list of arguments on every line of standard input, and answers with a JSON object on a line of its own.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import tempfile

from qubo_compress.cli import COMMANDS, main


def told(arguments: list[str]) -> dict[str, object]:
    """Exit code, output and errors of one command line."""
    gc.freeze()  # so that children share the parent's memory
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            code = main(arguments)
            sys.stderr.flush()
            os._exit(code)  # without taking down what the parent imported, which takes longer than most commands
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
        return {"code": code, "out": texts[0], "err": texts[1]}


for command in COMMANDS:
    importlib.import_module(f"qubo_compress.commands.{command.name}")  # once, for all processes

if __name__ == "__main__":
    answers = os.dup(1)
    for line in sys.stdin:
        os.write(answers, json.dumps(told(json.loads(line))).encode() + b"\n")
