import copy
import json
import signal
from dataclasses import replace

import pytest
import torch
from diffusers import HeunDiscreteScheduler
from lightning import Trainer
from torch import distributed

from erasure_lightning.backbones.stable_diffusion import StableDiffusion
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux
from erasure_lightning.callbacks.interrupt import LastCheckpoint
from erasure_lightning.cli.main import main
from erasure_lightning.cli.plan import Planner
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods import ant
from erasure_lightning.methods.advunlearn import AdvUnlearn
from erasure_lightning.methods.ant import ANT
from erasure_lightning.methods.eraseanything import EraseAnything
from erasure_lightning.methods.esd import ESD
from erasure_lightning.methods.fmn import FMN
from erasure_lightning.methods.gloce import GLoCE
from erasure_lightning.methods.receler import Receler
from erasure_lightning.methods.stereo import STEREO
from erasure_lightning.methods.uce import UCE
from erasure_lightning.planning import forecast as forecasts
from erasure_lightning.planning.device_memory import DeviceMemory, memory_advice
from erasure_lightning.planning.forecast import forecast_fit
from erasure_lightning.planning.memory_tracker import MemoryTracker
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.retention.monitor import RetentionMonitor
from erasure_lightning.training.adversary_kinds import StateAdversary, WordAdversary
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.latent_sources import PureNoise
from erasure_lightning.training.optimizers import check_eight_bits
from erasure_lightning.training.strategies import register_strategies
from erasure_lightning.training.trajectory_bank import TrajectoryBank

pytestmark = pytest.mark.usefixtures("models_encode_alone")  # whose memory is planned

ARGUMENTS = [
    *("--model", "ESD", "--model.concepts", "[{name: cat}]"),
    *("--model.backbone", "TinyBackbone"),
]


def build(method, **arguments):
    return method(concepts=[Concept("cat", "dog")], backbone=TinyBackbone(), **arguments)


def forecast(method, *callbacks, accelerator="cpu", batch_size=4, **arguments):
    module = build(method, **arguments)
    data = PromptData(batch_size=batch_size)
    return forecast_fit(module, data, callbacks, False, accelerator, max_steps=3)


def measured(method, *callbacks, strategy="auto", **arguments):
    """Peak memory and evaluations of a real fit."""
    return measured_fit(build(method, **arguments), 3, callbacks, strategy)


def measured_fit(module, steps, callbacks=(), strategy="auto", accumulated=1):
    memory = MemoryTracker()
    module.configure_model()
    memory.hold([*module.parameters(), *module.buffers()])
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        strategy=strategy,
        accumulate_grad_batches=accumulated,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        log_every_n_steps=1,
        callbacks=list(callbacks),
    )
    with memory, EvaluationCounter({module.backbone.denoiser, module.original.denoiser}) as counter:
        trainer.fit(module, PromptData(batch_size=4))
    return memory.peak, counter


THRIFTY = {"train": "all", "checkpointing": True, "base_dtype": "bfloat16"}


@pytest.fixture(scope="module")
def plain():
    return forecast(ESD, train="all")


@pytest.fixture(scope="module")
def thrifty():
    return forecast(ESD, **THRIFTY)


@pytest.fixture(scope="module")
def solved():
    return forecast(UCE)


@pytest.mark.parametrize(
    ("method", "plan", "arguments"), [(ESD, "thrifty", THRIFTY), (UCE, "solved", {})]
)
def test_the_forecast_equals_a_real_fit(method, plan, arguments, request):
    plan = request.getfixturevalue(plan)
    peak, counter = measured(method, **arguments)
    assert max(plan.peaks.values()) == pytest.approx(peak, rel=0.05)
    last = plan.evaluations["last"]
    if method is ESD:
        assert counter.evaluations == 3 * (last["student"] + last["teacher"])
        assert counter.backwards == 3 * last["backwards"]


def test_a_step_has_as_many_batches_as_gradients_are_accumulated(plain):
    module = build(ESD, train="all")
    plan = forecast_fit(
        module, PromptData(batch_size=4), (), False, max_steps=3, accumulate_grad_batches=3
    )
    peak, counter = measured_fit(build(ESD, train="all"), 3, accumulated=3)
    assert max(plan.peaks.values()) == pytest.approx(peak, rel=0.05)
    last = plan.evaluations["last"]
    assert counter.evaluations == 3 * (last["student"] + last["teacher"])
    assert last["student"] == 3 * plain.evaluations["last"]["student"]
    assert plan.held.state == plain.held.state > 0
    assert plan.peaks["preparing"] == plain.peaks["preparing"]


def test_a_large_batch_is_extrapolated_from_smaller_ones(plain, monkeypatch):
    """Each prompt of a step takes a millisecond to draw and to encode."""
    monkeypatch.setattr(forecasts, "LARGEST_BATCH", 2)
    plan = forecast(ESD, train="all")
    assert plan.peaks == pytest.approx(plain.peaks, rel=0.001)
    assert replace(plan, peaks=plain.peaks) == plain
    assert forecast(ESD, batch_size=10**6).evaluations["last"]["student"] == 10**6


def heun():
    pipeline = TinyBackbone().to_pipeline()
    pipeline.scheduler = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    return StableDiffusion.from_pipeline("tiny", pipeline)


@pytest.mark.parametrize("model", [TinyBackbone, TinyFlux, heun])
def test_the_measurement_is_counted_as_its_sampler_evaluates(model):
    planned, module = (UCE(concepts=[Concept("cat")], backbone=model()) for _ in range(2))
    data = {"seeds": 2, "others": 3, "steps": 3, "guidance": 4.0, "image_batch_size": 5}
    plan = forecast_fit(planned, PromptData(**data), max_steps=1)
    module.configure_model()
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    with EvaluationCounter({module.backbone.denoiser, module.original.denoiser}) as counter:
        trainer.test(module, PromptData(**data))
    assert plan.measured == counter.evaluations > 0


def test_the_forecast_of_a_bank_and_of_retention_equals_a_real_fit():
    def arguments():
        return LocalNoisePreservation(prompts=["a car"]), TrajectoryBank(trajectories=4, steps=3)

    retention, bank = arguments()
    plan = forecast(ESD, retention, latents=bank)
    retention, bank = arguments()
    peak, _ = measured(ESD, retention, latents=bank)  # its predictions are cached: steps differ
    assert max(plan.peaks.values()) == pytest.approx(peak, rel=0.05)


def test_a_monitor_is_counted_and_drawn_once_before_and_after_a_step():
    def monitor():
        return RetentionMonitor(every=1, count=16, steps=2)

    plan, without = forecast(ESD, monitor()), forecast(ESD)
    peak, counter = measured(ESD, monitor())
    assert max(plan.peaks.values()) == plan.peaks["monitoring"] == pytest.approx(peak, rel=0.05)
    assert plan.peaks["monitoring"] > 1.5 * max(without.peaks.values())  # the control
    assert without.peaks["monitoring"] == without.monitored == 0
    for phase in ("preparing", "step"):  # of the monitor only the prompts' states stay
        assert plan.peaks[phase] == pytest.approx(without.peaks[phase], rel=0.06)
    last = plan.evaluations["last"]
    in_steps = 3 * (last["student"] + last["teacher"])
    assert plan.monitored + in_steps == counter.evaluations
    assert forecast(ESD, RetentionMonitor(every=2, count=16, steps=2)).monitored == (
        plan.monitored / 2
    )


def test_as_many_prompts_are_planned_to_be_retained_as_are():
    """The number of near labels is known before the run, the labels are not."""
    plan, run, whole = (LocalNoisePreservation(retained_share=share) for share in (0.98, 0.98, 1))
    forecast(UCE, plan)
    forecast(UCE, whole)
    measured(UCE, run)
    assert len(plan.retained) == len(run.retained)
    assert len(whole.retained) == len(plan.retained) + 3


def test_adapters_merged_at_the_end_are_planned_as_adapters():
    """What is trained is the same; only merged ones make an edit of the weights beneath."""
    merged, apart = (forecast(ESD, rank=2, merge=merge).held for merge in (True, False))
    assert replace(merged, weights=apart.weights) == apart
    assert merged.trained > 0
    assert apart.weights.edit < merged.weights.edit
    whole = [held.weights.frozen + held.weights.edit for held in (merged, apart)]
    assert whole[0] == whole[1]


def test_a_plugin_s_method_that_reads_values_is_planned(capsys):
    argv = ["plan", "--config", "speed.yaml", "--model.backbone", "TinyBackbone"]
    argv += ["--measure", "false"]
    assert main([*argv, "--trainer.accelerator", "cpu"]) == 0
    assert "SPEED, planned for one device" in capsys.readouterr().out


def test_a_method_that_reads_every_rollout_with_hooks_is_planned():
    """A sampler's evaluation is run once for a shape: all rollouts of GLoCE have the same."""
    plan = forecast(GLoCE, images=2, rollout_steps=3, vocabulary="things")
    peak, counter = measured(GLoCE, images=2, rollout_steps=3, vocabulary="things")
    assert plan.sampled == counter.evaluations == (2 + 3) * 2 * 2 * 3
    assert max(plan.peaks.values()) == pytest.approx(peak, rel=0.3)


def test_each_remedy_lowers_what_it_should(plain, thrifty):
    eight = forecast(ESD, train="all", optimizer="adam8bit")
    assert thrifty.held.weights.frozen == pytest.approx(plain.held.weights.frozen / 2, rel=0.01)
    assert thrifty.held.weights.edit == plain.held.weights.edit
    saved_weights = plain.held.weights.frozen - thrifty.held.weights.frozen
    assert plain.peaks["step"] - thrifty.peaks["step"] > saved_weights
    assert eight.held.state < 0.6 * plain.held.state  # most tensors of a tiny model stay in float32
    assert plain.peaks["step"] - eight.peaks["step"] == plain.held.state - eight.held.state


@pytest.mark.parametrize(
    ("when", "shown"),
    [("measuring", "Measuring needs most"), ("sampling", "Rolling the bank out needs")],
)
def test_advice_is_for_what_needs_most(plain, when, shown):
    module = build(ESD, latents=TrajectoryBank(), offload_text=True)
    memory = DeviceMemory(plain, 1, "one device")
    memory.when = when
    advice = memory_advice(plain, memory, module, PromptData(), 1)
    needs_most = [sentence for sentence in advice if "needs most" in sentence]
    assert len(needs_most) == 1
    assert needs_most[0].startswith(shown)


def test_text_and_denoiser_that_are_on_the_device_in_turn_are_planned_so():
    beside, in_turn = (
        forecast(ESD, latents=PureNoise(), offload_text=offload) for offload in (False, True)
    )
    weights = in_turn.held.weights
    assert 0 < weights.exchanged == weights.offloaded  # this denoiser is larger than the text
    peaks = [DeviceMemory(plan, 1, "one device").whens for plan in (beside, in_turn)]
    for when in ("preparing", "step"):
        assert peaks[0][when] - peaks[1][when] == weights.offloaded
    shards = DeviceMemory(in_turn, 2, "fsdp2").whens["preparing"]  # which stay on their devices
    assert shards == DeviceMemory(beside, 2, "fsdp2").whens["preparing"]


def test_a_bank_is_counted_and_rolled_out_for_one_step_alone():
    calls = []
    model = TinyBackbone()
    model.denoiser.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    module = ESD(
        concepts=[Concept("cat")],
        backbone=model,
        latents=TrajectoryBank(trajectories=8, steps=50, batch_size=8),
    )
    plan = forecast_fit(module, PromptData(batch_size=4), measure=False, max_steps=9)
    assert plan.held.bank == pytest.approx(3 * 8 * 50 * 4 * 8 * 8 * 4, rel=0.1)
    assert plan.sampled == 8 * 50 * 2
    assert len(calls) < 10


@pytest.mark.parametrize(("trajectories", "refresh"), [(2, 1), (2, 2), (1, 1), (2, 0)])
def test_rollouts_of_all_steps_are_counted(trajectories, refresh):
    def module():
        student = refresh > 0
        bank = TrajectoryBank(trajectories, steps=2, student=student, refresh=refresh)
        concepts = [Concept("cat"), Concept("dog")]
        return ESD(backbone=TinyBackbone(), concepts=concepts, latents=bank)

    plan = forecast_fit(module(), PromptData(batch_size=4), measure=False, max_steps=5)
    _, counter = measured_fit(module(), 5)
    # A bank of the original's trajectories has its predictions.
    taught = plan.evaluations["last"]["teacher"] if refresh else 0
    in_steps = 5 * (plan.evaluations["last"]["student"] + taught)
    assert plan.sampled + in_steps == counter.evaluations


def test_a_search_for_words_is_run_for_one_step_and_is_no_part_of_the_others():
    """STEREO's last step finds the words of all rounds due, of 3000 steps."""
    calls = []
    model = TinyBackbone()
    model.denoiser.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    module = STEREO(concepts=[Concept("cat")], backbone=model, rounds=2, erase_steps=2)
    plan = forecast_fit(module, PromptData(batch_size=2), measure=False, max_steps=6)
    assert plan.search == 3000
    assert plan.evaluations["last"]["student"] == 2
    assert len(calls) < 30


@pytest.mark.parametrize(
    "arguments",
    [
        {"attack_steps": 7},
        {"attack_steps": 7, "latents": {"trajectories": 2, "steps": 4, "student": True}},
        {"adversary": StateAdversary(begin=0, steps=6)},
        {"adversary": WordAdversary(begin=0, steps=5, starts=2, best=True, share=1.0)},
    ],
    ids=["own", "own, on its rollouts", "states", "words"],
)
def test_steps_of_an_adversary_are_counted_and_two_of_each_search_are_run(arguments):
    check_repeated_steps(AdvUnlearn, attack_from=0, **arguments)


def test_attack_steps_of_receler_are_counted_and_two_of_each_step_are_run():
    check_repeated_steps(Receler, attack_steps=7, rank=4)


def check_repeated_steps(method, latents=None, **arguments):
    """A plan counts what a fit of two steps evaluates, with fewer evaluations."""

    def module():
        source = None if latents is None else TrajectoryBank(**latents, refresh=1)
        return build(method, latents=source, **copy.deepcopy(arguments))

    planned = module()
    with EvaluationCounter({planned._source[0].denoiser}) as run:
        plan = forecast_fit(planned, PromptData(batch_size=4), measure=False, max_steps=2)
    peak, counter = measured_fit(module(), 2)
    last = plan.evaluations["last"]
    assert plan.sampled + 2 * (last["student"] + last["teacher"]) == counter.evaluations
    assert 2 * last["backwards"] == counter.backwards
    assert max(plan.peaks.values()) == pytest.approx(peak, rel=0.05)
    assert run.evaluations < 0.6 * counter.evaluations


def test_textual_inversion_is_run_for_one_step_and_counted_whole():
    calls = []

    def module():
        model = TinyBackbone()
        model.denoiser.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        images = GeneratedImages(images=1, steps=2)
        concepts = [Concept("cat"), Concept("dog")]
        steps = {"inversion_steps": 15, "inversion_batch": 3}
        return FMN(backbone=model, concepts=concepts, latents=images, **steps)

    plan = forecast_fit(module(), PromptData(batch_size=4), measure=False, max_steps=3)
    assert len(calls) < 15
    _, counter = measured_fit(module(), 3)
    last = plan.evaluations["last"]
    in_steps = 3 * (last["student"] + last["teacher"])
    assert plan.prepared == 90
    assert plan.sampled + plan.prepared + in_steps == counter.evaluations


def test_saliency_maps_are_counted(monkeypatch):
    monkeypatch.setattr(ant, "_PAIRS", 10)
    bank = {"trajectories": 1, "steps": 4}
    plan = forecast(ANT, maps=5, latents=TrajectoryBank(**bank))
    _, counter = measured(ANT, maps=5, latents=TrajectoryBank(**bank))
    last = plan.evaluations["last"]
    assert plan.prepared == 200  # 5 maps of 5 batches of 2 pairs, with and without the prompt
    in_steps = 3 * (last["student"] + last["teacher"])
    assert plan.sampled + plan.prepared + in_steps == counter.evaluations


@pytest.mark.parametrize("steps", [5, 6])
def test_both_kinds_of_step_that_take_turns_are_counted(steps):
    def module():
        return build(EraseAnything, latents=PureNoise(), negatives=2, unrelated=["car", "tree"])

    plan = forecast_fit(module(), PromptData(batch_size=4), measure=False, max_steps=steps)
    peak, counter = measured_fit(module(), steps)
    last, other = plan.evaluations["last"], plan.evaluations["other"]
    erasing, retaining = (last, other) if steps % 2 else (other, last)
    assert plan.evaluations["first"] == erasing != retaining
    both = [kind["student"] + kind["teacher"] for kind in (erasing, retaining)]
    assert counter.evaluations == both[0] * (steps - steps // 2) + both[1] * (steps // 2)
    assert max(plan.peaks.values()) == pytest.approx(peak, rel=0.05)


def test_data_parallel_training_copies_no_gradients(plain):
    """The gradients are views of what the ranks send, which a rank alone allocates too."""
    register_strategies()
    try:
        peak, _ = measured(ESD, train="all", strategy="ddp")
        copying, _ = measured(ESD, train="all", strategy="ddp_find_unused_parameters_false")
    finally:
        distributed.destroy_process_group()
    assert DeviceMemory(plain, 2, "ddp").peak == pytest.approx(peak, rel=0.05)
    assert copying > 1.1 * peak  # the control


def test_an_optimizer_in_eight_bits_updates_one_tensor_after_the_other():
    few = {"batch_size": 1, **THRIFTY}  # so that the optimizer needs most
    adam, eight = (
        [forecast(ESD, optimizer=name, accelerator=device, **few) for device in ("cpu", "cuda")]
        for name in ("adam", "adam8bit")
    )
    assert eight[0].peaks == eight[1].peaks
    assert adam[0].peaks["step"] < adam[1].peaks["step"]  # the control


def test_sharding_divides_what_it_splits(plain, solved):
    one = DeviceMemory(plain, 1, "one device")
    two = DeviceMemory(plain, 2, "ddp")
    split = DeviceMemory(plain, 2, "fsdp2")
    assert two.whens["step"] == one.whens["step"]
    assert two.whens["preparing"] == one.whens["preparing"] + plain.held.gradients
    for name in ("what is edited", "its gradients", "its optimizer", "the original's own copies"):
        assert split.rows[name] == one.rows[name] // 2
    weights = plain.held.weights
    frozen = weights.frozen - weights.divisible + weights.divisible // 2
    assert split.rows["frozen weights"] == frozen
    assert DeviceMemory(solved, 2, "fsdp2").rows["what is edited"] == solved.held.weights.edit


def test_the_command_prints_the_plan_and_writes_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--data.others=2", "--data.seeds=2", "--data.steps=2", "--data.image_batch_size=64"]
    assert (
        main(["plan", *ARGUMENTS, *small, "--trainer.devices", "2", "--gpu_memory", "0.001"]) == 1
    )
    output = capsys.readouterr().out
    parts = ("activations and temporaries", "Parameters: denoiser 0.2 M", "Trained: 0.009 M")
    for words in (*parts, "Does not fit", "generates"):
        assert words in output
    TinyBackbone().to_pipeline().save_pretrained(tmp_path / "tiny")
    assert main(["plan", *ARGUMENTS[:-1], str(tmp_path / "tiny"), *small, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["devices"] == 1
    assert plan["held"]["trained"] == 8784
    assert plan["sharded"]["devices"] == 8
    assert plan["sharded"]["peak"] < plan["peak"]
    assert plan["peak"] == plan["peaks_per_device"][plan["peak_when"]]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("arguments", "steps", "images"),
    [(["--trainer.fast_dev_run=2"], 2, 0), (["--trainer.overfit_batches=3"], 3, 10)],
)
def test_a_shortened_fit_is_planned_with_its_steps(arguments, steps, images, capsys):
    small = ["--data.others=2", "--data.seeds=2", "--data.steps=2", "--data.steps_per_concept=9"]
    assert main(["plan", *ARGUMENTS, *small, *arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["steps"], plan["images"]) == (steps, images)


def test_eight_bits_are_planned_where_their_package_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("erasure_lightning.training.optimizers.find_spec", lambda name: None)
    with pytest.raises(ErasureError, match="bitsandbytes, which is not installed"):
        check_eight_bits(split=False)  # the control: a fit is refused
    small = ["--model.optimizer", "adam8bit", "--measure", "false"]
    assert main(["plan", *ARGUMENTS, *small]) == 0
    assert "ESD, planned for one device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "devices"),
    [
        ([], 1),
        (["--trainer.devices", "4"], 4),
        (["--trainer.devices", "0,1,5"], 3),
        (["--trainer.devices", "[0, 1]"], 2),
        (["--trainer.devices", "4", "--trainer.num_nodes", "2"], 8),
        (["--config", "auto.yaml"], 1),  # as a run saves the trainer's default
    ],
)
def test_devices_are_those_of_all_nodes(arguments, devices, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "auto.yaml").write_text("trainer: {devices: auto}")
    assert Planner([*ARGUMENTS, *arguments], LastCheckpoint()).devices == devices


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trainer.num_nodes", "0"], "needs --trainer.num_nodes of at least 1; found 0."),
        (["--trainer.devices", "-1"], "found -1, which does not say it: give --trainer.devices"),
        (["--trainer.devices=auto"], "found auto"),
        (["--trainer.strategy", "deepspeed"], "--trainer.strategy needs auto, ddp, fsdp2"),
        (["--trainer.devices", "0"], "--trainer.devices of at least 1"),
        (["--gpu_memory", "-3"], "--gpu_memory above 0"),
        (["--gpu_memory", "lots"], "gpu_memory needs a number; found 'lots'"),
        (["--trainer.devices", "two"], "found two, which does not say it"),
        (["--devices", "2"], "unknown argument '--devices'. Did you mean '--trainer.devices'"),
        (["--gpu-memory=-3"], "--gpu_memory above 0"),
        (["--trainer.strategy", "fsdp"], "--trainer.strategy needs auto, ddp, fsdp2"),
        (["--trainer.precision", "bf16-true"], "give --model.base_dtype bfloat16"),
        (["--model.bank", "x"], "bank"),
        (["--model.lr", "-1"], "ESD needs lr of at least 0; found -1.0"),
        (["--trainer.max_steps", "0"], "found --trainer.max_steps 0"),
        (["--save_every", "0"], "--save_every of at least 1"),
        (
            ["--model", "UCE", "--trainer.accumulate_grad_batches", "2"],
            "gradient accumulation is not supported for manual optimization",
        ),
        (
            [
                "--model.optimizer",
                "adam8bit",
                "--trainer.devices",
                "2",
                "--trainer.strategy",
                "fsdp2",
            ],
            "adam8bit needs whole weights",
        ),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, words, capsys):
    assert main(["plan", *ARGUMENTS, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_weights_in_eight_bits_are_not_planned_in_shards(tmp_path, capsys):
    TinyBackbone().save(tmp_path)
    planned = ["plan", *ARGUMENTS, "--model.backbone", str(tmp_path), "--model.base_dtype", "int8"]
    assert main(planned) == 0
    assert "fsdp2" not in capsys.readouterr().out
    assert main([*planned, "--trainer.devices", "2", "--trainer.strategy", "fsdp2"]) == 2
    assert "fsdp2 needs frozen weights of 16 or 32 bits" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_plan_at_once_in_one_line(number, code, monkeypatch, capsys):
    steps = []

    def raise_signal(module, batch):
        steps.append(module.global_step)
        signal.raise_signal(number)

    monkeypatch.setattr(ESD, "erasure_loss", raise_signal)
    before = signal.getsignal(number)
    assert main(["plan", *ARGUMENTS]) == code
    assert steps == [0]
    output = capsys.readouterr()
    assert output.err == "erasure: Interrupted at once; what was written before is untouched.\n"
    assert output.out == ""
    assert signal.getsignal(number) == before


def test_a_method_is_needed(capsys):
    assert main(["plan", "--gpu_memory", "24"]) == 2
    assert "needs a method" in capsys.readouterr().err
