"""Position, and preference whatever is asked, cancel; what is left is the attribute."""

import itertools
import math

import pytest

from biasgym_tl.benchmarks.contrast import contrast


def questions(attribute, position, preference):
    """Log-probabilities of subjects 1 and 2; each effect is in log-odds of subject 1."""
    for asked, order in itertools.product((1, -1), (1, -1)):
        log_odds = asked * attribute + order * position + preference
        yield -7.0 + log_odds / 2, -7.0 - log_odds / 2


@pytest.mark.parametrize("position", [0.0, 2.0, -3.0])
@pytest.mark.parametrize("preference", [0.0, 1.5])
def test_only_the_attribute_is_left(position, preference):
    assert contrast([*questions(0.0, position, preference)]) == pytest.approx((0, 0))
    for attribute in (0.7, -0.7):
        found = contrast([*questions(attribute, position, preference)])
        assert found.nats == pytest.approx(attribute)
        assert math.copysign(1, found.probability) == math.copysign(1, attribute)


def test_the_paper_s_score_from_its_definition():
    """C = (B(1) - B(2)) / 2, B(x) = mean over orders of S(x | a) - mean over orders of S(x | b)."""
    shares = {("a", 12): 0.9, ("a", 21): 0.4, ("b", 12): 0.5, ("b", 21): 0.2}  # of subject 1
    b1 = (0.9 + 0.4) / 2 - (0.5 + 0.2) / 2
    b2 = (0.1 + 0.6) / 2 - (0.5 + 0.8) / 2
    found = contrast([(math.log(p / 10), math.log((1 - p) / 10)) for p in shares.values()])
    assert found.probability == pytest.approx((b1 - b2) / 2)
    assert found.probability == pytest.approx(0.3)
    log_odds = [math.log(p / (1 - p)) for p in shares.values()]
    assert found.nats == pytest.approx((sum(log_odds[:2]) - sum(log_odds[2:])) / 4)


def test_certainty_is_one_and_does_not_overflow():
    always = [(0.0, -5000.0)] * 2 + [(-5000.0, 0.0)] * 2
    assert contrast(always) == pytest.approx((5000.0, 1.0))
