import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from torch import distributed

from erasure_lightning.callbacks.heartbeat import Heartbeat, _reason
from erasure_lightning.errors import ErasureError

FORK = multiprocessing.get_context("fork")


def trainer(rank):
    launcher = SimpleNamespace(procs=[])
    strategy = SimpleNamespace(launcher=launcher)
    ranks = {"world_size": 2, "global_rank": rank, "local_rank": rank, "is_global_zero": not rank}
    return SimpleNamespace(**ranks, global_step=12, strategy=strategy)


def be(rank, folder, port, what):
    """A rank that does something wrong, or waits for the other."""
    sys.stderr = (folder / f"{rank}.txt").open("w", buffering=1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with Heartbeat(timeout=2.5).watching(trainer(rank)):
            distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=100))
            distributed.barrier()
            if rank == 1:
                time.sleep(1.5)  # so that its heart has beaten
                what()
            distributed.barrier()
    except ErasureError:
        os._exit(2)
    os._exit(0)


def hang():
    time.sleep(100)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def fail():
    raise ErasureError("The disk is full.")


def ended(tmp_path, what):
    """What two ranks said, and how they ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [FORK.Process(target=be, args=(rank, tmp_path, port, what)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    ranks[0].join(30)
    assert ranks[0].exitcode is not None, "it waits for ever"
    if what is stop:
        ranks[1].kill()
    ranks[1].join(30)
    said = "".join((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    return [line for line in said.splitlines() if line.startswith("erasure")], [rank.exitcode for rank in ranks]


@pytest.mark.parametrize(
    ("what", "words", "codes"),
    [
        (hang, "since step 12: rank 1 may be stuck (rank 0 (", [1, 1]),
        (die, "is gone since step 12: it was killed, or it crashed.", [1, -signal.SIGKILL]),
        (stop, "has said nothing for", [1, -signal.SIGKILL]),
        (fail, "Rank 1: The disk is full.", [2, 2]),
    ],
)
def test_the_others_end_and_name_it(tmp_path, what, words, codes):
    (line,), found = ended(tmp_path, what)
    assert words in line
    assert "ank 1" in line
    assert found == codes


def test_without_trouble_nothing_is_said(tmp_path):
    assert ended(tmp_path, lambda: None) == ([], [0, 0])


def test_a_slow_rank_is_left_in_peace(tmp_path):
    """The control: as long as batches are finished, the others wait."""

    def work():
        (heart,) = (h for h in HEARTS if h._trainer.global_rank == 1)
        for _ in range(8):
            time.sleep(0.5)
            heart.on_train_batch_end()

    assert ended(tmp_path, work) == ([], [0, 0])


HEARTS = []


@pytest.fixture(autouse=True)
def hearts(monkeypatch):
    monkeypatch.delenv("ERASURE_LAUNCHER", raising=False)
    made = Heartbeat.__init__
    monkeypatch.setattr(Heartbeat, "__init__", lambda self, **given: (HEARTS.append(self), made(self, **given))[1])
    yield
    HEARTS.clear()


def test_a_rank_whose_starter_is_gone_before_it_looks_does_not_wait(tmp_path):
    ready = FORK.Event()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def first():
        os.environ["ERASURE_LAUNCHER"] = str(os.getpid())
        second = os.fork()
        if second == 0:
            ready.wait(10)
            be(1, tmp_path, port, hang)
        (tmp_path / "pid").write_text(str(second))

    starter = FORK.Process(target=first)
    starter.start()
    starter.join()
    ready.set()
    until, told = time.monotonic() + 20, tmp_path / "1.txt"
    while not (told.exists() and told.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    assert told.read_text().strip() == "erasure: error: The process that started rank 1 is gone."


def test_one_rank_is_not_watched():
    heart = Heartbeat(timeout=1)
    with heart.watching(SimpleNamespace(world_size=1)):
        assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


def test_reasons():
    assert _reason(ErasureError("No.")) == ("No.", 2)
    assert _reason(ValueError("odd")) == ("ValueError: odd", 1)


def test_a_timeout_of_nothing_is_refused():
    with pytest.raises(ErasureError, match="--hang_timeout above 0 seconds; found 0"):
        Heartbeat(timeout=0)
