from dataclasses import replace

import pytest
from report_runs import ESTIMATES, PROTOCOL, description, estimate, make_run, outcome, recognized

from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.report.run_record import Attempt, read_facts
from erasure_lightning.report.wording import asides, interval, limits, percent, unseen, verdict


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        (0, 0, "0 %"), (1, 0, "100 %"), (0.004, 0, "<1 %"), (0.996, 0, ">99 %"), (0.5, 0, "50 %"),
        (0.0004, 1, "<0.1 %"), (0.988, 1, "98.8 %"), (0.9996, 1, ">99.9 %"), (1.0, 1, "100 %"), (float("nan"), 0, "?"),
    ],
)  # fmt: skip
def test_a_share_looks_like_none_or_all_only_if_it_is(share, digits, text):
    assert percent(share, digits).replace("\u00a0", " ") == text


def test_an_interval_is_in_percent():
    assert interval(Estimate(0.5, 0.255, 1.0, 3, 9), 1).replace("\u00a0", " ") == "[25.5, 100]"


def said(pieces):
    return "".join(piece.text for piece in pieces).replace("\u00a0", " ")


@pytest.fixture
def facts(tmp_path):
    return read_facts(make_run(tmp_path / "run"))


def measured(facts, **estimates):
    return replace(facts, result=replace(facts.result, estimates=estimates))


class TestVerdict:
    def test_what_went_and_what_stayed(self, facts):
        assert (
            said(verdict(facts))
            == "Asked for by name, it is drawn in 0 % [0, 0] of pictures (before: 100 %); other"
            " things stay: 98 % [95, 100] of pictures (before: 99 %)."
        )
        assert [piece.text.replace("\u00a0", " ") for piece in verdict(facts) if piece.strong] == [
            "0 %",
            "98 %",
        ]

    def test_asides_tell_of_other_words_and_of_the_strongest_attack(self, facts):
        success = facts.attacks[0].outcome.success | {"attacked": estimate(0.1)}
        weak = outcome(description(), attack="Weak", success=success), None
        told = [
            said(aside)
            for aside in asides(replace(facts, attacks=(Attempt(*weak), *facts.attacks)))
        ]
        assert told == [
            "Called by other words (kitten): 25 % [10, 40] of pictures (before: 90 %).",
            (
                "Under the strongest of 2 attacks (UnlearnDiffAtk), it comes back in 50 % [20, 80]"
                " of pictures."
            ),
        ]

    def test_no_attack_is_told(self, facts):
        assert said(asides(replace(facts, attacks=()))[-1]) == "No attack was tried on it."

    def test_without_a_scorer(self, facts):
        blind = measured(facts, structure=ESTIMATES["structure"])
        assert said(verdict(blind)).startswith(
            "No scorer was there to recognise things, so whether the concept is gone"
        )
        assert "moved by 0.030 [0.020, 0.040] of their range." in said(verdict(blind))

    def test_figures_that_are_no_number_are_none(self, facts):
        nothing = Estimate(*[float("nan")] * 3, 0, 0)
        odd = measured(facts, efficacy=recognized(nothing, nothing), structure={})
        assert said(verdict(odd)).endswith("only pixels were compared.")

    def test_what_was_kept_alone(self, facts):
        kept = measured(facts, specificity=ESTIMATES["specificity"])
        assert said(verdict(kept)).startswith(
            "Whether it is gone was not measured; other things stay: 98 %"
        )

    def test_nothing_measured_and_nothing_made(self, facts):
        assert (
            said(verdict(replace(facts, result=None)))
            == "Nothing was measured of this edit, but the attacks on it."
        )
        nothing = replace(facts, result=None, attacks=())
        assert said(verdict(nothing)).endswith("so nothing is known of what it does.")
        assert said(verdict(replace(facts, result=None, edit=None))).startswith(
            "This run has not finished"
        )


class TestLimits:
    def test_none_of_few_pictures_is_no_proof(self, facts):
        assert "up to 39 % of pictures would still pass" in " ".join(limits(facts)).replace(
            "\u00a0", " "
        )
        some = measured(facts, **ESTIMATES | {"efficacy": recognized(estimate(1.0), estimate(0.2))})
        assert "would still pass" not in " ".join(limits(some))

    def test_the_chance_is_what_it_says(self):
        assert (1 - unseen(9)) ** 9 == pytest.approx(0.05)
        assert unseen(0) == 1

    def test_what_was_not_done_is_named(self, facts):
        assert "No attack was tried" in " ".join(limits(replace(facts, attacks=())))
        assert "a stronger one" in " ".join(limits(facts))
        assert limits(replace(facts, result=None))[0].startswith(
            "Beside the attacks, nothing was measured"
        )
        assert limits(replace(facts, result=None, attacks=()))[0].startswith("Nothing was measured")


def test_a_protocol_names_no_folder(facts):
    assert "/home" not in str(verdict(facts)) + str(limits(facts))
    assert PROTOCOL.scorer.startswith("/home")
