"""What a long measurement has found so far, on disk, so that a run that was killed goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitwright.errors import InputError


class Kept:
    """Named JSON values in a file, one a line, each written as soon as it is known.

    Args:
        path: the file; None keeps nothing beyond this object.

    Raises:
        InputError: the file cannot be read or written.

    Example:
        >>> kept = Kept(None)
        >>> kept.put("a", [1.0, 2.0])
        >>> kept.get("a"), kept.get("b")
        ([1.0, 2.0], None)
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._found: dict[str, Any] = {}
        if path is None or not path.exists():
            return
        try:
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):  # a run was killed while it wrote its last line
                with path.open("r+b") as file:
                    file.truncate(whole)
        except OSError as error:
            raise InputError(str(path), "cannot be read", "what a run before wrote", "delete it") from error
        for i, line in enumerate(content[:whole].splitlines()):
            try:
                name, value = json.loads(line)
                self._found[name] = value
            except (ValueError, TypeError) as error:
                raise InputError(f"{path}, line {i + 1}", "cannot be read", "[name, value]", "delete it") from error

    def get(self, name: str) -> Any:
        """The value of this name, or None."""
        return self._found.get(name)

    def once(self, name: str, measured: Callable[[], Any]) -> Any:
        """The value of this name, measured and kept where there is none.

        Raises:
            InputError: the file cannot be written.

        Example:
            >>> kept = Kept(None)
            >>> kept.once("a", lambda: 1.0), kept.once("a", lambda: 2.0)
            (1.0, 1.0)
        """
        found = self.get(name)
        if found is None:
            found = measured()
            self.put(name, found)
        return found

    def put(self, name: str, value: Any) -> None:
        """Keep a value.

        Raises:
            InputError: the file cannot be written.
        """
        self._found[name] = value
        if self.path is None:
            return
        line = json.dumps([name, value], allow_nan=False)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:
            raise InputError(
                str(self.path), f"cannot be written: {error.strerror}", fix="choose another folder"
            ) from error
