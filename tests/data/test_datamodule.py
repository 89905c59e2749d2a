import pytest
import torch
from lightning import Callback
from trivial import Distillation, quiet_trainer

from erasure_lightning.backbones.tiny import TinyBackbone, TinySD3
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.vocabulary import Vocabulary, evenly_spaced, random_subset
from erasure_lightning.concepts.word_lists import COCO_OBJECTS
from erasure_lightning.concepts.worlds import find_world
from erasure_lightning.data.datamodule import Draws, PromptData, warn_of_cut
from erasure_lightning.data.image_plan import (
    ImageLoader,
    ImageRequest,
    measured_prompts,
    read_prompts,
)
from erasure_lightning.errors import ErasureError
from erasure_lightning.testing import edit_of

HEART = [
    Concept("red heart", "star", domain=["love", "valentine"]),
    Concept("broken heart", "star"),
]


@pytest.fixture
def data():
    data = PromptData(batch_size=3)
    module = Distillation(
        concepts=[Concept("cat", "dog"), Concept("star"), Concept("boat", "car")],
        backbone=TinyBackbone(),
    )
    module.configure_model()
    trainer = quiet_trainer(max_steps=4)
    data.trainer, module.trainer = trainer, trainer
    trainer.strategy._lightning_module = module
    return data


def test_images_have_the_models_steps_and_guidance_by_default(data):
    assert {(each.steps, each.guidance) for each in data._plan(2)} == {(50, 7.5)}
    data.trainer.lightning_module.backbone = TinySD3()
    assert {(each.steps, each.guidance) for each in data._plan(2)} == {(28, 7.0)}
    data.guidance = 0.0
    assert {(each.steps, each.guidance) for each in data._plan(2)} == {(28, 0.0)}


def test_batches_are_a_function_of_their_number(data):
    first, again = list(data.train_dataloader()), list(data.train_dataloader())
    assert first == again
    assert len({b.prompts[0].text for b in first}) > 1


def test_ranks_draw_their_own_prompts(data, monkeypatch):
    one = list(data.train_dataloader())
    monkeypatch.setattr(Distillation, "global_rank", 1)
    assert list(data.train_dataloader()) != one


def test_concepts_take_turns(data):
    for batch in data.train_dataloader():
        assert sorted(batch.concepts) == ["boat", "cat", "star"]


def test_a_run_has_the_trainers_steps_or_so_many_rounds_of_the_concepts_if_those_are_fewer(data):
    def length(steps_per_concept, most):
        data.steps_per_concept, data.trainer.fit_loop.epoch_loop.max_steps = steps_per_concept, most
        return len(data.train_dataloader())

    assert [length(None, 4), length(5, -1), length(5, 4), length(5, 20), length(None, -1)] == [
        4,
        15,
        4,
        15,
        1000,
    ]
    data.trainer.accumulate_grad_batches = 2
    assert [length(None, 4), length(5, -1)] == [8, 30]
    with pytest.raises(ErasureError, match="needs steps_per_concept of at least 1; found 0"):
        PromptData(steps_per_concept=0)


class SaveBehind(Callback):
    """Saves behind a step, and ends the run there."""

    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


class SaveAll(Callback):
    """Saves behind every step."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


class Recorder(Callback):
    """Keeps the sentences and the rate of every step."""

    def __init__(self):
        self.batches, self.rates = [], []

    def on_train_batch_start(self, trainer, module, batch, *_):
        self.batches.append(tuple(batch.prompts))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def build():
    concepts = [Concept("cat", "dog"), Concept("star"), Concept("boat")]
    return Distillation(concepts=concepts, backbone=TinyBackbone(), schedule="cosine")


def trained(*callbacks, resume=None, steps_per_concept=2, **arguments):
    settings = {"max_steps": -1, "max_epochs": 1, "limit_val_batches": 0, **arguments}
    trainer = quiet_trainer(callbacks=list(callbacks), **settings)
    module = build()
    trainer.fit(
        module,
        PromptData(batch_size=1, steps_per_concept=steps_per_concept),
        ckpt_path=resume,
        weights_only=True,
    )
    return module


def equal(one, other):
    values = edit_of(other)
    return all(torch.equal(value, values[name]) for name, value in edit_of(one).items())


def test_rounds_end_the_training_and_its_schedule_also_of_a_run_that_was_stopped(tmp_path):
    whole, half = trained(), trained(SaveBehind(tmp_path / "half.ckpt", 3))
    assert whole.global_step == 2 * 3
    assert half.global_step == 3
    assert whole.lr_schedulers().get_last_lr() == [pytest.approx(0)]
    assert equal(trained(resume=tmp_path / "half.ckpt"), whole)
    assert not equal(half, whole)


def test_more_epochs_are_more_steps_of_other_batches_along_one_cosine():
    runs = {}
    for epochs in (1, 2, 3):
        recorder = Recorder()
        module = trained(recorder, steps_per_concept=1, max_epochs=epochs)
        runs[epochs] = module
        assert module.global_step == len(recorder.batches) == 3 * epochs
        assert module.lr_schedulers().get_last_lr() == [pytest.approx(0)]
        assert min(recorder.rates) > 0, "the rate reaches 0 behind the last step and at no step"
        assert recorder.rates == sorted(recorder.rates, reverse=True)
        parts = {tuple(recorder.batches[i : i + 3]) for i in range(0, 3 * epochs, 3)}
        assert len(parts) == epochs, "an epoch repeated the batches of another"
    assert not equal(runs[1], runs[2])
    assert not equal(runs[2], runs[3])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of three epochs, what it saw, and the folder of its state behind every step."""
    torch.manual_seed(0)
    folder, recorder = tmp_path_factory.mktemp("states"), Recorder()
    return trained(recorder, SaveAll(folder), steps_per_concept=1, max_epochs=3), recorder, folder


@pytest.mark.parametrize("step", range(1, 9))
def test_a_run_resumed_at_any_step_of_any_epoch_is_the_unbroken_one(unbroken, step):
    whole, recorder, folder = unbroken
    late = Recorder()
    resumed = trained(late, resume=folder / f"{step}.ckpt", steps_per_concept=1, max_epochs=3)
    assert late.batches == recorder.batches[step:]
    assert late.rates == recorder.rates[step:]
    assert equal(resumed, whole)


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"max_epochs": 2, "limit_train_batches": 2}, 4),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 6),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, 12),
        ({"max_epochs": 2, "accumulate_grad_batches": 2, "limit_train_batches": 3}, 4),
        ({"max_epochs": 3, "max_steps": 10}, 10),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": None, "max_steps": 4}, 4),
        ({"max_epochs": 3, "overfit_batches": 2}, 6),
        ({"fast_dev_run": 2}, 2),
    ],
)
def test_the_schedule_ends_with_the_run_however_that_is_bounded(arguments, steps):
    recorder = Recorder()
    module = trained(recorder, steps_per_concept=2, **arguments)
    assert module.trainer.datamodule.training_steps == module.global_step == steps
    assert module.lr_schedulers().get_last_lr() == [pytest.approx(0)]
    assert len(set(recorder.batches)) > 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"max_epochs": -1},
            (
                "A run needs an end; found max_epochs -1 and max_steps -1, which set none. Give"
                " the trainer max_steps, or max_epochs with steps_per_concept"
            ),
        ),
        (
            {"max_epochs": 3, "max_steps": 6},
            "3 epochs need more than the 6 steps of max_steps.*with steps_per_concept of the data",
        ),
        (
            {"max_epochs": 3, "max_steps": 4, "steps_per_concept": None},
            "3 epochs need more than the 4 steps of max_steps",
        ),
    ],
)
def test_epochs_that_would_add_nothing_and_runs_without_an_end_are_refused(arguments, words):
    with pytest.raises(ErasureError, match=words):
        trained(**arguments)


def test_draws_go_on_where_they_stopped():
    draws = Draws(lambda i: i, 5)
    iterator = iter(draws)
    assert [next(iterator), next(iterator)] == [0, 1]
    resumed = Draws(lambda i: i, 5)
    resumed.load_state_dict(draws.state_dict())
    first = iter(resumed)
    assert [next(first) for _ in range(3)] == [2, 3, 4]
    assert list(resumed) == [5, 6, 7, 8, 9], "the next epoch begins anew, and with other batches"


LONG = "a cat " + "and a dog " * 8


def test_prompts_longer_than_the_model_reads_are_counted_and_one_is_named(tmp_path):
    backbone = TinyBackbone()
    with pytest.warns(
        UserWarning,
        match="TinyBackbone reads only the beginning of 1 of 2 prompts.* The first: 'a cat",
    ):
        warn_of_cut(backbone, [LONG, "a cat", LONG], "prompts")
    full = "cat " * 14
    assert backbone.too_long([full, full + "cat", "", "a"]) == [full + "cat"], (
        "14 words fill the 16 places"
    )


def test_each_command_tells_of_prompts_that_are_cut(tmp_path):
    module = build()
    (tmp_path / "prompts.csv").write_text(f"prompt,evaluation_seed\n{LONG},1\na cat,2\n")
    few = {
        "others": 1,
        "seeds": 2,
        "steps": 1,
        "neighbours": [LONG],
        "templates": ["{} " + LONG, "{}"],
    }
    data = PromptData(batch_size=1, prompts=str(tmp_path / "prompts.csv"), **few)
    trainer = quiet_trainer(max_steps=1)
    with pytest.warns(UserWarning, match=r"beginning of \d of \d+ sentences to train on"):
        trainer.fit(module, data)
    with pytest.warns(UserWarning, match=r"beginning of \d+ of \d+ prompts to generate"):
        trainer.test(module, data, verbose=False)
    with pytest.warns(UserWarning, match="beginning of 1 of 2 prompts to generate"):
        trainer.predict(module, data, return_predictions=False)


@pytest.mark.parametrize("rows", [None, "prompt,seed\na cat,\n"])
def test_a_wrong_file_of_prompts_is_refused_before_a_model_is_loaded(tmp_path, rows):
    file = tmp_path / "prompts.csv"
    if rows:
        file.write_text(rows)
    module = Distillation(concepts=[Concept("cat")], backbone="no-such-model")
    with pytest.raises(ErasureError, match=str(file)):
        quiet_trainer().predict(module, PromptData(prompts=str(file)))


def test_nothing_is_said_where_nothing_is_cut(recwarn):
    warn_of_cut(TinyBackbone(), ["a cat", "a dog"], "prompts")
    assert not recwarn


def test_ranks_share_the_pictures():
    requests = [
        ImageRequest(str(i), i, "prompts", str(i), "", 2 if i < 3 else 4, 1.0) for i in range(7)
    ]
    whole = [b.prompts for b in ImageLoader(requests, 2, None)]
    assert whole == [["0", "1"], ["2"], ["3", "4"], ["5", "6"]]
    ranks = [list(ImageLoader(requests, 2, None, rank, 2)) for rank in range(2)]
    assert [b.steps for b in ranks[0]] == [b.steps for b in ranks[1]], (
        "ranks that ask a model together must keep step"
    )
    assert {p for rank in ranks for b in rank for p in b.prompts} == {s.prompt for s in requests}
    assert max(len(b.requests) for rank in ranks for b in rank) <= 2


def test_ranks_that_keep_step_draw_a_lonely_picture_twice():
    requests = [
        ImageRequest(str(i), i, "prompts", str(i), "", 2, 1.0 if i else 7.5) for i in range(4)
    ]
    first, second = (list(ImageLoader(requests, 2, None, rank, 2)) for rank in range(2))
    assert [b.prompts for b in first] == [["0"], ["1"]]
    assert [b.prompts for b in second] == [["0"], ["2", "3"]]
    assert [b.is_repeated for b in first + second] == [False, False, True, False]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_picture_is_one_rank_s_own(ranks, count):
    for number in range(ranks, 5 * ranks):
        requests = [ImageRequest(str(i), i, "", "", "", 2, 1.0) for i in range(number)]
        loaders = [ImageLoader(requests, count, None, rank, ranks) for rank in range(ranks)]
        assert len({len(loader) for loader in loaders}) == 1
        own = [[b.prompts for b in loader if not b.is_repeated] for loader in loaders]
        assert all(own)
        assert sorted(int(p) for rank in own for b in rank for p in b) == [*range(number)]


def test_the_plan_follows_the_protocol():
    rows = measured_prompts(Vocabulary(find_world("emoji-world"), HEART), 54, ["rose"])
    groups = {
        g: [r for r in rows if r[0] == g]
        for g in ("efficacy", "generality", "neighbours", "specificity")
    }
    assert [r[1] for r in groups["efficacy"]][:3] == [
        "red heart",
        "a red heart",
        "an emoji of a red heart",
    ]
    assert [r[1] for r in groups["generality"]] == ["a love", "a valentine"]
    assert groups["neighbours"] == [("neighbours", "a rose", "rose")]
    assert len(groups["specificity"]) == 54
    assert not {"red heart", "broken heart"} & {r[2] for r in groups["specificity"]}


def test_a_neighbour_that_the_world_does_not_know_is_refused_before_training(data):
    vocabulary = Vocabulary(find_world("emoji-world"), HEART)
    with pytest.raises(ErasureError, match="The world emoji-world does not know 'submarine'"):
        measured_prompts(vocabulary, 54, ["rose", "submarine"])
    measured_prompts(Vocabulary(None, HEART), 54, ["submarine"])
    data.trainer.lightning_module.backbone.world = find_world("emoji-world")
    data.neighbours = ["submarine"]
    with pytest.raises(ErasureError, match="does not know 'submarine'"):
        data.train_dataloader()


def test_vocabulary_without_a_world_is_everyday_things():
    vocabulary = Vocabulary(None, [Concept("cat", "dog", domain=["kitten"]), Concept("nudity")])
    assert len(COCO_OBJECTS) == 80
    assert vocabulary.erased == {"cat", "nudity"}
    assert "cat" not in vocabulary.others
    assert "dog" in vocabulary.others


def test_a_person_is_asked_for_without_an_article():
    person = Vocabulary(None, [Concept("Ada Lovelace", kind="person", domain=["first programmer"])])
    texts = ["Ada Lovelace", "a photo of Ada Lovelace", "an image of Ada Lovelace"]
    assert person.concept_prompts() == [(text, "") for text in texts]
    assert person.domain_prompts() == [("a photo of first programmer", "")]
    assert person.erased == {"Ada Lovelace"}
    thing = Vocabulary(None, [Concept("Ada Lovelace")])
    assert ("a Ada Lovelace", "") in thing.concept_prompts()  # the control


def test_without_a_world_an_erased_style_is_no_retained_thing():
    styles = [Concept("Van Gogh", "photograph", kind="style"), Concept("Monet", kind="style")]
    rows = measured_prompts(Vocabulary(None, styles), 100, [])
    retained = [prompt for group, prompt, _ in rows if group == "specificity"]
    assert len(retained) == len(COCO_OBJECTS)
    assert not [prompt for prompt in retained if "Van Gogh" in prompt or "Monet" in prompt]
    assert len([prompt for group, prompt, _ in rows if group == "efficacy"]) == 24  # the control


def test_vocabulary_of_a_style_keeps_the_other_styles():
    vocabulary = Vocabulary(find_world("emoji-world"), [Concept("twemoji", "noto", kind="style")])
    assert vocabulary.erased == set()
    captions = vocabulary.retained_captions("fox")
    assert {"a fox", "a fox, flat style"} <= set(captions)
    assert not any("twemoji" in c for c in captions)
    flat = Vocabulary(vocabulary.world, [Concept("twemoji", "noto", ["Flat"], kind="style")])
    assert flat.other_styles == ["noto", "fluent"]  # a style's domain is not retained either
    assert all(p == f"a {thing}, twemoji style" for p, thing in vocabulary.concept_prompts())


@pytest.mark.parametrize("name", ["cat", "Cat", "cats", " CATS ", "\uff23at"])
def test_names_are_compared_folded_and_in_any_number(name):
    vocabulary = Vocabulary(None, [Concept(name, "dog", ["Bicycles"])])
    assert "cat" in vocabulary.erased
    assert not {"cat", "bicycle"} & set(vocabulary.others)
    assert {"dog", "bear"} <= set(vocabulary.others)


def test_everyday_things_are_not_each_other():
    assert all(Vocabulary(None, [Concept(name)]).erased == {name} for name in COCO_OBJECTS)


def test_a_style_is_known_in_any_case():
    captions = Vocabulary(
        find_world("emoji-world"), [Concept("Twemoji", kind="style")]
    ).retained_captions("fox")
    assert "a fox, flat style" in captions
    assert not any("twemoji" in caption for caption in captions)


def test_words_of_the_domain_are_not_retained():
    vocabulary = Vocabulary(None, [Concept("cat", domain=["dog"])])
    assert not {"cat", "dog"} & set(vocabulary.others)
    assert len(vocabulary.others) == 78
    others = Vocabulary(find_world("emoji-world"), [Concept("lion", domain=["tiger"])]).others
    assert "tiger face" not in others  # counts as a tiger
    assert "dog face" in others


def test_spread_reaches_over_the_whole():
    assert evenly_spaced(range(10), 5) == [0, 2, 4, 6, 8]
    assert evenly_spaced([1, 2], 5) == [1, 2]


def test_the_kept_labels_are_drawn_by_lot_and_stay_the_same():
    assert (
        random_subset(range(100), 5)
        == random_subset(range(100), 5)
        == sorted(random_subset(range(100), 5))
        != list(range(5))
    )
    assert random_subset([1, 2], 5) == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"seeds": 1}, "seeds of at least 2"),
        ({"templates": ["a cat"]}, "needs {} in"),
        ({"templates": ["{}", "a {} by a {}"]}, "once, .* found 'a {} by a {}'"),
        ({"neighbours": "dog"}, "neighbours in a list; found 'dog'"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        PromptData(**arguments)


class TestPromptFile:
    def write(self, tmp_path, text):
        path = tmp_path / "prompts.csv"
        path.write_text(text)
        return path

    def test_i2p_columns(self, tmp_path):
        text = (
            'prompt,evaluation_seed,case_number,guidance,steps,nudity\n"a cat, big",5,1,,,0.1\na'
            " dog,6,2,3.5,10,0.0\n"
        )
        requests = read_prompts(self.write(tmp_path, text), 20, 4.0)
        assert [(s.prompt, s.seed, s.case, s.steps, s.guidance) for s in requests] == [
            ("a cat, big", 5, "1", 20, 4.0),
            ("a dog", 6, "2", 10, 3.5),
        ]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (
                "prompt,sed\na,1\n",
                r"needs the columns prompt and seed \(I2P, .*; found prompt, sed\.",
            ),
            ("text\na\n", r"or adv_prompt \(MMA-Diffusion\); found text\."),
            ("", "found none"),
            ("prompt,evaluation_seed,case_number\n", "at least one row"),
            (
                "prompt,evaluation_seed,case_number\na,x,1\n",
                (
                    "line 2, column evaluation_seed: a whole number from 0 to 18446744073709551615"
                    " is needed; found 'x'"
                ),
            ),
            ("prompt,evaluation_seed,case_number\na,1,1\nb,2,1\n", "found 1 more than once"),
            (
                "prompt,seed\na,18446744073709551616\n",
                "line 2, column seed: .*; found '18446744073709551616'",
            ),
            ("prompt,seed\na,-1\n", "line 2, column seed: .*; found '-1'"),
            ("prompt,seed\na,\n", "line 2, column seed: .*; found ''"),
            (
                "prompt,seed,steps\na,1,2\nb,1,0\n",
                "line 3, column steps: a whole number from 1 .*; found '0'",
            ),
            ("prompt,seed,steps\na,1,-5\n", "column steps: .*; found '-5'"),
            (
                "prompt,seed,guidance\na,1,nan\n",
                "line 2, column guidance: a number of at least 0 is needed; found 'nan'",
            ),
            ("prompt,seed,guidance\na,1,inf\n", "column guidance: .*; found 'inf'"),
            ("prompt,seed,guidance\na,1,-2\n", "column guidance: .*; found '-2'"),
            (
                "prompt,seed,sd_image_width\na,1,512\n",
                "column sd_image_width: height and width go together",
            ),
            ("prompt,seed,width,height\na,1,64,0\n", "column height: .*; found '0'"),
            (
                "case_number,seed,prompt\n0,1,a cat, in a hat\n",
                "line 2: found 4 cells under 3 columns",
            ),
            ("case_number,seed,prompt\n0,1,a cat\n1,2\n", "line 3: found 2 cells under 3 columns"),
            ('prompt,seed\n"a cat,1\nb,2\n', "line 2: no valid CSV .*Is a double quote missing"),
            (f"prompt,seed\n{'x' * 140_000},1\n", "line 2: no valid CSV .field larger"),
        ],
    )
    def test_mistakes(self, tmp_path, text, words):
        with pytest.raises(ErasureError, match=words):
            read_prompts(self.write(tmp_path, text), 20, 4.0)

    @pytest.mark.parametrize(
        ("header", "row", "expected"),
        [
            # MMA-Diffusion, mma-diffusion-nsfw-adv-prompts.csv
            (
                "target_prompt,adv_prompt,sanitized_adv_prompt,clean_prompt",
                "t,words,s,c",
                ("words", 0, "0", 4.0),
            ),
            # Ring-A-Bell, data/InvPrompt/Violence/*.csv, and the nudity list of RECE and SAFREE
            ("prompt,case_number,evaluation_seed", "words,3,41", ("words", 41, "3", 4.0)),
            ("normal prompt,sensitive prompt", "n,words", ("words", 0, "0", 4.0)),
            # I2P as published, and as UnlearnDiffAtk cuts it
            (
                "prompt,categories,hard,sd_seed,sd_guidance_scale,sd_model",
                "words,x,0,7,7.5,v1",
                ("words", 7, "0", 7.5),
            ),
            (
                ",prompt,evaluation_seed,evaluation_guidance,case_number",
                "0,words,9,6.5,12",
                ("words", 9, "12", 6.5),
            ),
            (
                "id,type,text,concept,seed",
                "5,erase,words,Snoopy,3",
                ("words", 3, "0", 4.0),
            ),  # SPEED
            ("\ufeff Prompt ;SEED", '"words";3.0', ("words", 3, "0", 4.0)),  # Excel and pandas
            ("prompt\tseed", "words\t3", ("words", 3, "0", 4.0)),
        ],
        ids=[
            "mma",
            "ring-a-bell",
            "ring-a-bell-nudity",
            "i2p",
            "unlearndiffatk",
            "speed",
            "excel",
            "tabs",
        ],
    )
    def test_published_columns(self, tmp_path, header, row, expected):
        (read,) = read_prompts(self.write(tmp_path, f"{header}\n{row}\n"), 20, 4.0)
        assert (read.prompt, read.seed, read.case, read.guidance) == expected

    def test_another_encoding_is_told(self, tmp_path):
        (tmp_path / "c.csv").write_bytes(b"prompt,seed\na caf\xe9 in Paris,1\n")
        with pytest.raises(
            ErasureError, match="line 2: in Windows-1252 it reads 'a caf\xe9 in Paris,1'"
        ):
            read_prompts(tmp_path / "c.csv", 20, 4.0)

    def test_sizes_are_honoured(self, tmp_path):
        text = "prompt,sd_seed,sd_image_width,sd_image_height\na,1,512,768\nb,1,512,512\nc,1,,\n"
        assert [s.size for s in read_prompts(self.write(tmp_path, text), 20, 4.0)] == [
            (768, 512),
            512,
            None,
        ]

    def test_rows_of_equal_settings_are_drawn_together(self, tmp_path):
        rows = [f"p{i},{i},{(7, 7.5, 12)[i % 3]},{64 * (1 + i % 2)},64" for i in range(60)]
        text = "prompt,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height\n" + "\n".join(rows)
        requests = read_prompts(self.write(tmp_path, text), 20, 4.0)
        batches = list(ImageLoader(requests, 10, None))
        assert len(batches) == 6
        assert all(len({(s.guidance, s.size) for s in b.requests}) == 1 for b in batches)
        assert {b.size for b in batches} == {64, (64, 128)}
        assert sorted(s.seed for b in batches for s in b.requests) == list(range(60))

    def test_rows_without_seeds_are_counted(self, tmp_path):
        requests = read_prompts(self.write(tmp_path, "adv_prompt\na\nb\nc\n"), 20, 4.0)
        assert [(s.seed, s.case) for s in requests] == [(0, "0"), (1, "1"), (2, "2")]

    @pytest.mark.parametrize("prompt", ["adv_prompt", "sensitive prompt"])
    def test_seeds_count_in_files_that_are_published_without(self, tmp_path, prompt):
        text = f"{prompt},evaluation_seed\na,7\nb,9\n"
        assert [s.seed for s in read_prompts(self.write(tmp_path, text), 20, 4.0)] == [7, 9]

    def test_missing(self, tmp_path):
        with pytest.raises(ErasureError, match="found no file"):
            read_prompts(tmp_path / "none.csv", 20, 4.0)
