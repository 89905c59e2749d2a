"""Suites whose cells take no time: what stands in for `erasure`, and figures as it would have
measured them.
"""

from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.benchmark.suite import AttackEntry, ConceptEntry, MethodEntry, Suite
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.protocol import Protocol, Result

#: What stands in for `erasure`: writes what its commands would, after a while, and does as the
#: method is told.
PROGRAM = """
import json, os, pathlib, shutil, signal, sys, time

command, given = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2]))
run = pathlib.Path(given.get("--run_dir", given.get("--ckpt_path")))
run.mkdir(parents=True, exist_ok=True)
(run / "config.yaml").touch()

def leave(number, frame):
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / "last.ckpt").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, leave)
with open(run / "calls", "a") as calls:
    calls.write(command + "\\n")
print("working")
patience = time.monotonic() + 100
while len(list(run.parents[2].glob("*/*/*/calls"))) < int(given.get("--model.company", 1)):
    if time.monotonic() > patience:
        sys.exit("nobody came")
    time.sleep(0.01)
time.sleep(float(given.get("--model.sleep", 0)))
if message := given.get("--model.fail"):
    sys.exit("Traceback of something\\nerasure: error: " + message)
if given.get("--model.die"):
    os.kill(os.getpid(), signal.SIGSEGV)
if command == "attack":
    folder = run / "attacks" / given["--attack"].lower()
    folder.mkdir(parents=True)
    shutil.copy(TEMPLATES / "attack.json", folder)
    sys.exit()
if command == "fit" and not given.get("--model.nothing"):
    (run / "edit.safetensors").touch()
if not given.get("--model.unmeasured"):
    shutil.copy(TEMPLATES / "metrics.json", run)
"""


def result(own=0.0, domain=0.0, retain=1.0, steps=2):
    """A result with those figures."""
    protocol = Protocol(
        {"efficacy": ["a cat"]}, [0, 1], steps, 4.0, 8, "DDIM", "s", "b", "v", "tiny", "tiny", {}
    )
    shares = {"efficacy": own, "generality": domain, "specificity": retain}
    estimates = {
        group: {
            "recognized": {
                "before": Estimate(1.0, 1.0, 1.0, 2, 4),
                "after": Estimate(mean, 0.0, 1.0, 2, 4),
            }
        }
        for group, mean in shares.items()
    }
    return Result(protocol, {"method": "X"}, estimates)


def outcome(success=0.25, steps=2):
    """What an attack found that brought as much back."""
    shares = {"original": 1.0, "plain": 0.0, "attacked": success}
    estimates = {asked: Estimate(mean, 0.0, 1.0, 2, 4) for asked, mean in shares.items()}
    cost = {"seconds": 1.0, "evaluations": 2, "backwards": 1, "peak_gib": 0.1}
    return Outcome(
        attack="P4D", class_path="x.P4D", arguments={}, paper="", method="X", concepts=["cat"], edit="0" * 16,
        success=estimates, found=[], curve=None, cost=cost, protocol=result(steps=steps).protocol,
    )  # fmt: skip


def suite(concepts=("cat", "dog"), attacks=(), **methods):
    """A suite of those methods, each with what the stand-in is told."""
    return Suite(
        name="pets",
        backbone="TinyBackbone",
        methods=tuple(
            MethodEntry(n, {}, {f"model.{k}": v for k, v in told.items()})
            for n, told in methods.items()
        ),
        concepts=tuple(ConceptEntry(name, (Concept(name, "tree"),), ()) for name in concepts),
        attacks=tuple(AttackEntry(name, {}) for name in attacks),
        seeds=(0,),
        options={},
    )
