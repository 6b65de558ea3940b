"""The tables of a database. With any change, add the step from the schema version before to `revisions/versions`."""

from pathlib import Path

import sqlalchemy as sa

# The number of the newest module of `revisions/versions`; importing alembic takes too long for every command.
SCHEMA_VERSION = max(int(path.name[1:3]) for path in Path(__file__).parent.glob("revisions/versions/v[0-9][0-9]_*.py"))

metadata = sa.MetaData()

# Where alembic keeps the schema version: one row. Its own name for the table is also that of other programs.
schema_revision = sa.Table(
    "schema_revision",
    metadata,
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="schema_revision_pkc"),
)

# Where versions before 7 kept it. It stays at 7, so that a kwbench of that time refuses the database.
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

# The samples that attacks saw, each once.
samples = sa.Table(
    "samples",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    # The hash of the image and its label.
    sa.Column("sample", sa.String(32), nullable=False),
    # Position in the split. The name is an SQL keyword, which SQLAlchemy quotes.
    sa.Column("index", sa.Integer, nullable=False),
    sa.Column("label", sa.Integer, nullable=False),
    sa.UniqueConstraint("sample", "index", "label"),
)

# The outcomes of each attack run, packed; see `shards`.
shards = sa.Table(
    "shards",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("attack_run", sa.ForeignKey("attack_runs.id"), nullable=False, index=True),
    # Their number.
    sa.Column("outcomes", sa.Integer, nullable=False),
    # The ids of the samples; statuses, draws and sums; everything else.
    sa.Column("samples", sa.LargeBinary, nullable=False),
    sa.Column("tally", sa.LargeBinary, nullable=False),
    sa.Column("details", sa.LargeBinary, nullable=False),
    sa.CheckConstraint("outcomes > 0"),
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
    sa.Column("attack_run", sa.ForeignKey("attack_runs.id"), primary_key=True),
    sa.Column("sample", sa.String(32), primary_key=True),
    sa.Column("channels", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    # Little-endian float32, row by row, zlib-compressed, then a checksum.
    sa.Column("image", sa.LargeBinary, nullable=False),
)

# The worst cases of some broken samples, for people to look at.
examples = sa.Table(
    "examples",
    metadata,
    sa.Column("attack_run", sa.ForeignKey("attack_runs.id"), primary_key=True),
    sa.Column("sample", sa.String(32), primary_key=True),
    # Packed as arrays are: the adversarial minus the clean image in units of `scale`, as int8; or the adversarial image itself,
    # as float32, if `scale` is NULL.
    sa.Column("scale", sa.Float),
    sa.Column("image", sa.LargeBinary, nullable=False),
    # JSON lists of classes and probabilities.
    sa.Column("before", sa.Text, nullable=False),
    sa.Column("after", sa.Text, nullable=False),
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
    # Of the details of its shards, and of their tallies.
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
