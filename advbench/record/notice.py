"""What became of a record after it was made, in a file beside it: the record itself is never edited."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from advbench.errors import UserError, must_be
from advbench.files import write_atomic
from advbench.record.parts import Id, Part
from advbench.record.record import NOTICE, Damage, Record, load_record, load_records

Text = Annotated[str, Field(pattern=r"\S")]


class Notice(Part):
    """`retired`: why tables no longer show the record, None while they do. `name`: what they call its model.

    `again`: when its weights were last measured again with the same outcome, after others of the same model were.
    """

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    record: Id
    retired: Text | None = None
    name: Text | None = None
    again: Text | None = None
    date: str


def write_notice(
    record: Path, *, retired: str | None = None, name: str | None = None, again: str | None = None
) -> Path:
    """Write `<id>.notice.json` beside the record file `record`, and return its path.

    What an earlier notice says stays, unless it is said anew. Raises UserError if the earlier one is damaged, or the
    file cannot be written.
    """
    path = record.with_name(f"{record.stem}{NOTICE}")
    said = _load(path).model_dump(by_alias=True) if path.exists() else {"record": record.stem}
    said |= {key: text for key, text in (("retired", retired), ("name", name), ("again", again)) if text is not None}
    try:
        notice = Notice.model_validate({**said, "date": datetime.now(UTC).isoformat(timespec="seconds")})
    except ValidationError as error:
        raise UserError(f"cannot write {path}: {error.errors()[0]['loc'][0]}: {_fault(error)}") from error
    tree = notice.model_dump(mode="json", by_alias=True)
    write_atomic(path, json.dumps({**tree, "seal": _seal(tree)}, indent=1) + "\n")
    return path


def confirm(record: Path, again: str) -> None:
    """Note that the weights of the record file `record` were measured again at `again` (ISO 8601), where that matters.

    It does where other weights of the same model were measured after them, which would else be taken for the newest.
    Raises UserError as `write_notice`, and for a damaged record.
    """
    known, _ = load_record(record)
    if again <= known.environment.date:  # so it was not measured again
        return

    def last(one: Record) -> str:
        notice = notice_of(record.with_name(f"{one.id}.json"))
        return max(one.environment.date, (notice and notice.again) or "")

    others = [one for one in load_records(record.parent)[0] if one.model.spec == known.model.spec]
    if any(one.model.identity != known.model.identity and last(known) < last(one) < again for one in others):
        write_notice(record, again=again)


def notice_of(record: Path) -> Notice | None:
    """The notice beside the record file `record`, if there is one. Raises UserError if it is damaged."""
    path = record.with_name(f"{record.stem}{NOTICE}")
    if not path.exists():
        return None
    notice = _load(path)
    if notice.record != record.stem:
        raise UserError(f"{path} is about record {notice.record}, which is not beside it")
    return notice


def load_notices(folder: Path) -> tuple[dict[str, Notice], list[Damage]]:
    """The sound notices below `folder` by the id of their record, and those that are damaged or have no record."""
    found: dict[str, Notice] = {}
    damaged = []
    for path in sorted(folder.rglob(f"*{NOTICE}")):
        identifier = path.name.removesuffix(NOTICE)
        try:
            notice = _load(path)
            if notice.record != identifier or not path.with_name(f"{identifier}.json").exists():
                raise UserError(f"{path} is about record {notice.record}, which is not beside it")
        except UserError as error:
            damaged.append(Damage(path, str(error)))
            continue
        found[identifier] = notice
    return found, damaged


def _load(path: Path) -> Notice:
    try:
        tree = json.loads(path.read_bytes())
        seal = tree.pop("seal", None) if isinstance(tree, dict) else None
        notice = Notice.model_validate(tree)
    except OSError as error:
        raise UserError(f"cannot read notice {path}: {error.strerror}") from error
    except ValidationError as error:
        raise UserError(f"{path} is no valid notice: {_fault(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no valid notice: it is not JSON") from error
    if seal != _seal(tree):
        raise UserError(f"{path} is damaged: its content is not what it was sealed with")
    return notice


def _fault(error: ValidationError) -> str:
    return must_be(error.errors(include_url=False, include_input=False)[0])


def _seal(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
