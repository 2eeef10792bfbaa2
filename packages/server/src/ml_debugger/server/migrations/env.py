"""Alembic's entry: the connection is the service's own."""

from alembic import context

from ml_debugger.server.tables import Base

with context.config.attributes["engine"].begin() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
