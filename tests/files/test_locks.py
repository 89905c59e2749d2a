import errno
import fcntl
import os
import signal
import subprocess
import time
from contextlib import suppress

import pytest

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.locks import RUNNING_FILE, FolderLockedError, lock_folder
from erasure_lightning.files.writing import write_atomically


@pytest.fixture
def worker(tmp_path):
    """Another process that works in ``run``, until it is killed."""
    child = os.fork()
    if child == 0:
        with lock_folder(tmp_path / "run"):
            (tmp_path / "begun").touch()
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    yield child
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_second_is_told_who_works_there(tmp_path, worker):
    with pytest.raises(
        ErasureError, match=rf"run is being written to by process {worker} on .+, since 20.+ Wait"
    ):
        lock_folder(tmp_path / "run").__enter__()


def test_a_kill_leaves_no_lock_behind(tmp_path, worker):
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    with lock_folder(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / RUNNING_FILE).read_text()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ErasureError, match=rf"can write into; found {folder} \(.+\). Choose"):
            lock_folder(folder).__enter__()

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(ErasureError, match=r"found .*run \(Permission denied\)"):
        lock_folder(tmp_path / "run").__enter__()


def test_nothing_is_left_of_it(tmp_path):
    with lock_folder(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()
    (tmp_path / "run").mkdir()
    with lock_folder(tmp_path / "run" / "attacks" / "p4d"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not any((tmp_path / "run").iterdir())
    with lock_folder(tmp_path / "full"):
        (tmp_path / "full" / "edit").touch()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["edit"]


def killed_while_saving(path):
    child = os.fork()
    if child == 0:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        write_atomically(path, b"weights")
        os._exit(0)
    os.waitpid(child, 0)


def test_what_a_kill_left_half_written_is_removed_and_nothing_else(tmp_path):
    run = tmp_path / "run"
    expected = {
        run / ".hidden",
        run / ".v1.2b",
        run / "log.17",
        run / "checkpoints",
        run / "checkpoints" / "last.ckpt",
        run / "samples",
        run / "samples" / "000-after.png",
        run / "edited",
        run / "edited" / "0.png",
        run / "original",
        run / "original" / "0.png",
    }
    for path in expected - {path.parent for path in expected}:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    files = ("edit.safetensors", "checkpoints/last.ckpt", "samples/000-after.png")
    for name in (*files, "edited/0.png", "original/0.png"):
        killed_while_saving(run / name)
    assert len(set(run.rglob("*")) - expected) == 5
    with lock_folder(run):
        assert set(run.rglob("*")) == expected | {run / RUNNING_FILE}


def test_what_another_is_writing_is_left_alone(tmp_path, worker):
    (tmp_path / "run" / f".config.yaml.{worker}").touch()
    with pytest.raises(ErasureError, match="is being written to"):
        lock_folder(tmp_path / "run").__enter__()
    assert (tmp_path / "run" / f".config.yaml.{worker}").exists()


def test_a_child_that_inherits_the_lock_holds_it(tmp_path):
    """As the command of a benchmark's cell does when the benchmark is killed."""
    child = os.fork()
    if child == 0:
        with lock_folder(tmp_path / "run", ".claim") as lock:
            sleeper = subprocess.Popen(["sleep", "60"], pass_fds=lock)
            (tmp_path / "pid").write_text(str(sleeper.pid))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with pytest.raises(FolderLockedError), lock_folder(tmp_path / "run", ".claim"):
        pass
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    until = time.monotonic() + 10
    while True:
        with suppress(FolderLockedError), lock_folder(tmp_path / "run", ".claim"):
            break
        assert time.monotonic() < until


def test_an_owner_that_is_just_leaving_is_waited_for(tmp_path, monkeypatch):
    """It may remove the lock file between our opening and our locking."""
    path, flock = tmp_path / "run" / RUNNING_FILE, fcntl.flock

    def slow(*arguments):
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", slow)
    with lock_folder(tmp_path / "run") as (descriptor,):
        assert os.path.samestat(os.fstat(descriptor), path.stat())


def test_where_there_are_no_locks_one_is_warned_and_not_stopped(tmp_path, monkeypatch, capsys):
    def none(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with lock_folder(tmp_path / "run"):
        assert f"the file system of {tmp_path / 'run'} has no locks" in capsys.readouterr().err
