"""`evaluate --adversarials` and `leaderboard add`: files of adversarial images, good, bad and forged."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advbench import leaderboard, load_data, load_model
from advbench.record import load_record

EVALUATE = ("evaluate", "--attack", "fgsm", "--eps", "0,0.05,0.1", "-n", "60", "--device", "cpu", "--probes", "off")
FORGED = [range(40), pytest.param(range(40, 200), marks=pytest.mark.long)]


@pytest.fixture(scope="module")
def written() -> list[bytes]:
    """What `examples` wrote once."""
    return []


@pytest.fixture
def examples(cli: Any, run_folder: Path, written: list[bytes]) -> Path:
    """What `advbench attack` wrote of 60 images; it fells more than FGSM does."""
    path = Path("ex/examples.npz")
    if not written:
        argv = ("--attack", "apgd-ce", "--eps", "0.1", "-n", "60", "--out", "ex", "--device", "cpu")
        assert cli("attack", *argv).code == 0
        written.append(path.read_bytes())
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(written[0])
    return path


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and "lock" not in path.name and path.name != ".turn")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def records(folder: str) -> list[Path]:
    return [path for path in sorted(Path(folder).rglob("records/*/*/*.json")) if ".notice" not in path.name]


def test_from_attack_to_evaluate_and_to_a_leaderboard(cli: Any, examples: Path) -> None:
    assert cli(*EVALUATE, "--leaderboard", "LB", "--name", "Net").code == 0
    (path,) = records("LB")
    was, _ = load_record(path)
    ran = cli(*EVALUATE, "--adversarials", examples, "--out", "o")
    (with_file,) = records("o")
    now, fates = load_record(with_file)
    (credit,) = now.external
    assert credit.name == "examples" and credit.sha256 == hashlib.sha256(examples.read_bytes()).hexdigest()
    assert credit.felled == (fates.by == 1).sum() > 0 and now.clean == was.clean
    counts = [low.robust <= high.robust for low, high in zip(now.curve, was.curve, strict=True)]
    assert ran.code == 0 and all(counts) and now.auc < was.auc
    assert f"note: external: {credit.felled} of 60 images fell" in ran.out
    assert "external:examples: " in ran.out and f"of which {credit.felled} lower the curve; refused: " in ran.out

    assert cli("leaderboard", "LB", "rename", was.id, "My net").code == 0
    added = cli("leaderboard", "LB", "add", examples, "--to", was.id[:8])
    assert added.code == 0 and f"LB/records/digits/linf/{now.id}.json supersedes {was.id}" in added.out
    assert load_record(path)[0] == was
    kept, _ = load_record(path.with_name(f"{now.id}.json"))
    assert kept.supersedes == was.id and kept.external == now.external and kept.model.name == "My net"
    assert kept.environment.command == was.environment.command
    page = Path("LB/digits-linf.md").read_text()
    assert "external (note)" in page and "My net" in page
    assert f"replaced by another record of the same model and images: [{was.id}]" in page
    assert leaderboard.check(Path("LB")) == []

    again = cli("leaderboard", "LB", "add", examples, "--to", was.id)
    assert again.is_one_clear_line and f"is superseded: name the one that replaces it, {now.id}" in again.err
    again = cli("leaderboard", "LB", "add", examples, "--to", now.id)
    assert again.is_one_clear_line and "holds the adversarial images of examples again" in again.err


def test_a_record_with_files_is_repeated_with_them(cli: Any, examples: Path) -> None:
    Path("theirs.npz").write_bytes(examples.read_bytes())
    assert cli(*EVALUATE, "--adversarials", "theirs.npz", "--out", "o").code == 0
    (path,) = records("o")
    resumed = cli(*EVALUATE, "--adversarials", examples, "--out", "o", "--resume")
    assert "measured before: nothing was run again" in resumed.out and records("o") == [path]
    ran = cli("evaluate", "--again", path)
    assert (
        ran.is_one_clear_line
        and f"--again needs the files that record {path.stem} credits: --adversarials theirs" in ran.err
    )
    ran = cli("evaluate", "--again", path, "--adversarials", examples)
    assert ran.code == 0 and "the same: record" in ran.out
    assert cli(*EVALUATE, "--out", "plain").code == 0
    (plain,) = records("plain")
    ran = cli("evaluate", "--again", plain, "--adversarials", examples)
    assert ran.is_one_clear_line and "credits 0 of these files" in ran.err
    ran = cli("compare", plain, "--baseline", path, "--fail-if", "auc < baseline")
    assert ran.is_one_clear_line and "0; 1 files of others' adversarial images" in ran.err
    assert "--adversarials '<the file theirs>'" in ran.err


def test_what_add_needs(cli: Any, examples: Path) -> None:
    assert cli(*EVALUATE, "--leaderboard", "LB").code == 0
    (path,) = records("LB")
    before = contents(cli.folder)
    for argv, message in (
        (("add", examples), "write advbench leaderboard DIR add FILE --to ID"),
        (("add", "--to", path.stem), "write advbench leaderboard DIR add FILE --to ID"),
        (("add", examples, "--to", path.stem, "--why", "x"), "write advbench leaderboard DIR add FILE --to ID"),
        (("rename", path.stem, "x", "--to", path.stem), "write advbench leaderboard DIR rename ID NAME"),
        (("add", examples, "--to", "zzzz"), f"has no record 'zzzz': choose from {path.stem}"),
        (("add", "none.npz", "--to", path.stem), "No such file"),
        (("add", path, "--to", path.stem), "what is needed is an .npz"),
        (("add", examples, "--to", path.stem, "--model", "runs/b"), "runs/b"),
        (("build", "--model", "runs/a"), "--model and --device are for add"),
    ):
        ran = cli("leaderboard", "LB", *argv)
        assert ran.is_one_clear_line and message in ran.err, ran
    assert contents(cli.folder) == before
    assert cli("leaderboard", "LB", "retire", path.stem, "--why", "a bug").code == 0
    ran = cli("leaderboard", "LB", "add", examples, "--to", path.stem)
    assert ran.is_one_clear_line and "is retired: a bug" in ran.err


def test_evaluate_refuses_bad_files_before_it_measures(cli: Any, run_folder: Path) -> None:
    Path("bad.npz").write_bytes(b"PK")
    before = cli.files()
    ran = cli(*EVALUATE, "--adversarials", "bad.npz")
    assert ran.is_one_clear_line and "bad.npz is no file of adversarial images" in ran.err
    np.savez("ok.npz", x_adv=np.zeros((1, 1, 8, 8)), index=[0])
    twice = cli(*EVALUATE, "--adversarials", "ok.npz", "--adversarials", "ok.npz")
    assert twice.is_one_clear_line and "give each file once" in twice.err
    corrupt = cli("evaluate", "--attack", "corruptions", "--adversarials", "ok.npz")
    assert corrupt.is_one_clear_line and "leave out --adversarials" in corrupt.err
    assert cli.files() == {*before, "ok.npz"}


def forge(number: int, draw: np.random.Generator, real: dict[str, Any], x: Any, whole: bytes) -> bytes:
    """A file that pretends: none of its images is inside a ball of eps 0.1 and wrong, or it is no archive."""
    z, index, felled = (real[name].copy() for name in ("x_adv", "index", "felled"))
    kind = number % 20
    names = {"x_adv": z, "index": index}
    if kind == 0:  # far outside
        z[:] = draw.random(z.shape)
    elif kind == 1:  # clean images: right answers
        z[:] = x
    elif kind == 2:  # harmless noise
        z[:] = np.clip(x + draw.uniform(-1e-4, 1e-4, x.shape), 0, 1)
    elif kind == 3:  # the images of others
        names["index"] = index + 60 + number
    elif kind == 4:  # shifted by one: others' images, far away
        names["index"] = np.roll(index, 1)
        z[:] = np.where(felled[:, None, None, None], z, 0.5)
    elif kind == 5:
        z[draw.random(len(z)) < 2] *= np.nan
    elif kind == 6:  # one element of each not finite
        z[:, 0, number % 8, 3] = draw.choice([np.inf, -np.inf, np.nan])
    elif kind == 7:  # from 0 to 255
        z *= 255
        z += 2
    elif kind == 8:  # a pixel outside
        z[:, 0, 2, number % 8] = draw.choice([-0.01, 1.01, 1e30])
    elif kind == 9:  # a little outside of the ball, in one element
        z[:] = x
        z[:, 0, 3, number % 8] = np.where(
            x[:, 0, 3, number % 8] > 0.5, x[:, 0, 3, number % 8] - 0.102, x[:, 0, 3, number % 8] + 0.102
        )
    elif kind == 10:  # other shapes
        names["x_adv"] = [
            z.transpose(0, 2, 3, 1),
            np.repeat(z, 3, 1),
            z[..., :7],
            np.pad(z, ((0, 0),) * 3 + ((0, 1),)),
        ][number // 20 % 4]
    elif kind == 11:
        names["index"] = -1 - index
    elif kind == 12:
        names["index"] = index.astype(np.uint64) + np.uint64(2**63 + number)
    elif kind == 13:
        names["x_adv"] = z.astype(np.float64) * 1e300
    elif kind == 14:
        names["index"] = index.astype(float)
    elif kind == 15:
        names["x_adv"] = (z * 255).astype(np.uint8)
    elif kind == 16:
        names = {"x_adv": z}
    elif kind == 17:
        names = {"x_adv": z, "index": index[: draw.integers(0, 59)]}
    elif kind == 18:  # damaged in the middle
        at = int(draw.integers(30, len(whole) - 30))
        return whole[:at]
    elif kind == 19:
        return draw.bytes(int(draw.integers(0, 4000)))
    stream = io.BytesIO()
    np.savez(stream, **names)
    return stream.getvalue()


@pytest.mark.parametrize("numbers", FORGED)
def test_forged_files_are_refused_and_nothing_changes(cli: Any, examples: Path, numbers: range) -> None:
    assert cli(*EVALUATE, "--leaderboard", "LB").code == 0
    (path,) = records("LB")
    with np.load(examples) as stored:
        real = {name: stored[name] for name in ("x_adv", "index", "felled")}
    x = load_data("digits").subset(range(60)).batch(slice(None))[0].numpy()
    whole, draw, before = examples.read_bytes(), np.random.default_rng(numbers.start), contents(cli.folder)
    said = set()
    for number in numbers:
        Path("forged.npz").write_bytes(forge(number, draw, real, x, whole))
        ran = cli("leaderboard", "LB", "add", "forged.npz", "--to", path.stem)
        assert ran.is_one_clear_line, (number, ran)
        said.add("what is needed" if "what is needed" in ran.err else "nothing falls")
        assert ("what is needed" in ran.err) != ("nothing falls further" in ran.err), (number, ran.err)
        Path("forged.npz").unlink()
    assert contents(cli.folder) == before and len(said) == 2
    assert cli("leaderboard", "LB", "add", examples, "--to", path.stem).code == 0  # while the true one does


def test_json(cli: Any, examples: Path) -> None:
    ran = cli(*EVALUATE, "--adversarials", examples, "--json", "--leaderboard", "LB")
    (line,) = ran.out.splitlines()
    (credit,) = json.loads(line)["external"]
    assert credit["name"] == "examples" and credit["felled"] > 0 and "external:examples: " in ran.err
    assert cli(*EVALUATE, "--leaderboard", "LB2").code == 0
    (path,) = records("LB2")
    (line,) = cli("leaderboard", "LB2", "add", examples, "--to", path.stem, "--json").out.splitlines()
    found = json.loads(line)
    assert found["supersedes"] == path.stem and found["record"] == json.loads(ran.out)["id"]
    assert found["count"] == 60 == found["verified"] + sum(found["refused"].values())


def test_the_model_of_the_record_is_needed(cli: Any, examples: Path) -> None:
    assert cli(*EVALUATE, "--leaderboard", "LB").code == 0
    (path,) = records("LB")
    Path("runs/a").rename("runs/moved")
    ran = cli("leaderboard", "LB", "add", examples, "--to", path.stem)
    assert ran.is_one_clear_line and "runs/a" in ran.err
    weights = load_model("runs/moved").weights_sha256
    ran = cli("leaderboard", "LB", "add", examples, "--to", path.stem, "--model", "runs/moved")
    assert ran.code == 0 and load_record(records("LB")[0])[0].model.weights_sha256 == weights
