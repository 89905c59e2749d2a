"""Suites whose jobs take no time: a program in the place of `erasure`, and results to write."""

from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.benchmark.suite import AttackEntry, ConceptEntry, MethodEntry, Suite
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.protocol import Protocol, Result

#: Writes the files of `erasure fit`, `test` and `attack`. Options of the model control it: it waits
#: for other jobs (parallel) or some seconds (sleep), or fails (fail, die, no_edit, unmeasured).
PROGRAM = """
import json, os, pathlib, shutil, signal, sys, time

command = sys.argv[1]
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
run = pathlib.Path(options.get("--run_dir", options.get("--ckpt_path")))
run.mkdir(parents=True, exist_ok=True)
(run / "config.yaml").touch()

def save_and_exit(number, frame):
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / "last.ckpt").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, save_and_exit)
with open(run / "calls", "a") as calls:
    calls.write(command + "\\n")
print("working")
deadline = time.monotonic() + 100
while len(list(run.parents[2].glob("*/*/*/calls"))) < int(options.get("--model.parallel", 1)):
    if time.monotonic() > deadline:
        sys.exit("other jobs were not started")
    time.sleep(0.01)
time.sleep(float(options.get("--model.sleep", 0)))
if message := options.get("--model.fail"):
    sys.exit("Traceback of something\\nerasure: error: " + message)
if options.get("--model.die"):
    os.kill(os.getpid(), signal.SIGSEGV)
if command == "attack":
    folder = run / "attacks" / options["--attack"].lower()
    folder.mkdir(parents=True)
    shutil.copy(TEMPLATES / "attack.json", folder)
    sys.exit()
if command == "fit" and not options.get("--model.no_edit"):
    (run / "edit.safetensors").touch()
if not options.get("--model.unmeasured"):
    shutil.copy(TEMPLATES / "metrics.json", run)
"""


def result(own=0.0, domain=0.0, retain=1.0, steps=2):
    """A result with these shares of recognised images."""
    protocol = Protocol(
        {"efficacy": ["a cat"]}, [0, 1], steps, 4.0, 8, "DDIM", "s", "b", "v", "tiny", "tiny", {}
    )
    shares = {"efficacy": own, "generality": domain, "specificity": retain}
    before = Estimate(1.0, 1.0, 1.0, 2, 4)
    estimates = {
        group: {"recognized": {"before": before, "after": Estimate(mean, 0.0, 1.0, 2, 4)}}
        for group, mean in shares.items()
    }
    return Result(protocol, {"method": "X"}, estimates)


def outcome(success=0.25, steps=2):
    """The outcome of an attack with this success."""
    shares = {"original": 1.0, "plain": 0.0, "attacked": success}
    estimates = {name: Estimate(mean, 0.0, 1.0, 2, 4) for name, mean in shares.items()}
    cost = {"seconds": 1.0, "evaluations": 2, "backwards": 1, "peak_gib": 0.1}
    return Outcome(
        attack="P4D",
        class_path="x.P4D",
        arguments={},
        paper="",
        method="X",
        concepts=["cat"],
        edit="0" * 16,
        success=estimates,
        cases=[],
        curve=None,
        cost=cost,
        protocol=result(steps=steps).protocol,
    )


def suite(concepts=("cat", "dog"), attacks=(), **methods):
    """A suite of these methods, each with its options of the program."""
    return Suite(
        name="pets",
        backbone="TinyBackbone",
        methods=tuple(
            MethodEntry(name, {}, {f"model.{key}": value for key, value in arguments.items()})
            for name, arguments in methods.items()
        ),
        concepts=tuple(ConceptEntry(name, (Concept(name, "tree"),), ()) for name in concepts),
        attacks=tuple(AttackEntry(name, {}) for name in attacks),
        seeds=(0,),
        options={},
    )
