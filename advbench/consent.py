"""Consent to run other people's code: that of pickles, and modules that a file names.

Code that the command names itself, or a Python program by its arguments, runs. What only a file names (a record, a run
folder, a recipe) must be named too, or trusted. Whoever unpickles or imports asks here, so that no path to them has to
carry the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from advbench.errors import Untrusted

_KINDS = {"architecture": "arch"}  # those whose flag has another name


@dataclass(frozen=True)
class Consent:
    """`pickle`: load pickles that can run code; `code`: run code that only a file names.

    `named`: the code, each `module:name`, that may run without `code`; None: all. `file`: where other names come from.
    `by_name`: whether the command has flags that could name code.
    """

    pickle: bool = False
    code: bool = False
    named: frozenset[str] | None = None
    file: str | None = None
    by_name: bool = True

    @contextmanager
    def given(self) -> Iterator[None]:
        """Inside, this is the consent."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


_current: ContextVar[Consent | None] = ContextVar("consent", default=None)


def current() -> Consent:
    """The consent here."""
    return _current.get() or Consent()


def also(*, pickle: bool = False, code: bool = False) -> Consent:
    """The consent here, and these."""
    now = current()
    return replace(now, pickle=now.pickle or pickle, code=now.code or code)


def reading(file: object, *named: object) -> Consent:
    """The consent where names come from `file` (unless it is None), and a Python program has named the code `named`."""
    now = current()
    if file is None:
        return now
    return replace(now, named=frozenset(map(str, named)) if now.named is None else now.named, file=str(file))


def check_code(kind: str, spec: str) -> None:
    """Raise Untrusted unless the code `spec` may run. `kind`: model, architecture, attack, method or dataset."""
    now = current()
    if now.code or now.named is None or spec in now.named:
        return
    naming = (
        f", or name it on the command line too, such as by --{_KINDS.get(kind, kind)} {spec}" if now.by_name else ""
    )
    raise Untrusted(
        f"{now.file or 'a file'} names code outside advbench ({spec}), which loading would run: if you trust it, pass "
        f"--trust-code{naming}"
    )
