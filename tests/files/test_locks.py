import errno
import os
import signal
import time

import pytest

from erasure_lightning.errors import ErasureError
from erasure_lightning.files import locks
from erasure_lightning.files.locks import RUNNING_FILE, claim, working_in
from erasure_lightning.files.writing import write_atomically


@pytest.fixture
def worker(tmp_path):
    """Another process that works in ``run``, until it is killed."""
    child = os.fork()
    if child == 0:
        with working_in(tmp_path / "run"):
            (tmp_path / "begun").touch()
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    yield child
    if os.waitpid(child, os.WNOHANG) == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_second_is_told_who_works_there(tmp_path, worker):
    with pytest.raises(
        ErasureError, match=rf"run is being written to by process {worker} on .+, since 20.+ Wait"
    ):
        working_in(tmp_path / "run").__enter__()


def test_a_kill_leaves_no_lock_behind(tmp_path, worker):
    os.kill(worker, signal.SIGKILL)
    while not claims_free(tmp_path / "run"):
        time.sleep(0.01)
    with working_in(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / RUNNING_FILE).read_text()


def claims_free(folder):
    with claim(folder, RUNNING_FILE) as file:
        return file is not None


def test_nothing_is_left_of_it(tmp_path):
    with working_in(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()
    with working_in(tmp_path / "full"):
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
    kept = {
        run / ".hidden",
        run / ".v1.2b",
        run / "log.17",
        run / "checkpoints",
        run / "checkpoints" / "last.ckpt",
    }
    for path in kept - {run / "checkpoints"}:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("edit.safetensors", "checkpoints/last.ckpt"):
        killed_while_saving(run / name)
    assert len(set(run.rglob("*")) - kept) == 2
    with working_in(run):
        assert set(run.rglob("*")) == kept | {run / RUNNING_FILE}


def test_what_another_is_writing_is_left_alone(tmp_path, worker):
    (tmp_path / "run" / f".config.yaml.{worker}").touch()
    with pytest.raises(ErasureError, match="is being written to"):
        working_in(tmp_path / "run").__enter__()
    assert (tmp_path / "run" / f".config.yaml.{worker}").exists()


def test_a_file_that_its_owner_removes_meanwhile_is_made_anew(tmp_path, monkeypatch):
    path, flock = tmp_path / "c", locks.fcntl.flock

    def slow(*given):
        if path.exists():
            path.unlink()  # as its owner does when it leaves between our opening and our locking
            monkeypatch.setattr(locks.fcntl, "flock", flock)
        flock(*given)

    monkeypatch.setattr(locks.fcntl, "flock", slow)
    with claim(tmp_path, "c") as file:
        assert os.path.samestat(os.fstat(file), path.stat())


def test_where_there_are_no_locks_one_is_warned_and_not_stopped(tmp_path, monkeypatch, capsys):
    def none(*given):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with working_in(tmp_path / "run"):
        assert f"the file system of {tmp_path / 'run'} has no locks" in capsys.readouterr().err
