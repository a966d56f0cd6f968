"""Commands in forks of this process, which has imported torch already: a new Python takes seconds to."""

import contextlib
import multiprocessing
import os
import signal

import torch


class Fork:
    """A function in a fork of this process, with the methods of a Popen."""

    def __init__(self, target, *arguments):
        self.process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
        self.process.start()
        self.pid, self.terminate, self.kill = self.process.pid, self.process.terminate, self.process.kill

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        return self.process.exitcode


def run_command(command, arguments, errors):
    """Run a command on one thread, in a session of its own, its stderr in a file; its exit status is the process's."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a worker of pytest ignores
    torch.set_num_threads(1)
    with open(errors, "w", buffering=1) as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(None):
        status = command(list(map(str, arguments)))
    os._exit(status)
