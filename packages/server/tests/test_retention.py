"""Old epochs are dropped where a project says so, and nothing else is."""

from datetime import UTC, datetime, timedelta

import pytest

from ml_debugger.core.store.parts import Part
from ml_debugger.server.retention import tidy
from ml_debugger.server.settings import Settings

from .seeded import VERSION, compressed, record, seeded
from .serving import project_store


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(params=["sqlite and files", "postgres and objects"])
def settings(request, tmp_path):
    if request.param == "sqlite and files":
        return Settings(data=tmp_path / "service")
    postgres, s3 = map(request.getfixturevalue, ("postgres", "s3"))
    return Settings(
        data=tmp_path / "service",
        database=postgres.new_database(),
        objects=f"{s3.new_bucket()}/records",
        objects_options=s3.storage_options,
    )


def test_epochs_are_dropped_when_nobody_wrote_to_them_for_long(settings, recorded):
    later = datetime.now(UTC) + timedelta(days=29)
    with seeded(settings, recorded) as there:
        store = project_store(there.service)
        assert tidy(there.service, later) == 0  # a project keeps everything by default
        change = {"name": "default", "retention_days": 30}
        answer = there.client.put(there.project, json=change, headers=there.operator)
        assert answer.json()["retention_days"] == 30
        assert tidy(there.service, later) == 0
        assert store.open(VERSION).records().inputs == 120
        assert tidy(there.service, later + timedelta(days=2)) == 1
        assert store.open(VERSION).records().inputs == 0
        usage = there.client.get(
            f"/api/v1/organizations/{there.ids['organization_id']}/usage", headers=there.operator
        )
        assert usage.json() == {"models": 0, "records": 0, "bytes": 0}
        if settings.objects is not None:
            assert list(there.service.projects.objects.ages(f"{store._name}/segments")) == []


def test_a_model_counts_while_it_has_records(recorded, tmp_path):
    """One of which everything was deleted makes room for another."""
    digest, content = recorded.part.pack()
    chunks = [
        one.model_copy(update={"origin": f"{'0' * 32}:{k}:{'0' * 16}"})
        for k, one in enumerate(recorded.part.header.chunks)
    ]
    header = recorded.part.header.model_copy(update={"chunks": chunks})
    other, others = Part(header, recorded.part.bodies).pack()
    with seeded(Settings(data=tmp_path / "service"), recorded) as there:
        quotas = f"/api/v1/organizations/{there.ids['organization_id']}/quotas"
        more = {**recorded.version, "model_name": "more"}

        def declare():
            return there.client.post(f"{there.project}/versions", json=more, headers=there.key)

        number = declare().json()["id"]
        answer = there.client.put(quotas, json={"max_models": 1}, headers=there.operator)
        assert answer.json()["max_models"] == 1
        assert declare().status_code == 402
        # it was declared while there was room, and there is none now
        assert there.put(compressed(others), other, number).status_code == 402
        version = f"{there.project}/versions/{there.ids['version_id']}"
        assert there.client.delete(version, headers=there.operator).status_code == 204
        assert declare().status_code == 200
        assert there.put(compressed(others), other, number).json() == {"records": 120}
        # the first is now the one too many, until the second goes
        assert there.put(compressed(content), digest).status_code == 402
