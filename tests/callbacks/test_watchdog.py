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
from jsonargparse import Namespace
from torch import distributed
from trivial import TINY

from erasure_lightning.__main__ import main
from erasure_lightning.api.fit import run_callbacks
from erasure_lightning.callbacks import rank_status, watchdog
from erasure_lightning.callbacks.interrupt import LastCheckpoint
from erasure_lightning.callbacks.watchdog import Watchdog
from erasure_lightning.cli import folders
from erasure_lightning.cli.rank import first
from erasure_lightning.distributed.lightning_internals import take_launched
from erasure_lightning.errors import ErasureError

FORK = multiprocessing.get_context("fork")


def trainer(rank, size=2):
    launcher = SimpleNamespace(procs=[])
    strategy = SimpleNamespace(launcher=launcher)
    ranks = {
        "world_size": size,
        "global_rank": rank,
        "local_rank": rank,
        "is_global_zero": not rank,
    }
    return SimpleNamespace(**ranks, global_step=12, strategy=strategy)


def be(rank, folder, port, what, guilty=1, size=2):
    """A rank that does something wrong, or waits for the others."""
    sys.stderr = (folder / f"{rank}.txt").open("w", buffering=1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    heart = Watchdog(timeout=4.5)
    try:
        with heart.watching(trainer(rank, size)):
            distributed.init_process_group(
                "gloo", rank=rank, world_size=size, timeout=timedelta(seconds=100)
            )
            while len(heart._peers) < size:  # two that know nothing of each other both report
                time.sleep(0.1)
            distributed.barrier()
            if rank == guilty:
                time.sleep(1)  # so that its heart has beaten
                what()
            distributed.barrier()
    except ErasureError as error:
        os._exit(22 if getattr(error, "reported", False) else 2)
    os._exit(0)


def hang():
    time.sleep(100)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def fail():
    raise ErasureError("The disk is full.")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started(tmp_path, what, guilty=1, size=2):
    port = free_port()
    ranks = [
        FORK.Process(target=be, args=(rank, tmp_path, port, what, guilty, size))
        for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def ended(tmp_path, ranks, stopped=()):
    """What ranks said, and how they ended."""
    waiting = [process for rank, process in enumerate(ranks) if rank not in stopped]
    for process in waiting:
        process.join(30)
    late = [process for process in waiting if process.exitcode is None]
    for process in ranks:
        process.kill()
        process.join()
    assert not late, "it waits for ever"
    said = "".join((tmp_path / f"{rank}.txt").read_text() for rank in range(len(ranks)))
    return [line for line in said.splitlines() if line.startswith("erasure")], [
        rank.exitcode for rank in ranks
    ]


@pytest.mark.parametrize(
    ("what", "words", "codes"),
    [
        (hang, "since step 12: rank 1 may be stuck (rank 0 (", [1, 1]),
        (die, "is gone since step 12: it was killed, or it crashed.", [1, -signal.SIGKILL]),
        (stop, "has sent no heartbeat for", [1, -signal.SIGKILL]),
        (fail, "Rank 1: The disk is full.", [2, 22]),
    ],
)
def test_the_others_end_and_name_it(tmp_path, what, words, codes):
    (line,), found = ended(tmp_path, started(tmp_path, what), [1] if what is stop else [])
    assert words in line
    assert "ank 1" in line
    assert found == codes


def with_child(tmp_path, code):
    """A heart whose rank has started another, which ended so."""
    heart = Watchdog()
    heart._trainer = trainer(0)
    heart._trainer.default_root_dir = str(tmp_path)
    heart._children = [SimpleNamespace(poll=lambda: code)]
    return heart


@pytest.mark.parametrize("met", [False, True])
@pytest.mark.parametrize(
    ("code", "how"), [(-signal.SIGKILL, "SIGKILL"), (2, "exit code 2"), (None, ""), (0, "")]
)
def test_a_rank_that_ends_before_it_is_heard_of_is_named_at_once(
    tmp_path, monkeypatch, met, code, how
):
    heart = with_child(tmp_path, code)
    monkeypatch.setattr(os, "getppid", lambda: heart._parent)
    heart._parent, heart._answered = 1, 0.0 if met else None
    failure = heart._failure()
    assert failure == (watchdog.Failure(f"Rank 1 ended while it started ({how}).") if how else None)


@pytest.mark.parametrize(("code", "told"), [(130, 130), (143, 143), (-2, 130), (-15, 143)])
def test_a_rank_that_was_interrupted_while_it_started_is_no_error(
    tmp_path, monkeypatch, capsys, code, told
):
    codes, heart = [], with_child(tmp_path, code)
    monkeypatch.setattr(os, "_exit", codes.append)
    failure = heart._ended_early()
    heart._children = []
    heart._end(failure, prints=True)
    assert (
        capsys.readouterr().err
        == "\nerasure: Interrupted at once; what was written before is untouched.\n"
    )
    heart._end(watchdog.Failure("Rank 1 is gone."), prints=True)  # the control
    assert capsys.readouterr().err == "\nerasure: error: Rank 1 is gone.\n"
    assert codes == [told, 1]


def test_a_first_rank_that_is_stopped_is_named_once(tmp_path):
    """It holds the store, and whoever asks there waits for ever."""
    ranks = started(tmp_path, stop, guilty=0, size=3)
    (line,), found = ended(tmp_path, ranks, stopped=[0])
    assert f"Rank 0 (process {ranks[0].pid} on {rank_status.HOST}) does not answer for" in line
    assert "since step 12: it is stopped, or its machine is gone." in line
    assert found == [-signal.SIGKILL, 1, 1]


def test_a_first_rank_that_is_killed_is_named_once(tmp_path):
    """The store dies with it."""
    ranks = started(tmp_path, die, guilty=0, size=3)
    (line,), codes = ended(tmp_path, ranks)
    assert f"Rank 0 (process {ranks[0].pid} on {rank_status.HOST}) is gone" in line
    assert codes == [-signal.SIGKILL, 1, 1]


def test_ranks_that_were_all_stopped_go_on(tmp_path):
    """As by Ctrl-Z and `fg`."""
    ranks = started(tmp_path, lambda: time.sleep(1))
    time.sleep(1)
    for number, seconds in ((signal.SIGSTOP, 5), (signal.SIGCONT, 0)):
        for rank in ranks:
            os.kill(rank.pid, number)
        time.sleep(seconds)
    assert ended(tmp_path, ranks) == ([], [0, 0])


def test_a_slow_rank_is_left_in_peace(tmp_path):
    """The control: as long as batches are finished, the others wait."""

    def work():
        (heart,) = (h for h in HEARTS if h._trainer.global_rank == 1)
        for _ in range(11):
            time.sleep(0.5)
            heart.on_train_batch_end()

    assert ended(tmp_path, started(tmp_path, work)) == ([], [0, 0])


def troubles(monkeypatch, rank, what=lambda: None, **environment):
    """The first trouble of a rank that believes to have found the others."""
    found = []
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(
        Watchdog, "_end", lambda self, failure, *_: (found.append(failure), self._over.set())
    )
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with Watchdog(timeout=2.5).watching(trainer(rank)):
        time.sleep(2)
        what()
    return [failure.message for failure in found]


@pytest.mark.parametrize(("attempt", "heard"), [("0", ["Rank 1: The disk is full."]), ("1", [])])
def test_what_an_attempt_before_said_is_not_heard(attempt, heard, monkeypatch):
    """A store that torchrun holds may outlive the ranks, which it starts again."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    where = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    with pytest.raises(ErasureError):
        troubles(monkeypatch, 1, fail, **where)
    assert troubles(monkeypatch, 0, **where | {"TORCHELASTIC_RESTART_COUNT": attempt}) == heard


def test_a_rank_that_starts_while_the_others_are_taken_is_not_lost():
    class Started(list):
        """Lightning appends whenever it likes: here, as soon as the list is looked at."""

        late = ("late",)

        def __bool__(self):
            self[len(self) :], self.late = self.late, ()
            return len(self) > 0

        def clear(self):
            bool(self)
            super().clear()

    heart = Watchdog()
    heart._trainer = trainer(0)
    heart._trainer.strategy.launcher.procs = Started(["early"])
    assert take_launched(heart._trainer) == ["early", "late"]


@pytest.mark.parametrize(
    ("machine", "gone"),
    [(rank_status.MACHINE, True), (f"{rank_status.HOST} of another make", False)],
)
def test_a_process_is_looked_up_on_its_own_machine(machine, gone):
    """Machines may have one name, and processes of one number."""
    child = FORK.Process(target=int)
    child.start()
    child.join()
    assert (
        rank_status.Heartbeat(1, 0, 0, "", False, child.pid, rank_status.HOST, machine).dead is gone
    )


@pytest.mark.parametrize("failing", [False, True])
def test_nothing_is_left_in_the_environment(failing, monkeypatch):
    def watched():
        with Watchdog().watching(trainer(0)):
            assert os.environ["ERASURE_LAUNCHER"] == str(os.getpid())
            if failing:
                fail()

    if failing:
        with pytest.raises(ErasureError):
            watched()
    else:
        watched()
    assert "ERASURE_LAUNCHER" not in os.environ


def test_what_is_started_after_a_run_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen, chosen = [], folders.choose
    monkeypatch.setattr(
        folders, "choose", lambda *given: (chosen(*given), seen.append(dict(os.environ)))[0]
    )
    run = ["fit", *TINY, "--measure", "false", "--trainer.fast_dev_run", "true"]
    assert main([*run, "--run_dir", "one"]) == 0
    assert seen[0]["ERASURE_RUN_DIR"] == "one"  # the control: while it runs, its children are told
    assert "ERASURE_RUN_DIR" not in os.environ


def test_torchrun_in_an_environment_that_tells_of_another_run(tmp_path, monkeypatch):
    for name, value in {
        "ERASURE_RUN_DIR": "other",
        "ERASURE_LAUNCHER": "1",
        "LOCAL_RANK": "1",
    }.items():
        monkeypatch.setenv(name, value)
    heart, config = Watchdog(), Namespace(run_dir=str(tmp_path / "own"))
    assert (
        folders.choose("fit", config, None).root.name == "other"
    )  # the control: so do Lightning's children
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert folders.choose("fit", config, None).root.name == "own"
    with heart.watching(trainer(1)):
        assert heart._parent == os.getppid()


def test_a_watchdog_of_the_user_does_not_replace_the_run_s():
    ours, theirs = Watchdog(), Watchdog()
    callbacks = run_callbacks([theirs], LastCheckpoint(), ours, fast_dev_run=True)
    assert callbacks[-1] is ours
    assert theirs in callbacks


@pytest.mark.parametrize(
    ("environment", "front"),
    [
        ({}, ""),
        ({"RANK": "0", "LOCAL_RANK": "0"}, ""),
        ({"RANK": "1", "LOCAL_RANK": "1"}, None),
        ({"RANK": "8", "LOCAL_RANK": "0"}, "rank 8 on HOST: "),
        (
            {"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1"},
            "",
        ),  # the order of nodes is torchrun's own
        ({"SLURM_PROCID": "3"}, "rank 3 on HOST: "),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, None),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_NAME": "interactive"}, ""),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "LOCAL_RANK": "1"}, None),
    ],
)
def test_one_process_of_each_machine_tells_of_a_mistake(environment, front, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["fit", "--config", "nonexistent.yaml"]) == 2
    said = capsys.readouterr().err.replace(rank_status.HOST, "HOST")
    assert said == "" if front is None else said.startswith(f"{front}erasure: error: ")
    assert first() == (front == "")


def test_commands_that_are_no_ranks_tell_of_their_own_mistakes(monkeypatch, capsys):
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert main(["score", "nonexistent"]) == 2
    assert capsys.readouterr().err.startswith(f"rank 3 on {rank_status.HOST}: erasure: error: ")


def test_what_the_first_rank_was_told_is_not_said_twice(monkeypatch, capsys):
    error = ErasureError("The disk is full.")
    monkeypatch.setattr("erasure_lightning.cli.run.run", lambda *_: (_ for _ in ()).throw(error))
    assert main(["fit"]) == 2
    assert "The disk is full." in capsys.readouterr().err  # the control
    error.reported = True
    assert main(["fit"]) == 2
    assert capsys.readouterr().err == ""


HEARTS = []

LAUNCHERS = ("ERASURE_LAUNCHER", "ERASURE_RUN_DIR", "RANK", "LOCAL_RANK")
LAUNCHERS += ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_NAME")


@pytest.fixture(autouse=True)
def hearts(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(watchdog, "BEAT", 0.25)
    monkeypatch.setattr(watchdog, "SILENCE", 2.5)
    monkeypatch.setattr(watchdog, "LEAVE", 2.0)
    made = Watchdog.__init__
    monkeypatch.setattr(
        Watchdog,
        "__init__",
        lambda self, *given, **named: (HEARTS.append(self), made(self, *given, **named))[1],
    )
    yield
    HEARTS.clear()


def test_a_rank_whose_starter_is_gone_before_it_looks_does_not_wait(tmp_path):
    ready = FORK.Event()
    port = free_port()

    def starter():
        os.environ["ERASURE_LAUNCHER"] = str(os.getpid())
        second = os.fork()
        if second == 0:
            ready.wait(10)
            be(1, tmp_path, port, hang)
        (tmp_path / "pid").write_text(str(second))

    process = FORK.Process(target=starter)
    process.start()
    process.join()
    ready.set()
    until, told = time.monotonic() + 20, tmp_path / "1.txt"
    while not (told.exists() and told.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    assert told.read_text().strip() == "erasure: error: The process that started rank 1 is gone."


def test_one_rank_is_not_watched():
    heart = Watchdog(timeout=1)
    with heart.watching(SimpleNamespace(world_size=1)):
        assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


def test_reasons():
    assert rank_status.summary(ErasureError("No.")) == ("No.", 2)
    assert rank_status.summary(ValueError("odd")) == ("ValueError: odd", 1)


def test_a_timeout_of_nothing_is_refused():
    with pytest.raises(ErasureError, match="--hang_timeout above 0; found 0"):
        Watchdog(timeout=0)
