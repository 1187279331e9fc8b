"""Early warnings: each from readings made up for it, and none from a run that holds."""

import math
from dataclasses import replace

import pytest

from legato.errors import LegatoValueError
from legato.stability.readings import AttentionReading, LogitReading, Reading
from legato.stability.rules import Alarm, Thresholds, alarms


def layer(tops, entropy=(2.0, 2.0), exact=True):
    tops = list(tops)
    known = tops if exact else None
    return AttentionReading(
        [top - 1 for top in tops], tops, list(entropy), [2 * top for top in tops], known, known, "kernel"
    )


def reading(step, tops=(5.0, 6.0), **changes):
    calm = Reading(
        step, {"blocks.0": layer(tops)}, LogitReading(3.0, 3.1, -9.0, 8.0), {"blocks.0": 1.0},
        {"weight": 1e-3}, {"weight": 0.1}, {"weight": 1e-4}, {"weight": 1e-8}, {"weight": 1e-3},
    )  # fmt: skip
    return replace(calm, **changes)


def rules(readings, **thresholds):
    return [(alarm.rule, alarm.where) for alarm in alarms(readings, Thresholds(**thresholds))]


def test_a_run_that_holds_raises_no_alarm():
    """Logits that grow slowly, entropy that falls a little, and logits below where growth counts."""
    assert alarms([]) == []
    assert alarms([reading(step, (5.0 * 1.02**step, 6.0)) for step in range(0, 100, 20)]) == []
    assert alarms([reading(0, (0.2, 0.1)), reading(20, (29.0, 3.0))]) == []


@pytest.mark.parametrize("exact", [True, False])
def test_growth_within_the_window(exact):
    """Tenfold in 40 steps is an alarm; in 60 steps, ninefold, or below 30 it is none."""
    first = reading(0, attention={"blocks.0": layer((4.0, 5.0), exact=exact)})
    last = reading(40, attention={"blocks.0": layer((50.0, 4.0), exact=exact)})
    [alarm] = alarms([first, reading(20), last])
    assert (alarm.step, alarm.rule, alarm.where) == (40, "attention growth", "blocks.0")
    assert "attention logits of blocks.0 grow 10x in 40 steps, to 50" in str(alarm)
    assert "qk-layernorm" in alarm.remedy and "warm-up" in alarm.remedy and "learning rate" in alarm.remedy
    assert rules([first, reading(60, (50.0, 4.0))]) == []
    assert rules([first, reading(40, (49.0, 4.0))]) == []
    assert rules([first, last], growth_from=51.0) == []
    assert rules([last]) == []


def test_growth_from_near_nothing_is_counted_from_where_it_matters():
    """From 0.01 to 31 is not three thousandfold but about tenfold: from 3, the least that is looked at."""
    [alarm] = alarms([reading(0, (0.01, 0.01)), reading(20, (31.0, 1.0))])
    assert "grow 10.3x in 20 steps" in alarm.finding


def test_limit_names_the_head():
    [alarm] = alarms([reading(20, (3.0, 2e4))])
    assert alarm.rule == "attention limit" and "2e+04, in head 1" in alarm.finding
    assert rules([reading(20, (3.0, 9.9e3))]) == []


def test_entropy_that_collapses():
    last = reading(20, attention={"blocks.0": layer((5.0, 6.0), (2.0, 0.01))})
    [alarm] = alarms([reading(0), last])
    assert alarm.rule == "attention entropy" and "head 1, fell from 2 to 0.01 nats" in alarm.finding
    always = reading(0, attention={"blocks.0": layer((5.0, 6.0), (2.0, 0.02))})
    assert rules([always, last]) == []  # a head that has always looked at one key
    unknown = reading(0, attention={"blocks.0": replace(layer((5.0, 6.0)), entropy=None)})
    assert rules([unknown, last]) == [] and rules([reading(0, attention={}), last]) == []


@pytest.mark.parametrize("logits", [LogitReading(-31.0, 31.0, -9.0, 8.0), LogitReading(3.0, 3.1, -301.0, 8.0)])
def test_output_logits_that_drift(logits):
    [alarm] = alarms([reading(20, logits=logits)])
    assert alarm.rule == "output logits" and "z-loss" in alarm.remedy and "weight decay" in alarm.remedy
    assert rules([reading(20, logits=None)]) == []


def test_gradients_near_eps():
    """Below ten times eps for three readings in a row."""
    small = [reading(step, gradient_rms={"weight": 9e-8}) for step in (0, 20, 40)]
    [alarm] = alarms(small)
    assert (
        alarm.rule == "small gradient"
        and "9 times the optimizer's eps of 1e-08" in alarm.finding
        and "1e-15" in alarm.remedy
    )
    assert rules(small[:2]) == [] and rules([reading(0), *small[1:]]) == []
    none = [reading(step, gradient_rms={"weight": 0.0}) for step in (0, 20, 40)]
    assert rules(none) == []  # without any gradient eps is not the cause
    assert rules([replace(each, eps={"weight": 0.0}) for each in small]) == []


def test_updates_that_do_nothing():
    dead = [reading(step, update_rms={"weight": 1e-11}) for step in (0, 20, 40)]
    [alarm] = alarms(dead)
    assert (alarm.rule, alarm.where) == ("dead update", "weight")
    assert rules([reading(0), *dead[1:]]) == [] and rules(dead[:2]) == []
    assert rules([replace(dead[0], learning_rate={"weight": 0.0}), *dead[1:]]) == []  # the first step of a warm-up
    assert rules([replace(each, parameter_rms={"weight": 0.0}) for each in dead]) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite(bad):
    found = alarms([reading(20, gradient_rms={"weight": bad}, block_rms={"blocks.0": bad})])
    assert found[0].rule == "not finite" and "block_rms/blocks.0 and" in found[0].finding
    found = alarms([reading(0), reading(20, attention={"blocks.0": layer((math.nan, 1.0), (math.nan, 1.0))})])
    assert [alarm.rule for alarm in found] == ["not finite"]


def test_an_alarm_names_cause_and_remedy():
    alarm = Alarm(20, "rule", "where", "something was seen", "this", "do that")
    assert str(alarm) == "step 20: something was seen. Likely cause: this. Fix: do that"


@pytest.mark.parametrize(
    "change", [{"window": 0}, {"growth": -1.0}, {"limit": math.nan}, {"smallest_logit": 1.0}, {"dead": "0"}]
)
def test_thresholds_that_cannot_be_used(change):
    with pytest.raises(LegatoValueError, match=f"thresholds.{next(iter(change))}: expected a plain finite number"):
        Thresholds(**change)
