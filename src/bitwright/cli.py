"""The command line: one command a verb, its flags made from the verb's dataclass fields."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, get_type_hints

import click
from rich.console import Console, RenderableType

from bitwright import __version__
from bitwright.errors import BitwrightError
from bitwright.lookup import Row, did_you_mean
from bitwright.verbs import VERBS

#: Columns of what is not read on a terminal: a table's rows stay whole, so that other programs find them.
UNWRAPPED = 10_000


class _Command(click.Command):
    """A command whose help tells what its arguments are, not only its flags."""

    def __init__(self, *args: Any, argument_help: dict[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.argument_help = argument_help

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        arguments = [p for p in self.params if isinstance(p, click.Argument)]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([(a.make_metavar(ctx), self.argument_help[a.name or ""]) for a in arguments])
        super().format_options(ctx, formatter)


class _Verbs(click.Group):
    """Commands by name; a verb's module is imported when its command is used, so that `--help` stays light.

    A verb of two words, `plan show`, is a command of the group `plan`, which has no row of its own.
    """

    def __init__(self, *args: Any, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name.removeprefix(self.prefix) for name in VERBS if name.startswith(self.prefix)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = VERBS.get(self.prefix + cmd_name)
        return click.Command(cmd_name, help=row.help, short_help=row.help) if row else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = self.prefix + args[0], self.list_commands(ctx)
        if name in VERBS:
            return args[0], _command(args[0], VERBS[name]), args[1:]
        if any(verb.startswith(f"{name} ") for verb in VERBS):
            group = _Verbs(args[0], prefix=f"{name} ", no_args_is_help=True, help=f"The commands of {name}.")
            return args[0], group, args[1:]
        raise click.UsageError(f"there is no command {name!r}; {did_you_mean(args[0], known)}")


def _command(name: str, row: Row) -> click.Command:
    verb = row.load()
    hints = get_type_hints(verb)
    fields = own_first(verb)
    parameters = [_parameter(field, hints[field.name]) for field in fields]
    parameters += [
        click.Option(["--json", "json_"], is_flag=True, help="Print one JSON object on stdout."),
        click.Option(["--quiet", "quiet_"], is_flag=True, help="No notes, no progress bar."),
        click.Option(["--seed", "seed_"], type=int, default=0, show_default=True, help="Of everything random."),
    ]

    def command(json_: bool, quiet_: bool, seed_: int, **values: Any) -> int:
        return _run(verb(**values), json_, quiet_, seed_)

    told = {field.name: _sentence(field) for field in fields if field.metadata.get("argument")}
    return _Command(name, callback=command, params=parameters, help=inspect.getdoc(verb), argument_help=told)


def own_first(verb: type) -> list[dataclasses.Field[Any]]:
    """A verb's fields, its own before those that it shares with others: so they stand in its help."""
    classes = [cls for cls in verb.__mro__ if dataclasses.is_dataclass(cls)]
    place: dict[str, int] = {}
    for i, cls in enumerate(classes):
        for name in inspect.get_annotations(cls):
            place.setdefault(name, i)
    return sorted(dataclasses.fields(verb), key=lambda field: place[field.name])


def _sentence(field: dataclasses.Field[Any]) -> str:
    text: str = field.metadata["help"]
    return text[0].upper() + text[1:] + "."


def _parameter(field: dataclasses.Field[Any], hint: Any) -> click.Parameter:
    """A dataclass field as a parameter; tuples of strings become repeatable flags, and None is a flag not given."""
    several = hint == tuple[str, ...]
    required = field.default is dataclasses.MISSING
    kind = str if several else int if hint == int | None else hint
    sentence = _sentence(field)
    if field.metadata.get("argument"):
        extra: dict[str, Any] = {} if required or several else {"default": field.default}
        return click.Argument([field.name], type=kind, nargs=-1 if several else 1, required=required, **extra)
    names = field.metadata.get("names") or (f"--{field.name.replace('_', '-')}",)
    if hint is bool:
        return click.Option([*names, field.name], is_flag=True, default=field.default, help=sentence)
    return click.Option(
        [*names, field.name], type=kind, multiple=several, default=field.default, help=sentence,
        show_default=field.default not in ("", (), 0, None),
    )  # fmt: skip


def _run(verb: Any, as_json: bool, quiet: bool, seed: int) -> int:
    from bitwright.verbs.terminal import Terminal

    if not quiet and sys.stderr.isatty():  # what a long step has done so far
        logging.getLogger("bitwright").setLevel(logging.INFO)
    outcome = verb.run(Terminal(quiet=quiet, seed=seed))
    if as_json:
        print(json.dumps(outcome.json, allow_nan=False))
    else:
        print(rendered(outcome.text))
    sys.stdout.flush()  # while click listens: it ends quietly when a reader such as `head` has gone
    return int(outcome.exit_code)


def rendered(text: RenderableType) -> str:
    """What people read, as wide as the terminal; a line that does not reach its end has no blanks behind it."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else UNWRAPPED
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    with console.capture() as captured:
        console.print(text, crop=False)
    lines = "\n".join(line.rstrip() for line in captured.get().splitlines())
    encoding = sys.stdout.encoding or "utf-8"
    return lines.encode(encoding, errors="replace").decode(encoding)


@click.group(cls=_Verbs, no_args_is_help=True)
@click.version_option(__version__, message="%(version)s")
def _root() -> None:
    """Turn a trained network into a small, fast integer network, and prove what that cost."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 a goal failed, 2 bad input."""
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
    given = None if arguments is None else list(arguments)
    try:
        code = _root.main(args=given, prog_name="bitwright", standalone_mode=False)
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
