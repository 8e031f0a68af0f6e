"""Every error that fanin raises: where it happened, what was expected, what came, what to do.

Each leaf is also the builtin that a user would catch, so `except ValueError` keeps working.
"""

from __future__ import annotations


class FaninError(Exception):
    """Base of all errors of fanin; the message has up to four parts, in one line each.

    Args:
        where: the call, argument, layer path or file that the error is about.
        expected: what would have been right.
        got: what was found instead.
        fix: what the user can do now, as an imperative.

    Example:
        >>> print(ArgumentError("gain(f)", expected="a known name", got="'gelo'", fix="try 'gelu'"))
        gain(f): expected a known name, got 'gelo'; try 'gelu'
    """

    def __init__(
        self,
        where: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.where, self.expected, self.got, self.fix = where, expected, got, fix
        facts = [f"expected {expected}"] if expected else []
        facts += [f"got {got}"] if got else []
        message = f"{where}: {', '.join(facts)}" if facts else where
        super().__init__(f"{message}; {fix}" if fix else message)


class ArgumentError(FaninError, ValueError):
    """An argument has a value outside its domain."""


class ArgumentTypeError(FaninError, TypeError):
    """An argument is of a kind that the function cannot use."""


class UnknownNameError(FaninError, ValueError):
    """A name (activation, rule, recipe, pattern) is not known; near names are listed."""


class NotCoveredError(FaninError, ValueError):
    """A rule does not hold for this activation or layer; the one that does is named."""


class DivergentError(FaninError, ArithmeticError):
    """An expectation does not exist, such as E[exp(Z^2)]."""


class NoSolutionError(FaninError, ArithmeticError):
    """An equation of the theory has no solution in the range that was searched."""


class MissingDependencyError(FaninError, ImportError):
    """An optional package is needed for this call; the extra that brings it is named."""


class DataError(FaninError, OSError):
    """A data file is missing or damaged."""


class TraceError(FaninError, RuntimeError):
    """A model does not run on these inputs, or could not be traced."""


class PlanError(FaninError, ValueError):
    """A plan cannot be made, read, or applied to this model."""


class UnhealthyError(FaninError, RuntimeError):
    """A model failed a check that was asked to stop the work."""


class UninitializedError(FaninError, RuntimeError):
    """Something would be left without a value: a meta tensor, a placeholder, a lost buffer."""
