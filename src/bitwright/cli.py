"""The command line: one command a verb, its flags made from the verb's dataclass fields."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any, get_type_hints

import click
from rich.console import Console

from bitwright import __version__
from bitwright.errors import BitwrightError
from bitwright.lookup import Row, did_you_mean
from bitwright.verbs import VERBS


class _Verbs(click.Group):
    """Commands by name; a verb's module is imported when its command is used, so that `--help` stays light."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = VERBS.get(cmd_name)
        return click.Command(cmd_name, help=row.help, short_help=row.help) if row else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS:
            raise click.UsageError(f"there is no command {name!r}; {did_you_mean(name, VERBS)}")
        return name, _command(name, VERBS[name]), args[1:]


def _command(name: str, row: Row) -> click.Command:
    verb = row.load()
    hints = get_type_hints(verb)
    parameters = [_parameter(field, hints[field.name]) for field in dataclasses.fields(verb)]
    parameters += [
        click.Option(["--json", "json_"], is_flag=True, help="Print one JSON object on stdout."),
        click.Option(["--quiet", "quiet_"], is_flag=True, help="No notes, no progress bar."),
        click.Option(["--seed", "seed_"], type=int, default=0, show_default=True, help="Of everything random."),
    ]

    def command(json_: bool, quiet_: bool, seed_: int, **values: Any) -> int:
        return _run(verb(**values), json_, quiet_, seed_)

    return click.Command(name, callback=command, params=parameters, help=inspect.getdoc(verb))


def _parameter(field: dataclasses.Field[Any], hint: Any) -> click.Parameter:
    """A dataclass field as a parameter; tuples of strings become repeatable flags."""
    several = hint == tuple[str, ...]
    required = field.default is dataclasses.MISSING
    kind = str if several else hint
    help_text = field.metadata["help"]
    sentence = help_text[0].upper() + help_text[1:] + "."
    if field.metadata.get("argument"):
        return click.Argument([field.name], type=kind, nargs=-1 if several else 1, required=required)
    names = field.metadata.get("names") or (f"--{field.name.replace('_', '-')}",)
    if hint is bool:
        return click.Option([*names, field.name], is_flag=True, default=field.default, help=sentence)
    return click.Option(
        [*names, field.name], type=kind, multiple=several, default=field.default, help=sentence,
        show_default=field.default not in ("", (), 0),
    )  # fmt: skip


def _run(verb: Any, as_json: bool, quiet: bool, seed: int) -> int:
    from bitwright.verbs.terminal import Terminal

    outcome = verb.run(Terminal(quiet=quiet, seed=seed))
    if as_json:
        print(json.dumps(outcome.json, allow_nan=False))
    else:
        Console(highlight=False, soft_wrap=True).print(outcome.text)
    return int(outcome.exit_code)


@click.group(cls=_Verbs, no_args_is_help=True)
@click.version_option(__version__, message="%(version)s")
def _root() -> None:
    """Turn a trained network into a small, fast integer network, and prove what that cost."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 a goal failed, 2 bad input."""
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
    try:
        code = _root.main(args=None if arguments is None else list(arguments), prog_name="bitwright", standalone_mode=False)
        return int(code or 0)
    except BitwrightError as error:
        print(f"bitwright: {error}", file=sys.stderr)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 2
    except click.ClickException as error:
        print(f"bitwright: {error.format_message()}", file=sys.stderr)
        return 2
    except (click.Abort, KeyboardInterrupt):
        print("bitwright: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
