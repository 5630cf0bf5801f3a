"""What a long measurement has found so far, on disk, so that a run that was killed goes on where it was."""

from __future__ import annotations

import json
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
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(str(path), "cannot be read", "what a run before wrote", "delete it") from error
        for i, line in enumerate(lines):
            try:
                name, value = json.loads(line)
            except (ValueError, TypeError) as error:
                if i == len(lines) - 1:  # the run was killed while it wrote this line
                    path.write_text("".join(f"{whole}\n" for whole in lines[:-1]), encoding="utf-8")
                    return
                raise InputError(f"{path}, line {i + 1}", "cannot be read", "[name, value]", "delete it") from error
            self._found[name] = value

    def get(self, name: str) -> Any:
        """The value of this name, or None."""
        return self._found.get(name)

    def put(self, name: str, value: Any) -> None:
        """Keep a value."""
        self._found[name] = value
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, value], allow_nan=False) + "\n")
