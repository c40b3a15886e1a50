"""The command `baton`.

Verbs are entry points of the group `baton.commands`, loaded when asked for: whoever owns a verb registers it in
`pyproject.toml`, so no room imports another for the command line's sake and `baton --help` stays quick.
"""

import sys
from importlib.metadata import entry_points, version

import typer

HELP = "Baton: a gateway for prefill/decode-disaggregated LLM serving."


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"baton {version('baton-gateway')}")
        raise typer.Exit


def build(wanted: str | None = None) -> typer.Typer:
    """The command line with every verb, or only with `wanted` if there is a verb of that name."""
    app = typer.Typer(
        name="baton",
        help=HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def root(
        show: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    ) -> None: ...

    verbs = entry_points(group="baton.commands")
    for verb in verbs.select(name=wanted) if wanted in verbs.names else sorted(verbs, key=lambda v: v.name):
        command = verb.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=verb.name)
        else:
            app.command(verb.name)(command)
    return app


def main() -> None:
    """Entry point of the command."""
    try:
        build(sys.argv[1] if len(sys.argv) > 1 else None)()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
