"""The commands of whoever runs a service."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer()
service = typer.Typer(
    help="Look after a service: its tables, people, keys and backups.", no_args_is_help=True
)
app.add_typer(service, name="service")
console = Console(markup=False)

Data = Annotated[
    Path | None,
    typer.Option(help="The service's folder.", show_default="~/.ml_debugger/service"),
]
Database = Annotated[
    str | None,
    typer.Option(help="PostgreSQL, as postgresql+psycopg://user@host/name.", show_default="SQLite"),
]
Objects = Annotated[
    str | None,
    typer.Option(
        help="Where values lie, as s3://bucket/prefix.", show_default="the service's folder"
    ),
]


@app.command()
def serve(
    data: Data = None,
    database: Database = None,
    objects: Objects = None,
    host: Annotated[str | None, typer.Option(help="Where to listen.")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 for any.")] = None,
    root_path: Annotated[
        str | None, typer.Option(help="The path under which a proxy shows the service.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Workers to run beside it.")] = 1,
) -> None:
    """Run the service. `ml_debugger.server.settings` lists what else `MLD_SERVER_...` may say."""
    from ml_debugger.core.errors import StoreError
    from ml_debugger.server import running
    from ml_debugger.server.people import first_login
    from ml_debugger.server.service import Service

    given: dict[str, Any] = {"host": host, "port": port, "root_path": root_path}
    settings = _settings(data, database, objects, **given)
    note = settings.data / "first_login.json"
    with Service(settings) as opened:
        made = first_login(opened, note=note)
        place = opened.projects.objects
        # once, as the tables are: a store that hangs is not to keep a service from starting
        if made is not None and place is not None and not opened.database.postgres:
            try:
                place.make()
            except StoreError as error:
                console.print(f"{error}: `ml-debugger service migrate`", soft_wrap=True)
    if made is not None:
        console.print(
            f"an operator, a project and an API key were made: see {note}, and delete it",
            soft_wrap=True,
        )
    running.serve(settings, workers)


@app.command()
def worker(data: Data = None, database: Database = None, objects: Objects = None) -> None:
    """Do a service's queued work: evaluations. Run as many as the machine can bear."""
    from ml_debugger.server import running

    running.work(_settings(data, database, objects))


@service.command()
def migrate(data: Data = None, database: Database = None, objects: Objects = None) -> None:
    """Make tables and bucket, or bring them up to date; once for each version, with PostgreSQL."""
    from ml_debugger.server.database import Database as Tables
    from ml_debugger.server.objects import Objects as Place

    settings = _settings(data, database, objects)
    tables = Tables(settings.database, settings.data)
    done = tables.migrate()
    tables.close()
    if settings.objects is not None:
        Place(settings.objects, settings.objects_options).make()
    for line in done or ["everything is up to date"]:
        console.print(line)


@service.command()
def tidy(data: Data = None, database: Database = None, objects: Objects = None) -> None:
    """Drop what projects do not keep any longer, and give back space; workers do it hourly."""
    from ml_debugger.server.retention import tidy as act
    from ml_debugger.server.service import Service

    with Service(_settings(data, database, objects)) as opened:
        console.print(f"{act(opened)} epochs dropped")


@service.command()
def backup(
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    data: Data = None,
    database: Database = None,
    objects: Objects = None,
) -> None:
    """Copy the whole service, which may be running, into a folder; keep it as you keep secrets."""
    from ml_debugger.server.backup import backup as act

    act(_settings(data, database, objects), target)
    console.print(f"backed up to {target}", soft_wrap=True)


@service.command()
def restore(
    source: Annotated[Path, typer.Argument(help="What backup made.")],
    data: Data = None,
    database: Database = None,
    objects: Objects = None,
) -> None:
    """Make a service of a backup, in an empty folder and an empty database."""
    from ml_debugger.server.backup import restore as act

    same = act(_settings(data, database, objects), source)
    console.print("restored; `ml-debugger service migrate` brings an older one up to date")
    if not same:
        console.print(
            "MLD_SERVER_SECRET is not what it was: all API keys and logins are void. Set that one, "
            "or make new keys with `ml-debugger service key`",
            soft_wrap=True,
        )


@service.command()
def key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    project: Annotated[str, typer.Option(help="The project's name.")] = "default",
    organization: Annotated[str, typer.Option(help="The organisation's name.")] = "default",
    role: Annotated[str, typer.Option(help="viewer or member.")] = "member",
    days: Annotated[float | None, typer.Option(help="How long it holds; for ever if left out.")] = (
        None
    ),
    data: Data = None,
    database: Database = None,
    objects: Objects = None,
) -> None:
    """Make an API key in the name of the organisation's first admin, and print it, once."""
    from ml_debugger.server.people import admin_key
    from ml_debugger.server.service import Service

    with Service(_settings(data, database, objects)) as opened:
        typer.echo(admin_key(opened, organization, project, name, role, days))


@service.command()
def password(
    email: Annotated[str, typer.Argument(help="Whose.")],
    data: Data = None,
    database: Database = None,
    objects: Objects = None,
) -> None:
    """Give a person a new password, print it, once, and end the person's logins."""
    from ml_debugger.server.people import reset_password
    from ml_debugger.server.service import Service

    with Service(_settings(data, database, objects)) as opened:
        typer.echo(reset_password(opened, email))


@service.command()
def operator(
    email: Annotated[str, typer.Argument(help="Whose.")],
    organization: Annotated[str, typer.Option(help="Of which it becomes an admin.")] = "default",
    data: Data = None,
    database: Database = None,
    objects: Objects = None,
) -> None:
    """Make a person an operator and an organisation's admin; print a new one's password, once."""
    from ml_debugger.server.people import make_operator
    from ml_debugger.server.service import Service

    with Service(_settings(data, database, objects)) as opened:
        password = make_operator(opened, email, organization)
    if password is not None:
        typer.echo(password)


@service.command()
def forget(
    email: Annotated[str, typer.Argument(help="Whom.")],
    data: Data = None,
    database: Database = None,
    objects: Objects = None,
) -> None:
    """Delete a person, with all logins, memberships and keys; what was recorded stays."""
    from ml_debugger.server.people import delete_person
    from ml_debugger.server.service import Service

    with Service(_settings(data, database, objects)) as opened:
        delete_person(opened, email)


@service.command()
def openapi() -> None:
    """Print the description of the interface, in OpenAPI's form."""
    from ml_debugger.server.app import create_app
    from ml_debugger.server.description import describe

    settings = _settings(None, None, None)
    typer.echo(json.dumps(describe(create_app(settings), settings.root_path), indent=1))


def _settings(data: Path | None, database: str | None, objects: str | None, **more: Any) -> Any:
    from ml_debugger.server.settings import read_settings

    given = {"data": data, "database": database, "objects": objects, **more}
    return read_settings(**{name: value for name, value in given.items() if value is not None})
