from dataclasses import replace

import pytest
from report_runs import ESTIMATES, PROTOCOL, description, estimate, make_run, outcome, recognized

from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.report.run_record import AttackRecord, read_run_record
from erasure_lightning.report.wording import (
    interval,
    limitations,
    percent,
    remarks,
    undetected_share,
    verdict,
)


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        (0, 0, "0 %"),
        (1, 0, "100 %"),
        (0.004, 0, "<1 %"),
        (1 / 200, 0, "<1 %"),
        (0.996, 0, ">99 %"),
        (0.5, 0, "50 %"),
        (0.0004, 1, "<0.1 %"),
        (0.988, 1, "98.8 %"),
        (0.9996, 1, ">99.9 %"),
        (1.0, 1, "100 %"),
        (float("nan"), 0, "?"),
    ],
)
def test_only_exact_shares_are_written_as_0_or_100_percent(share, digits, text):
    assert percent(share, digits).replace("\u00a0", " ") == text


def test_an_interval_is_in_percent():
    assert interval(Estimate(0.5, 0.255, 1.0, 3, 9), 1).replace("\u00a0", " ") == "[25.5, 100]"


def text(sentence):
    return "".join(piece.text for piece in sentence).replace("\u00a0", " ")


@pytest.fixture
def record(tmp_path):
    return read_run_record(make_run(tmp_path / "run"))


def measured(record, **estimates):
    return replace(record, result=replace(record.result, estimates=estimates))


class TestVerdict:
    def test_shares_of_the_concept_and_of_others(self, record):
        erased = "Prompted by name, it is shown in 0 % [0, 0] of images (before: 100 %)"
        others = "other concepts are shown in 98 % [95, 100] of images (before: 99 %)"
        assert text(verdict(record)) == f"{erased}; {others}."
        strong = [piece.text.replace("\u00a0", " ") for piece in verdict(record) if piece.strong]
        assert strong == ["0 %", "98 %"]

    def test_remarks_on_other_words_and_the_strongest_attack(self, record):
        success = record.attacks[0].outcome.success | {"attacked": estimate(0.1)}
        weak = AttackRecord(outcome(description(), attack="Weak", success=success), None)
        sentences = remarks(replace(record, attacks=(weak, *record.attacks)))
        attack = "Under the strongest of 2 attacks (UnlearnDiffAtk)"
        assert list(map(text, sentences)) == [
            "Prompted by other words (kitten): 25 % [10, 40] of images (before: 90 %).",
            f"{attack}, it is shown in 50 % [20, 80] of images.",
        ]

    def test_a_run_without_attacks(self, record):
        assert text(remarks(replace(record, attacks=()))[-1]) == "It was not attacked."

    def test_without_a_scorer(self, record):
        sentence = text(verdict(measured(record, structure=ESTIMATES["structure"])))
        assert sentence.startswith("No scorer recognised what the images show, so erasure was not")
        assert "changed by 0.030 [0.020, 0.040] of their range." in sentence

    def test_figures_that_are_not_finite_are_left_out(self, record):
        nan = Estimate(*[float("nan")] * 3, 0, 0)
        sentence = text(verdict(measured(record, efficacy=recognized(nan, nan), structure={})))
        assert sentence.endswith("only pixels were compared.")

    def test_retention_alone(self, record):
        sentence = text(verdict(measured(record, specificity=ESTIMATES["specificity"])))
        assert sentence.startswith("Erasure was not measured; other concepts are shown in 98 %")

    def test_without_figures_or_an_edit(self, record):
        attacked = replace(record, result=None)
        sentence = text(verdict(attacked))
        assert sentence == "No images of this edit were measured, only attacks on it."
        sentence = text(verdict(replace(attacked, attacks=())))
        assert sentence.endswith("so its effect is unknown.")
        sentence = text(verdict(replace(attacked, edit=None)))
        assert sentence.startswith("This run has not finished")


class TestLimitations:
    def test_a_rate_that_few_images_would_miss_is_named(self, record):
        sentences = " ".join(limitations(record)).replace("\u00a0", " ")
        assert "up to 39 % of images would still pass" in sentences
        some = measured(
            record, **ESTIMATES | {"efficacy": recognized(estimate(1.0), estimate(0.2))}
        )
        assert "would still pass" not in " ".join(limitations(some))

    def test_a_concept_that_the_original_does_not_draw_shows_nothing(self, record):
        assert "in none of these images either" not in " ".join(limitations(record))
        never = measured(record, efficacy=recognized(estimate(0.0), estimate(0.0)))
        assert "in none of these images either" in " ".join(limitations(never))

    def test_the_rate_is_missed_with_a_probability_of_5_percent(self):
        assert (1 - undetected_share(9)) ** 9 == pytest.approx(0.05)
        assert undetected_share(0) == 1

    def test_missing_measurements_are_named(self, record):
        not_attacked = replace(record, attacks=())
        assert "The edit was not attacked" in " ".join(limitations(not_attacked))
        assert "a stronger one" in " ".join(limitations(record))
        first = limitations(replace(record, result=None))[0]
        assert first == "No figures were measured apart from the attacks."
        first = limitations(replace(not_attacked, result=None))[0]
        assert first.startswith("No figures were measured: ")


def test_sentences_name_no_folder(record):
    assert "/home" not in str(verdict(record)) + str(limitations(record))
    assert PROTOCOL.scorer.startswith("/home")
