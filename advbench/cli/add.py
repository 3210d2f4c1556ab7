"""`advbench leaderboard DIR add FILE --to ID`: lower a record by adversarial images made elsewhere. Loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import advbench.leaderboard as boards
from advbench import consent
from advbench.cli.again import subject
from advbench.cli.console import Screen
from advbench.cli.keep import save
from advbench.cli.stop import Stop
from advbench.defaults.target import pick_device
from advbench.evaluator.added import added
from advbench.evaluator.adversarials import read_adversarials
from advbench.files import check_writable, writable
from advbench.record import Record


def add(
    folder: Path | None,
    file: Path,
    text: str,
    *,
    model: str | None = None,
    device: str = "auto",
    screen: Screen | None = None,
    argv: Sequence[str] = (),
) -> Record:
    """Lower the record whose id begins with `text` by the images in `file`: a new record supersedes it on the board.

    `model`: where the weights are now, if they were moved. Raises UserError where nothing falls, for a file that holds
    no adversarial images, and for a model or images that are not those of the record.
    """
    screen = screen or Screen()
    place = boards.find_folder(folder)
    boards.check_folder(place)
    check_writable(place / "records")
    path, was, fates = boards.find_shown(place, text)
    given = read_adversarials([file], was.external)
    with consent.reading(path, model).given(), Stop() as stop:
        loaded, data = subject(path, was, model, on := pick_device(device), screen=screen, stop=stop)
        found = added(was, fates, given, loaded, data, device=on, command=("advbench", *argv))
    where = save(found.record, found.fates, place, publish=True, screen=screen)
    if loaded.folder is not None and writable(loaded.folder):
        found.record.save(loaded.folder, found.fates)  # so that `compare` finds it by the name of the run
    (tally,) = found.tallies
    if screen.as_json:
        counts = {"count": tally.count, "verified": tally.verified, "felled": tally.felled, "refused": tally.refused}
        screen.json({"record": found.record.id, "supersedes": was.id, "name": tally.name, **counts, "path": str(where)})
        return found.record
    rows = [
        (old.eps_text, f"{100 * old.accuracy:.2f}", f"{100 * new.accuracy:.2f}")
        for old, new in zip(was.curve, found.record.curve, strict=True)
    ]
    screen.table(("eps", "then %", "now %"), rows)
    screen.say(tally.line)
    screen.say(f"record {where} supersedes {was.id}")
    return found.record
