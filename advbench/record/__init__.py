"""One measurement, as a file that is never edited: `records/<dataset>/<norm>/<id>.json` beside `<id>.npz`.

The JSON is the summary; the archive holds each sample's fate. `question` is the hash of all that decides the
verdicts, `id` the hash of the question and the verdicts. The archive also holds a seal: a hash of the content of both
files, by which any change to either is noticed. It shows accidents, not intent: whoever changes a file can compute its
hashes and its seal anew.
"""

from advbench.record.fates import Fates
from advbench.record.parts import (
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
)
from advbench.record.record import (
    Damage,
    Record,
    load_record,
    load_records,
    question_hash,
    record_id,
    slug,
)

__all__ = [
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
    "Record",
    "Severity",
    "Trained",
    "load_record",
    "load_records",
    "question_hash",
    "record_id",
    "slug",
]
