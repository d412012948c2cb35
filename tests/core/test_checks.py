from dataclasses import dataclass, field

import pytest

from reloc_core.checks import Checks
from reloc_core.errors import ConfigError


@dataclass
class Train:
    loss: str = "l1"
    rate: float = 0.5
    steps: int | None = 3


@dataclass
class Config:
    keypoints: int = 4
    train: Train = field(default_factory=Train)


def checked(**train):
    return Checks(Config(train=Train(**train)))


NAN = float("nan")


@pytest.mark.parametrize(
    ("train", "check", "message"),
    [
        ({"loss": "l3"}, lambda c: c.one_of("train.loss", ("l1", "l2")), "estimator.train.loss is 'l3'. Known: l1, l2."),
        ({"steps": 0}, lambda c: c.at_least(1, "train.steps"), "estimator.train.steps must be at least 1, got 0."),
        ({"rate": NAN}, lambda c: c.at_least(1, "train.rate"), "at least 1, got nan"),
        ({"rate": 0.0}, lambda c: c.positive("train.rate"), "must be positive, got 0.0."),
        ({"rate": NAN}, lambda c: c.positive("train.rate"), "must be positive, got nan."),
        ({"rate": -0.1}, lambda c: c.not_negative("train.rate"), "must not be negative, got -0.1."),
        ({"rate": 1.1}, lambda c: c.share("train.rate"), "must lie between 0 and 1, got 1.1."),
        ({"rate": 1.0}, lambda c: c.share("train.rate", whole=False), "at least 0 and below 1, got 1.0."),
        ({"rate": NAN}, lambda c: c.share("train.rate"), "got nan"),
        ({}, lambda c: c.require(False, "keypoints", "be even"), "estimator.keypoints must be even, got 4."),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(train, check, message):
    with pytest.raises(ConfigError) as error:
        check(checked(**train))
    assert message in str(error.value)


def test_what_makes_sense_passes():
    options = checked(steps=None, rate=1.0)
    options.one_of("train.loss", {"l1": 1, "l2": 2})
    options.at_least(4, "keypoints", "train.steps")
    options.positive("train.rate", "train.steps")
    options.not_negative("train.rate")
    options.share("train.rate")
    options.require(True, "keypoints", "be even")


def test_the_prefix_is_the_callers():
    with pytest.raises(ConfigError, match=r"^refiner\.keypoints must be at least 5, got 4\.$"):
        Checks(Config(), "refiner.").at_least(5, "keypoints")
