"""Processes of the command line: forked from one that has imported torch already, or `cold`, a new Python.

A fork (of `multiprocessing`'s forkserver) costs a tenth of a start of Python. What is imported beforehand is
what verbs stand on, short of gradio: the studio sets its environment before it imports that.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from collectionlora.command_line.verbs import main

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "collectionlora.backbones.nano",
        "collectionlora.backbones.qwen_image_edit",
        "collectionlora.command_line.verbs",
        "collectionlora.effectbench.running",
        "collectionlora.runs.trainer",
        "collectionlora.studio.pictures",
        *("fastapi", "gradio_client", "pandas", "sklearn.datasets", "uvicorn"),
    ]
)


def live(run, arguments, told, environment):
    """The whole life of a forked process; what it says is in a file."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    descriptor = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["collectionlora", *arguments]
    run()


class Life:
    """One process that runs a verb, or in a fork another function, `run`."""

    def __init__(self, arguments, told: Path, cold=False, run=main, environment=None):
        self.told, self.cold = told, cold
        arguments, environment = [str(argument) for argument in arguments], environment or {}
        if cold:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "collectionlora", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=told.open("w"),
                env={**os.environ, **environment},
            )
        else:
            self.process = FORKS.Process(target=live, args=(run, arguments, str(told), environment))
            self.process.start()

    @property
    def code(self):
        """Its exit code, None while it lives."""
        return self.process.poll() if self.cold else self.process.exitcode

    def wait(self, seconds, until=lambda: False):
        """Until it ends, the seconds are over or something is so; its exit code, None if it lives."""
        latest = time.monotonic() + seconds
        while self.code is None and time.monotonic() < latest and not until():
            time.sleep(0.005)
        return self.code

    def kill(self):
        """SIGKILL; returns when it is gone."""
        self.process.kill()
        self.wait(30)

    def stop(self):
        """Ctrl-C; returns its exit code."""
        os.kill(self.process.pid, signal.SIGINT)
        return self.wait(30)


def begin_two(arguments, folder, run=main, hosts=1):
    """Two processes with the environment that torchrun gives, on one host or as if on two.

    Args:
        arguments: of both, or of two hosts a list for each.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": str(2 // hosts),
    }
    each = [arguments, arguments] if hosts == 1 else arguments
    lives = []
    for rank, own in enumerate(each):
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank if hosts == 1 else 0)}
        lives.append(Life(own, folder / f"told-{rank}", run=run, environment=environment))
    return lives


def launch_two(arguments, folder, run=main, hosts=1):
    """The same to its end; returns their exit codes and what each said."""
    lives = begin_two(arguments, folder, run, hosts)
    codes = [life.wait(400) for life in lives]
    return codes, [life.told.read_text() for life in lives]
