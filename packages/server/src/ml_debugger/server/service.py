"""What every part of a running service shares."""

from typing import Self

from ml_debugger.core.errors import StoreError
from ml_debugger.server.backup import RESTORING
from ml_debugger.server.credentials import Credentials
from ml_debugger.server.database import Database
from ml_debugger.server.jobs import Queue
from ml_debugger.server.projects import Projects
from ml_debugger.server.settings import Settings


class Service:
    """The databases, stores and secrets of a service, opened once in a process.

    Attributes:
        settings: How it runs.
        database: Who there is, and what they may do.
        projects: The stores.
        credentials: Makes and checks what people and programs present.
        queue: Work for workers.
    """

    def __init__(self, settings: Settings) -> None:
        """Open what the settings name; tables are looked at, and not changed.

        Raises:
            StoreError: The database cannot be used.
            SchemaError: It is of another version.
        """
        self.settings = settings
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (settings.data / RESTORING).exists():
            raise StoreError(
                f"{settings.data} was not restored to the end; empty it, the database and the "
                "place in the object store, and restore once more"
            )
        self.database = Database(settings.database, settings.data)
        try:
            if not self.database.postgres:
                self.database.migrate()
            self.database.check()
        except BaseException:
            self.database.close()
            raise
        self.projects = Projects(settings, self.database)
        self.credentials = Credentials(settings.key)
        self.queue = Queue(self.database, settings.max_open_jobs)

    def close(self) -> None:
        """Close everything; idempotent."""
        self.projects.close()
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
