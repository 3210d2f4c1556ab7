"""What an evaluation asks, and whether the model still answers as it did when that was asked before."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from advbench import rng
from advbench.checkpoint import Loaded
from advbench.data.dataset import Dataset
from advbench.evaluator.plan import Plan
from advbench.evaluator.settings import Settings
from advbench.record import NOT_PROBED, ModelRef, Record, Trained
from advbench.version import __version__

KNOWN_IMAGES = 64  # whose logits tell whether a model from outside is still the same
TOLERANCE = 1e-3  # of the spread of an image's logits: more than rounding on another machine
_PASS = 2  # images, as many as fit wherever the model was tried
_MODEL = {"weights_sha256", "arch", "settings", "code_sha256", "mean", "std", "abstain"}


def model_ref(loaded: Loaded, name: str | None = None) -> ModelRef:
    """The reference in the record to the model, which tables call `name` (None: as its run says, or by its spec)."""
    net = loaded.net
    wrapped = getattr(net, "wrappers", [])
    return ModelRef(
        name=name or loaded.name,
        spec=loaded.spec,
        arch=loaded.arch,
        settings={**getattr(net, "settings", {}), **({"wrappers": wrapped} if wrapped else {})},
        params=sum(p.numel() for p in net.parameters()),
        weights_sha256=loaded.weights_sha256,
        code_sha256=loaded.code_sha256,
        mean=loaded.mean,
        std=loaded.std,
        abstain=loaded.abstain,
        trained=Trained(**loaded.trained) if loaded.trained else None,
    )


def question_of(loaded: Loaded, data: Dataset, settings: Settings, run: Plan, slots: int) -> dict[str, Any]:
    """All that decides the answer, as plain values: a journal is resumed only by an evaluation with the same ones."""
    return {
        "model": _model(model_ref(loaded)),
        "images": data.images_sha256,
        "indices": settings.indices or data.indices.tolist(),
        "norm": settings.norm,
        "eps": settings.sizes,
        "attacks": [ref.model_dump(mode="json") for ref in run.refs],
        "engine": run.engine(slots).model_dump(mode="json"),
        "seed": settings.seed,
        "keep_points": settings.keep_points,
        "probes": settings.probes or run.curve == "severity",
        "advbench": __version__,
        **_external([one.sha256 for one in settings.adversarials]),
        **_proofs(settings.certify, settings.certify_seconds),
    }


def answers(record: Record, question: dict[str, Any]) -> bool:
    """Whether `record` answers a question; the number of slots may differ."""
    ref = record.dataset
    return {**question, "engine": {**question["engine"], "slots": record.engine.slots}} == {
        "model": _model(record.model),
        "images": ref.images_sha256,
        "indices": ref.indices if isinstance(ref.indices, str) else list(ref.indices),
        "norm": record.norm,
        "eps": record.eps,
        "attacks": [attack.model_dump(mode="json") for attack in record.attack],
        "engine": record.engine.model_dump(mode="json"),
        "seed": record.seed,
        "keep_points": False,
        "probes": all(flag.name != NOT_PROBED for flag in record.flags),
        "advbench": record.environment.advbench,
        **_external([one.sha256 for one in record.external]),
        **_proofs(**certify_settings(record)),
    }


def certify_settings(record: Record) -> dict[str, Any]:
    """`certify` and `certify_seconds` of the evaluation that made a record."""
    made = getattr(record.environment, "certify", None) or {"when": "off", "seconds_an_image": 1.0}
    return {"certify": made["when"], "certify_seconds": made["seconds_an_image"]}


def name_of(loaded: Loaded, data: Dataset, settings: Settings, run: Plan) -> str:
    """A file name for the question, known before anything is measured: the model's hash, then that of the question.

    In place of the precision and slots that are chosen, it covers those that were asked for, so that an evaluation
    finds its journal again. Two questions never share a name, nor do two spellings of one have two.
    """
    asked = question_of(loaded, data, settings, run, slots=1)
    asked["attacks"] = asked["attacks"][: len(run.attacks)]  # without the recheck, which follows from the precision
    asked["engine"] |= {"precision": settings.precision, "slots": settings.slots}
    model, question = (hashlib.sha256(json.dumps(part, sort_keys=True).encode()) for part in (asked["model"], asked))
    return f"{model.hexdigest()[:8]}-{question.hexdigest()[:16]}"


def known_logits(loaded: Loaded, data: Dataset, seed: int) -> NDArray[np.float32] | None:
    """Logits (M, K) of the first clean images, for a random model drawn from `seed`; None if no code is from outside.

    The network is in eval mode, on the device of `data`.
    """
    if not loaded.outside:
        return None
    n = min(len(data), KNOWN_IMAGES)
    rows = torch.arange(n + n % _PASS, device=data.device).clamp_max(n - 1)  # full passes: some models refuse one row
    with torch.no_grad(), rng.kept(seed):
        found = torch.cat([loaded.net(data.batch(part)[0]) for part in rows.split(_PASS)])
    return found[:n].float().cpu().numpy()


def agree(then: NDArray[np.float32] | None, now: NDArray[np.float32] | None) -> bool:
    """Whether the logits of a model are those that were kept with an earlier evaluation; none were where none are."""
    if then is None or now is None:
        return then is now
    if then.shape != now.shape:
        return False
    finite = np.where(np.isfinite(then), then, 0.0)
    spread = np.ptp(finite, axis=1, keepdims=True)
    return bool(np.isclose(now, then, rtol=0, atol=TOLERANCE * spread, equal_nan=True).all())


def _external(hashes: list[str]) -> dict[str, Any]:
    return {"external": hashes} if hashes else {}


def _proofs(certify: str, certify_seconds: float) -> dict[str, Any]:
    return {} if certify == "off" else {"certify": [certify, certify_seconds]}


def _model(ref: ModelRef) -> dict[str, Any]:
    return ref.model_dump(mode="json", include=_MODEL)
