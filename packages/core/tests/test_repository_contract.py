"""The local store keeps what a repository promises."""

from pathlib import Path

from typing_extensions import override

from ml_debugger.core import ModelVersion, Repository, Store
from ml_debugger.testing import RepositoryContract


class TestLocalRepository(RepositoryContract):
    @override
    def open(self, folder: Path) -> Repository:
        return Store(folder).register(
            ModelVersion("model", "v1"),
            task="classification",
            architecture=["parameter weight: 2x2 float32"],
            layers={"stem": "0"},
            fields=self.fields,
            label_fields=self.label_fields,
        )
