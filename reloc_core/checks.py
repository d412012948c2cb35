"""Checks of the values of a component's configuration. Light: plugins use it where they register.

    from reloc_core.checks import Checks

    def check(config: MyConfig) -> None:
        options = Checks(config)
        options.one_of("train.loss", ("l1", "l2"))
        options.at_least(1, "keypoints", "train.iterations")
        options.positive("train.learning_rate")

Types need no check: configurations arrive typed. Every refusal names the option as a user writes it.
"""

from __future__ import annotations

from collections.abc import Iterable

from reloc_core.errors import ConfigError, did_you_mean


class Checks:
    """Refuses values of options that make no sense.

    Not-a-number passes none of the checks. Options that are None are unset and pass all of them.

    Args:
        config: a config dataclass, nested or not.
        prefix: put before the paths in messages.
    """

    def __init__(self, config: object, prefix: str = "estimator.") -> None:
        self._config, self._prefix = config, prefix

    def _value(self, path: str) -> object:
        node = self._config
        for key in path.split("."):
            node = getattr(node, key)
        return node

    def _numbers(self, paths: Iterable[str]) -> Iterable[tuple[str, float]]:
        for path in paths:
            value = self._value(path)
            if value is None:
                continue
            assert isinstance(value, (int, float)), f"{path} is no number"
            yield path, value

    def require(self, condition: bool, path: str, rule: str) -> None:
        """Refuse the value of `path` unless the condition holds; `rule` completes "must ..."."""
        if not condition:
            raise ConfigError(f"{self._prefix}{path} must {rule}, got {self._value(path)}.")

    def one_of(self, path: str, known: Iterable[str]) -> None:
        """Refuse a word that is not among the known ones."""
        value, known = str(self._value(path)), tuple(known)
        if value not in known:
            raise ConfigError(f"{self._prefix}{path} is '{value}'.{did_you_mean(value, known)}")

    def at_least(self, bound: float, *paths: str) -> None:
        """Refuse numbers below a bound."""
        for path, value in self._numbers(paths):
            self.require(value >= bound, path, f"be at least {bound}")

    def positive(self, *paths: str) -> None:
        """Refuse zero and numbers below."""
        for path, value in self._numbers(paths):
            self.require(value > 0, path, "be positive")

    def not_negative(self, *paths: str) -> None:
        """Refuse numbers below zero."""
        for path, value in self._numbers(paths):
            self.require(value >= 0, path, "not be negative")

    def share(self, *paths: str, whole: bool = True) -> None:
        """Refuse numbers outside 0 to 1; `whole`: whether 1 itself is allowed."""
        for path, value in self._numbers(paths):
            rule = "lie between 0 and 1" if whole else "be at least 0 and below 1"
            self.require(0 <= value < 1 or (whole and value == 1), path, rule)
