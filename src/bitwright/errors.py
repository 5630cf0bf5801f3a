"""Errors that say where, what was found, what was expected and what to do."""

from __future__ import annotations

from typing import Any


class BitwrightError(Exception):
    """A failure told in four parts, printed as one line.

    `where: found; expected ...; fix`

    Args:
        where: the file, site, flag or value that is at fault.
        found: what was there.
        expected: what should have been there; left out when `found` says it all.
        fix: what the reader can do about it.

    Example:
        >>> print(BitwrightError("W", "bits is 17", "1 to 16 bits", "choose W=8"))
        W: bits is 17; expected 1 to 16 bits; choose W=8
    """

    exit_code = 1

    def __init__(self, where: str, found: str, expected: str = "", fix: str = "") -> None:
        self.where, self.found, self.expected, self.fix = where, found, expected, fix
        parts = [f"{where}: {found}", f"expected {expected}" if expected else "", fix]
        super().__init__("; ".join(" ".join(part.split()) for part in parts if part))

    def __reduce__(self) -> tuple[Any, ...]:
        """Its four parts, so that it passes from process to process."""
        return type(self), (self.where, self.found, self.expected, self.fix), self.__dict__


class InputError(BitwrightError):
    """Bad input or usage: exit code 2."""

    exit_code = 2


class UnsupportedError(InputError):
    """The input is valid, but bitwright or the target cannot do it: exit code 2."""


class GoalError(BitwrightError):
    """A goal or a check failed: exit code 1."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its type where it says nothing.

    Example:
        >>> first_line(ValueError("no such axis\\nstack ...")), first_line(KeyError())
        ('no such axis', 'KeyError')
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
