"""Programs whose processes are forked from this one, which has imported everything already.

A process that starts anew takes many seconds to import torch, diffusers and Lightning. What a
program here runs in is a process of its own all the same: with its own arguments, folder,
environment and files, and with signals and an exit code.
"""

import atexit
import json
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: Hands its arguments, folder, environment and files to the server, and ends with the fork's code.
_CLIENT = """#!{python} -IS
import json, os, signal, socket, sys

server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
content = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), os.getppid()]).encode()
socket.send_fds(server, [len(content).to_bytes(8, "big")], [0, 1, 2])
server.sendall(content)
answers = server.makefile()
fork = int(answers.readline())
for number in {signals!r}:
    signal.signal(number, lambda number, _: os.kill(fork, number))
sys.exit(int(answers.readline()))
"""


@contextmanager
def forking(run, path):
    """Write a program to a path; each of its processes is a fork of this one that calls a function.

    Args:
        run: Called with the arguments of the program; returns its exit code.
        path: Where the program is written, an executable file.
    """
    path = Path(path)
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        address = str(Path(folder, "socket"))
        listener.bind(address)
        listener.listen()
        signals = [int(number) for number in _SIGNALS]
        path.write_text(_CLIENT.format(python=sys.executable, address=address, signals=signals))
        path.chmod(0o755)
        ended, alive = os.pipe()
        server = os.fork()
        if server == 0:
            os.close(alive)
            _serve(listener, ended, run, path)
        os.close(ended)
        try:
            yield path
        finally:
            os.close(alive)
            os.waitpid(server, 0)


def _serve(listener, ended, run, path):
    """Fork for each client, until the process with the other end of the pipe is gone."""
    atexit._clear()  # what that process does at its end
    for number in (signal.SIGCHLD, *_SIGNALS):  # a Ctrl-C is meant for the forks
        signal.signal(number, signal.SIG_IGN)
    while listener in select.select([listener, ended], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(ended)
            _answer(connection, run, path)
        connection.close()
    os._exit(0)


def _answer(connection, run, path):
    """Fork, and send the process's number at its beginning and its exit code at its end."""
    size, files, *_ = socket.recv_fds(connection, 8, 3)
    content = connection.makefile("rb").read(int.from_bytes(size, "big"))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    fork = os.fork()
    if fork == 0:
        connection.close()
        _become(files, *json.loads(content), run, path)
    for file in files:
        os.close(file)
    with suppress(BrokenPipeError):  # the client was killed
        connection.sendall(f"{fork}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
        connection.sendall(f"{code}\n".encode())
    os._exit(0)


def _become(files, argv, folder, environment, parent, run, path):
    """End as the program would in a process that is started anew."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.getppid = lambda: parent  # the watchdog asks whether a rank's launcher is there
    sys.argv = [str(path), *argv]
    sys.modules["__main__"].__spec__ = None  # Lightning starts further ranks as it was started
    try:
        code = run(argv)
    except SystemExit as exited:
        code = exited.code
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
