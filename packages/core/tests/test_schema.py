"""Catalogues of earlier schemas become what a new one is."""

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from ml_debugger.core.store import Store, schema

EARLIER = Path(__file__).parent / "schemas"


def tables_in(home):
    """Return all that a catalogue's tables are."""
    engine = create_engine(f"sqlite:///{home / 'catalogue.db'}")
    look = inspect(engine)
    found = {
        name: (
            [(one["name"], str(one["type"]), one["nullable"], one["default"]) for one in columns],
            look.get_pk_constraint(name)["constrained_columns"],
            sorted(str(sorted(one.items())) for one in look.get_foreign_keys(name)),
            sorted(one["column_names"] for one in look.get_unique_constraints(name)),
            sorted(
                (one["name"], one["column_names"], one["unique"]) for one in look.get_indexes(name)
            ),
        )
        for (_, name), columns in look.get_multi_columns().items()
    }
    engine.dispose()
    return found


def test_every_earlier_schema_is_kept():
    assert {int(one.stem) for one in EARLIER.glob("*.sql")} == set(range(1, schema.SCHEMA))


@pytest.mark.parametrize("number", range(1, schema.SCHEMA))
def test_an_earlier_schema_becomes_the_latest(number, tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    with sqlite3.connect(old / "catalogue.db") as raw:
        raw.executescript((EARLIER / f"{number}.sql").read_text())
    raw.close()
    Store(new).close()
    with monkeypatch.context() as patched:
        for name in ("Base", "IdentityRow"):
            patched.setattr(schema, name, None)  # tomorrow's tables are none of a migration's
        Store(old).close()
    migrated, made = tables_in(old), tables_in(new)
    # texts of columns were unique at first: of no use, and SQLite does not take it back
    *kept, unique, indices = migrated["layout"]
    assert unique == [["columns"]]
    migrated["layout"] = (*kept, [], indices)
    assert migrated == made
