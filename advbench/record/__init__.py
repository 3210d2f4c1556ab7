"""One measurement, as a file that is never edited: `records/<dataset>/<norm>/<id>.json` beside `<id>.npz`.

The JSON is the summary; the archive holds each sample's fate. `question` is the hash of all that decides the
verdicts, `id` the hash of the question and the verdicts. The archive also holds a seal: a hash of the content of both
files, by which any change to either is noticed.
"""

from advbench.record.fates import Fates
from advbench.record.flag_names import FLAG_NAMES, is_flag
from advbench.record.parts import (
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
    "FLAG_NAMES",
    "RECHECK_SET",
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
    "Trained",
    "is_flag",
    "load_record",
    "load_records",
    "question_hash",
    "record_id",
    "slug",
]
