"""How often a job has failed or stalled, and when a project was served last."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns, and an index."""
    for name in ("failures", "stalls"):
        op.add_column("job", sa.Column(name, sa.Integer(), server_default="0", nullable=False))
    op.create_index("job_served", "job", ["project_id", "started_at"])


def downgrade() -> None:
    """Take them away."""
    op.drop_index("job_served", "job")
    with op.batch_alter_table("job") as batch_op:
        for name in ("failures", "stalls"):
            batch_op.drop_column(name)
