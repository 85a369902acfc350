"""Everything that can go wrong, as one tree. Each error says what happened, where, and what to do next.

    ZephyrError                     exit code   kind
    ├── UsageError                       2      usage          a command line or a value that cannot be
    │   ├── ConfigError                  2      config         unknown key, bad value; names the dotted path
    │   └── WrongKind                    2      wrong_kind     an artifact of another kind than the stage reads
    ├── EnvironmentFault                 3      environment    disk full, unwritable, not enough memory
    │   └── MissingExtra                 3      missing_extra  names the pip line
    ├── RefNotFound                      4      not_found      no such artifact, tag, file or folder
    ├── IntegrityError                   5      integrity      bytes or rows that are not what they should be
    │   └── BadRow                       5      bad_row        an input row, named as file:line
    ├── AuthError                        6      auth           no key, refused key, no credit
    ├── BudgetReached                    7      budget
    ├── GateFailed                       8      gate
    ├── StageRejected                    9      rejected       the stage refuses its own outcome
    │   └── NotFinite                    9      not_finite     a loss that is NaN or infinite
    ├── TryAgain                        75      try_again      the same command can succeed later
    │   ├── Locked                      75      locked         another process works on this step
    │   ├── Preempted                   75      preempted      asked to make room; a checkpoint is saved
    │   └── ProviderDown                75      provider       network, rate limit, server errors
    └── Interrupted              129/130/143    interrupted

Exit code 1 is kept for faults of zephyrctl itself: anything that is not in this tree.
"""

from __future__ import annotations


class ZephyrError(Exception):
    """The base of every error a user is meant to read: `message` (what, where, why), `hint` (what to do next)."""

    exit_code = 1
    kind = "error"
    retryable = False

    def __init__(self, message: str, *, hint: str | None = None, resume: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.resume = resume

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.resume))

    def as_dict(self) -> dict[str, object]:
        """The document that `--json` prints on failure, without its outer `error` key."""
        return {
            "code": self.exit_code,
            "kind": self.kind,
            "message": self.message,
            "hint": self.hint,
            "resume": self.resume,
            "retryable": self.retryable,
        }


def _rebuild(cls: type[ZephyrError], message: str, hint: str | None, resume: str | None) -> ZephyrError:
    error = cls.__new__(cls)
    ZephyrError.__init__(error, message, hint=hint, resume=resume)
    return error


class UsageError(ZephyrError):
    exit_code = 2
    kind = "usage"


class ConfigError(UsageError):
    kind = "config"


class WrongKind(UsageError):
    kind = "wrong_kind"


class EnvironmentFault(ZephyrError):
    exit_code = 3
    kind = "environment"


class MissingExtra(EnvironmentFault):
    """A package that belongs to an extra is not installed."""

    kind = "missing_extra"

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this command needs the package '{package}', which is not installed",
            hint=f"pip install 'zephyrctl[{extra}]'",
        )


class RefNotFound(ZephyrError):
    exit_code = 4
    kind = "not_found"


class IntegrityError(ZephyrError):
    exit_code = 5
    kind = "integrity"


class BadRow(IntegrityError):
    """A row of an input file that cannot be used; `where` is `file:line` (1-based)."""

    kind = "bad_row"

    def __init__(self, where: str, why: str, *, hint: str | None = None) -> None:
        super().__init__(
            f"{where}: {why}", hint=hint or "mend that row, or leave bad rows out with --set on_bad_row=skip"
        )
        self.where = where
        self.why = why


class AuthError(ZephyrError):
    exit_code = 6
    kind = "auth"


class BudgetReached(ZephyrError):
    exit_code = 7
    kind = "budget"


class GateFailed(ZephyrError):
    exit_code = 8
    kind = "gate"


class StageRejected(ZephyrError):
    exit_code = 9
    kind = "rejected"


class NotFinite(StageRejected):
    kind = "not_finite"


class TryAgain(ZephyrError):
    exit_code = 75
    kind = "try_again"
    retryable = True


class Locked(TryAgain):
    kind = "locked"


class Preempted(TryAgain):
    """A signal of a batch system asked the run to stop, and what was done is saved."""

    kind = "preempted"


class ProviderDown(TryAgain):
    kind = "provider"


class Interrupted(ZephyrError):
    """A signal asked the work to stop; `signal_number` 1, 2 or 15 gives exit code 129, 130 or 143."""

    kind = "interrupted"
    retryable = True

    def __init__(self, signal_number: int, *, resume: str | None = None) -> None:
        super().__init__(
            "stopped by a signal; what was finished is kept", hint="run the same command again", resume=resume
        )
        self.exit_code = 128 + signal_number


def no_space(path: object, why: object) -> EnvironmentFault:
    """The error for a full disk (ENOSPC, EDQUOT, EFBIG) at `path`."""
    return EnvironmentFault(
        f"no space left while writing {path} ({why}); nothing was committed",
        hint="free space or point --store elsewhere, then run the same command again",
    )
