import multiprocessing
import os
import signal
import socket
import sys
import tempfile
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
from erasure_lightning.callbacks import watchdog
from erasure_lightning.callbacks.interrupt import SIGNALS, Interrupted, LastCheckpoint
from erasure_lightning.callbacks.rank_status import Failure, Heartbeat
from erasure_lightning.callbacks.watchdog import Watchdog
from erasure_lightning.cli import folders
from erasure_lightning.cli.rank import is_first_process
from erasure_lightning.distributed.lightning_internals import take_launched
from erasure_lightning.errors import ErasureError

FORK = multiprocessing.get_context("fork")

HOST = socket.gethostname()

#: Seconds without a finished batch after which the runs of these tests hang.
TIMEOUT = 2.0

LAUNCHERS = ("ERASURE_LAUNCHER", "ERASURE_RUN_DIR", "RANK", "LOCAL_RANK")
LAUNCHERS += ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_NAME")


@pytest.fixture(autouse=True)
def fast(monkeypatch, tmp_path):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(watchdog, "BEAT", 0.2)
    monkeypatch.setattr(watchdog, "SILENCE", 1.5)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def trainer(rank, size=2, port=0, folder="."):
    strategy = SimpleNamespace(
        launcher=SimpleNamespace(procs=[]),
        cluster_environment=SimpleNamespace(main_address="127.0.0.1", main_port=port),
    )
    ranks = {
        "world_size": size,
        "global_rank": rank,
        "local_rank": rank,
        "node_rank": 0,
        "is_global_zero": not rank,
    }
    return SimpleNamespace(**ranks, global_step=12, strategy=strategy, default_root_dir=str(folder))


def run_rank(rank, folder, port, act, guilty, size):
    """A rank that does something wrong, or waits for the others."""
    sys.stderr = (folder / f"{rank}.txt").open("w", buffering=1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    callback = Watchdog(timeout=TIMEOUT)
    try:
        with callback.watching(trainer(rank, size, port)):
            distributed.init_process_group(
                "gloo", rank=rank, world_size=size, timeout=timedelta(seconds=100)
            )
            while len(callback._peers) < size:  # so that all know each other's process
                time.sleep(0.02)
            distributed.barrier()
            if rank in guilty:
                act(callback)
            distributed.barrier()
    except ErasureError as error:
        if not error.reported:
            print(f"erasure: error: {error}", file=sys.stderr)
        os._exit(2)
    os._exit(0)


def hang(callback):
    time.sleep(100)


def die(callback):
    os.kill(os.getpid(), signal.SIGKILL)


def stop(callback):
    os.kill(os.getpid(), signal.SIGSTOP)


def fail(callback):
    raise ErasureError("The disk is full.")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(folder, act, guilty=(1,), size=2):
    port = free_port()
    ranks = [
        FORK.Process(target=run_rank, args=(rank, folder, port, act, guilty, size))
        for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def wait(folder, ranks, stopped=()):
    """Lines that ranks print, and their exit codes."""
    waiting = [process for rank, process in enumerate(ranks) if rank not in stopped]
    until = time.monotonic() + 60
    while waiting and time.monotonic() < until:
        time.sleep(0.02)
        waiting = [process for process in waiting if process.is_alive()]  # reaps the dead
    for process in ranks:
        process.kill()
        process.join()
    assert not waiting, "it waits for ever"
    output = "".join((folder / f"{rank}.txt").read_text() for rank in range(len(ranks)))
    codes = [rank.exitcode for rank in ranks]
    return [line for line in output.splitlines() if line.startswith("erasure")], codes


@pytest.mark.parametrize(
    ("act", "words", "expected"),
    [
        (hang, "since step 12: rank 1 may be stuck (rank 0 (", [1, 1]),
        (die, "is gone since step 12: it was killed, or it crashed.", [1, -signal.SIGKILL]),
        (stop, "has sent no heartbeat for", [1, -signal.SIGKILL]),
        (fail, "Rank 1: The disk is full.", [2, 2]),
    ],
)
def test_the_others_end_and_one_line_names_it(tmp_path, act, words, expected):
    stopped = [1] if act is stop else []
    (line,), codes = wait(tmp_path, start(tmp_path, act), stopped)
    assert words in line
    assert "ank 1" in line
    assert codes == expected


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_ranks_are_listed_in_order_whichever_was_heard_of_first(order):
    callback = Watchdog(timeout=TIMEOUT)
    callback._trainer = trainer(0)
    callback._peers = {
        rank: Heartbeat(0.0, 0, 12, f"line {rank}", not rank, 7, HOST, 0) for rank in order
    }
    (failure,) = callback._hang(TIMEOUT + 1)
    assert "rank 1 may be stuck (rank 0 (" in failure.message
    assert failure.message.index("line 0;") < failure.message.index("line 1)")
    assert not list(callback._hang(TIMEOUT - 1))  # the control


@pytest.mark.parametrize("guilty", [(0,), (0, 1, 2)])
def test_the_error_of_several_ranks_is_printed_once(guilty, tmp_path):
    (line,), codes = wait(tmp_path, start(tmp_path, fail, guilty, size=3))
    assert line.endswith("The disk is full.")
    assert "Rank" not in line or len(guilty) > 1
    assert 0 not in codes


def test_a_first_rank_that_is_stopped_is_named_once(tmp_path):
    """It holds the store, and whoever asks there waits for ever."""
    ranks = start(tmp_path, stop, guilty=(0,), size=3)
    (line,), codes = wait(tmp_path, ranks, stopped=[0])
    assert f"Rank 0 (process {ranks[0].pid} on {HOST}) does not answer for" in line
    assert "since step 12: it is stopped, or its machine is gone." in line
    assert codes == [-signal.SIGKILL, 1, 1]


def test_a_first_rank_that_is_killed_is_named_once(tmp_path):
    """The store dies with it."""
    ranks = start(tmp_path, die, guilty=(0,), size=3)
    (line,), codes = wait(tmp_path, ranks)
    assert f"Rank 0 (process {ranks[0].pid} on {HOST}) is gone" in line
    assert codes == [-signal.SIGKILL, 1, 1]


def test_ranks_that_were_all_stopped_go_on(tmp_path):
    """As by Ctrl-Z and `fg`."""
    ranks = start(tmp_path, lambda callback: time.sleep(1))
    time.sleep(0.7)
    for number, seconds in ((signal.SIGSTOP, TIMEOUT + 0.5), (signal.SIGCONT, 0)):
        for rank in ranks:
            os.kill(rank.pid, number)
        time.sleep(seconds)
    assert wait(tmp_path, ranks) == ([], [0, 0])


def test_a_slow_rank_is_left_in_peace(tmp_path):
    """The control: as long as batches are finished, the others wait."""

    def work(callback):
        until = time.monotonic() + TIMEOUT + 0.5
        while time.monotonic() < until:
            time.sleep(0.2)
            callback.on_train_batch_end()

    assert wait(tmp_path, start(tmp_path, work)) == ([], [0, 0])


def with_child(tmp_path, code):
    """The watchdog of a rank that has started another, which ended with this code."""
    callback = Watchdog()
    callback._trainer = trainer(0, folder=tmp_path)
    callback._children = [SimpleNamespace(poll=lambda: code, kill=lambda: None)]
    callback._claim = tmp_path / "claim"
    callback._exchanger = threading.Thread(target=time.sleep, args=[0.2])
    callback._exchanger.start()
    return callback


@pytest.mark.parametrize("met", [False, True])
@pytest.mark.parametrize(
    ("code", "how"), [(-signal.SIGKILL, "SIGKILL"), (2, "exit code 2"), (None, ""), (0, "")]
)
def test_a_rank_that_ends_before_its_first_heartbeat_is_named_at_once(tmp_path, met, code, how):
    callback = with_child(tmp_path, code)
    callback._answered = 0.0 if met else None
    expected = [Failure(f"Rank 1 ended while it started ({how}).")] if how else []
    assert list(callback._failures()) == expected


@pytest.mark.parametrize(("code", "expected"), [(130, 130), (143, 143), (-2, 130), (-15, 143)])
def test_a_rank_that_was_interrupted_while_it_started_is_no_error(tmp_path, capsys, code, expected):
    callback = with_child(tmp_path, code)
    failure = next(callback._failures())
    assert failure.code == expected
    callback._report(failure)
    assert (
        capsys.readouterr().err
        == "\nerasure: Interrupted at once; what was written before is untouched.\n"
    )
    callback._claim.unlink()
    callback._report(Failure("Rank 1 is gone."))  # the control
    assert capsys.readouterr().err == "\nerasure: error: Rank 1 is gone.\n"


def test_the_time_before_the_ranks_have_met_is_no_hang(tmp_path, monkeypatch):
    callback = with_child(tmp_path, None)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    callback._attempt, callback._clock = "0", 2 * callback.timeout
    assert callback._connected()
    assert not list(callback._failures())


def test_where_no_file_can_be_created_the_failure_is_printed(tmp_path):
    callback = Watchdog()
    callback._claim = tmp_path / "missing" / "claim"
    assert callback._claims()
    callback._claim = tmp_path / "claim"
    assert [callback._claims(), callback._claims()] == [True, False]  # the control


@pytest.mark.parametrize("attempt", [0, 1])
def test_heartbeats_of_an_earlier_attempt_are_not_read(attempt, monkeypatch):
    """A store that torchrun holds may outlive the ranks, which it starts again."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    callbacks = {1: 0, 0: attempt}
    for rank, callbacks[rank] in [(1, Watchdog()), (0, Watchdog())]:
        callbacks[rank]._trainer = trainer(rank)
        callbacks[rank]._attempt = str(0 if rank else attempt)
        assert callbacks[rank]._connected()
    callbacks[1]._send("Rank 1: The disk is full.", 2)
    callbacks[0]._receive()
    failures = [Failure("Rank 1: The disk is full.", 2)]
    assert list(callbacks[0]._lost_ranks(0.0)) == (failures if attempt == 0 else [])


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

    started = trainer(0)
    started.strategy.launcher.procs = Started(["early"])
    assert take_launched(started) == ["early", "late"]


@pytest.mark.parametrize(("node", "died"), [(0, True), (1, False)])
def test_a_process_is_looked_up_on_its_own_machine(node, died):
    """Machines may have processes of one number."""
    child = FORK.Process(target=int)
    child.start()
    child.join()
    assert Heartbeat(0.0, 0, 0, "", False, child.pid, HOST, node).died(0) is died
    assert not Heartbeat(0.0, 0, 0, "", False, os.getpid(), HOST, node).died(0)  # the control


@pytest.mark.parametrize("failing", [False, True])
def test_nothing_is_left_in_the_environment(failing):
    def watched():
        with (callback := Watchdog()).watching(trainer(0)):
            assert os.environ["ERASURE_LAUNCHER"] == str(os.getpid())
            if failing:
                fail(callback)

    if failing:
        with pytest.raises(ErasureError):
            watched()
    else:
        watched()
    assert "ERASURE_LAUNCHER" not in os.environ


def test_what_is_started_after_a_run_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environments, choose = [], folders.choose

    def recorded(*arguments):
        run = choose(*arguments)
        environments.append(dict(os.environ))
        return run

    monkeypatch.setattr(folders, "choose", recorded)
    run = ["fit", *TINY, "--measure", "false", "--trainer.fast_dev_run", "true"]
    assert main([*run, "--run_dir", "one"]) == 0
    assert environments[0]["ERASURE_RUN_DIR"] == "one"  # the control: its children inherit it
    assert "ERASURE_RUN_DIR" not in os.environ


def test_torchrun_in_the_environment_of_another_run(tmp_path, monkeypatch):
    for name, value in {
        "ERASURE_RUN_DIR": "other",
        "ERASURE_LAUNCHER": "1",
        "LOCAL_RANK": "1",
    }.items():
        monkeypatch.setenv(name, value)
    callback, config = Watchdog(), Namespace(run_dir=str(tmp_path / "own"))
    # The control: Lightning's children share that folder.
    assert folders.choose("fit", config, None).root.name == "other"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert folders.choose("fit", config, None).root.name == "own"
    with callback.watching(trainer(1)):
        assert callback._parent == os.getppid()


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
        # torchrun orders the nodes by itself.
        ({"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1"}, ""),
        ({"SLURM_PROCID": "3"}, "rank 3 on HOST: "),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, None),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_NAME": "interactive"}, ""),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "LOCAL_RANK": "1"}, None),
    ],
)
def test_one_process_of_each_machine_prints_a_mistake(environment, front, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["fit", "--config", "nonexistent.yaml"]) == 2
    output = capsys.readouterr().err.replace(HOST, "HOST")
    assert output == "" if front is None else output.startswith(f"{front}erasure: error: ")
    assert is_first_process() == (front == "")


def test_commands_that_are_no_ranks_print_their_own_mistakes(monkeypatch, capsys):
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert main(["score", "nonexistent"]) == 2
    assert capsys.readouterr().err.startswith(f"rank 3 on {HOST}: erasure: error: ")


def test_an_error_that_another_rank_has_printed_is_not_printed_again(monkeypatch, capsys):
    error = ErasureError("The disk is full.")
    monkeypatch.setattr("erasure_lightning.cli.run.run", lambda *_: (_ for _ in ()).throw(error))
    assert main(["fit"]) == 2
    assert "The disk is full." in capsys.readouterr().err  # the control
    error.reported = True
    assert main(["fit"]) == 2
    assert capsys.readouterr().err == ""


def test_a_rank_whose_starter_is_gone_before_it_looks_does_not_wait(tmp_path):
    ready = FORK.Event()
    port = free_port()

    def starter():
        os.environ["ERASURE_LAUNCHER"] = str(os.getpid())
        if os.fork() == 0:
            ready.wait(10)
            run_rank(1, tmp_path, port, hang, (1,), 2)

    process = FORK.Process(target=starter)
    process.start()
    process.join()
    ready.set()
    until, output = time.monotonic() + 30, tmp_path / "1.txt"
    while not (output.exists() and output.read_text().strip()) and time.monotonic() < until:
        time.sleep(0.02)
    assert output.read_text().strip() == "erasure: error: The process that started rank 1 is gone."


def test_one_rank_is_not_watched():
    with Watchdog(timeout=1).watching(SimpleNamespace(world_size=1)):
        assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


def test_the_failure_of_an_error():
    assert Failure.of(ErasureError("No."), 1) == ("Rank 1: No.", 2)
    assert Failure.of(ValueError("odd"), 1) == ("Rank 1: ValueError: odd", 1)
    assert Failure.of(Interrupted(signal.SIGINT, "Go on."), 1) == ("Go on.", 130)


def test_a_timeout_of_nothing_is_refused():
    with pytest.raises(ErasureError, match="--hang_timeout above 0; found 0"):
        Watchdog(timeout=0)
