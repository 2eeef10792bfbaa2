"""Alembic's entry: the connection is the service's own."""

from alembic import context
from sqlalchemy import text

from ml_debugger.core.store.catalogue import WRITE
from ml_debugger.server.tables import Base

LOCK = 0x6D6C64  # any number that all processes agree on

engine = context.config.attributes["engine"]
if engine.dialect.name == "sqlite":
    engine = engine.execution_options(**WRITE)
with engine.begin() as connection:
    if engine.dialect.name != "sqlite":  # one process at a time; the others find it done
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
