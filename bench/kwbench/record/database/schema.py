"""The tables of a database. Raise `SCHEMA_VERSION` with any change, and add the step to `migrations`."""

import sqlalchemy as sa

from kwbench.outcome import Status

SCHEMA_VERSION = 5

metadata = sa.MetaData()

# One row.
schema_version = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, primary_key=True))

evaluations = sa.Table(
    "evaluations",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("identity", sa.String(64), nullable=False, unique=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("dataset", sa.String, nullable=False),
    sa.Column("suite", sa.String, nullable=False),
    sa.Column("norm", sa.String, nullable=False),
    sa.Column("eps", sa.String, nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("stochastic", sa.Boolean, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("provenance", sa.Text, nullable=False),
    sa.Column("created", sa.String, nullable=False),
    # When it was last asked for, by the wall clock; `evaluation_checksums` has the order.
    sa.Column("asked", sa.String, nullable=False),
    sa.CheckConstraint("n > 0"),
)

attack_runs = sa.Table(
    "attack_runs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("identity", sa.String(64), nullable=False, unique=True),
    sa.Column("label", sa.String, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
)

# The attack runs of each evaluation, in order. Evaluations share runs.
members = sa.Table(
    "members",
    metadata,
    sa.Column("evaluation", sa.ForeignKey("evaluations.id"), primary_key=True),
    sa.Column("attack_run", sa.ForeignKey("attack_runs.id"), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
)

_STATUSES = ", ".join(f"'{status}'" for status in Status)

outcomes = sa.Table(
    "outcomes",
    metadata,
    sa.Column("attack_run", sa.ForeignKey("attack_runs.id"), primary_key=True),
    sa.Column("sample", sa.String(32), primary_key=True),
    # Position in the split. The name is an SQL keyword, which SQLAlchemy quotes.
    sa.Column("index", sa.Integer, nullable=False),
    sa.Column("label", sa.Integer, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("clean_prediction", sa.Integer),
    sa.Column("prediction", sa.Integer),
    sa.Column("distance", sa.Float),
    sa.Column("other_status", sa.String),
    sa.Column("surrogate_prediction", sa.Integer),
    sa.Column("selection_correct", sa.Integer, nullable=False),
    sa.Column("selection_draws", sa.Integer, nullable=False),
    sa.Column("fresh_correct", sa.Integer, nullable=False),
    sa.Column("fresh_draws", sa.Integer, nullable=False),
    sa.Column("forwards", sa.Integer, nullable=False),
    sa.Column("backwards", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.CheckConstraint(f"status IN ({_STATUSES})"),
    sa.CheckConstraint("selection_correct BETWEEN 0 AND selection_draws"),
    sa.CheckConstraint("fresh_correct BETWEEN 0 AND fresh_draws"),
    sa.CheckConstraint("distance >= 0"),
    sa.CheckConstraint("forwards >= 0 AND backwards >= 0 AND seconds >= 0"),
    # Rows lie in the order of the primary key, in which a report reads the whole table.
    sqlite_with_rowid=False,
)

findings = sa.Table(
    "findings",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("evaluation", sa.ForeignKey("evaluations.id"), nullable=False, index=True),
    sa.Column("check", sa.String, nullable=False),
    # The fields of Finding, as JSON.
    sa.Column("finding", sa.Text, nullable=False),
)

adversarials = sa.Table(
    "adversarials",
    metadata,
    sa.Column("attack_run", sa.Integer, primary_key=True),
    sa.Column("sample", sa.String(32), primary_key=True),
    sa.Column("channels", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    # Little-endian float32, row by row, zlib-compressed, then a checksum.
    sa.Column("image", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(["attack_run", "sample"], ["outcomes.attack_run", "outcomes.sample"]),
)

# The worst cases of some broken samples, for people to look at.
examples = sa.Table(
    "examples",
    metadata,
    sa.Column("attack_run", sa.Integer, primary_key=True),
    sa.Column("sample", sa.String(32), primary_key=True),
    # Packed as arrays are: the adversarial minus the clean image in units of `scale`, as int8; or the adversarial image itself,
    # as float32, if `scale` is NULL.
    sa.Column("scale", sa.Float),
    sa.Column("image", sa.LargeBinary, nullable=False),
    # JSON lists of classes and probabilities.
    sa.Column("before", sa.Text, nullable=False),
    sa.Column("after", sa.Text, nullable=False),
    sa.ForeignKeyConstraint(["attack_run", "sample"], ["outcomes.attack_run", "outcomes.sample"]),
)

# The clean images of the samples in `examples`, which evaluations share.
clean_images = sa.Table(
    "clean_images",
    metadata,
    sa.Column("sample", sa.String(32), primary_key=True),
    sa.Column("channels", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    # In units of 1/255, as unsigned bytes, if that is exact; otherwise as float32.
    sa.Column("bytes", sa.Boolean, nullable=False),
    sa.Column("image", sa.LargeBinary, nullable=False),
)

experiments = sa.Table(
    "experiments",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("identity", sa.String(64), nullable=False, unique=True),
    sa.Column("experiment", sa.String, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("dataset", sa.String, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("provenance", sa.Text, nullable=False),
    # As for evaluations.
    sa.Column("asked", sa.String, nullable=False),
)

arrays = sa.Table(
    "arrays",
    metadata,
    sa.Column("experiment", sa.ForeignKey("experiments.id"), primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    # JSON list.
    sa.Column("shape", sa.String, nullable=False),
    # Little-endian float64, row by row, zlib-compressed, then a checksum.
    sa.Column("numbers", sa.LargeBinary, nullable=False),
)

# The tables of checksums, written in the same transactions as what they are about; see `checksums`. Rows from before schema
# version 4 have none.

evaluation_checksums = sa.Table(
    "evaluation_checksums",
    metadata,
    sa.Column("evaluation", sa.ForeignKey("evaluations.id"), primary_key=True),
    # The order of writing: larger than all before whenever the evaluation is asked for. Clocks may be wrong.
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("position_checksum", sa.String(64), nullable=False),
    # Of the evaluation and its attacks, and of its findings; NULL if it was recorded without.
    sa.Column("checksum", sa.String(64)),
    sa.Column("findings", sa.String(64)),
)

attack_run_checksums = sa.Table(
    "attack_run_checksums",
    metadata,
    sa.Column("attack_run", sa.ForeignKey("attack_runs.id"), primary_key=True),
    # Of every field of its outcomes, and of their tally.
    sa.Column("outcomes", sa.String(64), nullable=False),
    sa.Column("tally", sa.String(64), nullable=False),
)

experiment_checksums = sa.Table(
    "experiment_checksums",
    metadata,
    sa.Column("experiment", sa.ForeignKey("experiments.id"), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("position_checksum", sa.String(64), nullable=False),
    sa.Column("checksum", sa.String(64)),
)
