"""One measurement, as a file that is never edited: `records/<dataset>/<norm>/<id>.json` beside `<id>.npz`.

The JSON is the summary; the archive holds each sample's fate. `question` is the hash of all that decides the
verdicts, `id` the hash of the question and the verdicts. The archive also holds a seal: a hash of the content of both
files, by which any change to either is noticed. It shows accidents, not intent: whoever changes a file can compute its
hashes and its seal anew. A notice `<id>.notice.json` beside them says what became of the record.
"""

from advbench.record.black_box import WINS
from advbench.record.fates import NEVER, Fates, contradictions
from advbench.record.glossary import FLAG_NAMES
from advbench.record.labels import labels
from advbench.record.notice import Notice, confirm, load_notices, notice_of, write_notice
from advbench.record.parts import (
    ATTACK_BUDGET,
    ESCALATION,
    RECHECK_SET,
    AttackRef,
    Corruptions,
    CurvePoint,
    DatasetRef,
    Engine,
    Environment,
    External,
    Flag,
    ModelRef,
    Severity,
    Trained,
    passes_an_image,
)
from advbench.record.record import (
    CURVE_COLUMNS,
    ESCALATED,
    EXTERNAL,
    NOT_PROBED,
    Damage,
    Record,
    load_record,
    load_records,
    load_with_fates,
    measured_eps,
    question_hash,
    record_files,
    record_id,
    record_path,
    slug,
    superseded,
)

__all__ = [
    "ATTACK_BUDGET",
    "CURVE_COLUMNS",
    "ESCALATED",
    "ESCALATION",
    "EXTERNAL",
    "FLAG_NAMES",
    "NEVER",
    "NOT_PROBED",
    "RECHECK_SET",
    "WINS",
    "AttackRef",
    "Corruptions",
    "CurvePoint",
    "Damage",
    "DatasetRef",
    "Engine",
    "Environment",
    "External",
    "Fates",
    "Flag",
    "ModelRef",
    "Notice",
    "Record",
    "Severity",
    "Trained",
    "confirm",
    "contradictions",
    "labels",
    "load_notices",
    "load_record",
    "load_records",
    "load_with_fates",
    "measured_eps",
    "notice_of",
    "passes_an_image",
    "question_hash",
    "record_files",
    "record_id",
    "record_path",
    "slug",
    "superseded",
    "write_notice",
]
