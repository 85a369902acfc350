import pickle

import pytest

from zephyrctl import errors


def _tree(cls: type[errors.ZephyrError]) -> list[type[errors.ZephyrError]]:
    return [cls] + [leaf for child in cls.__subclasses__() for leaf in _tree(child)]


EXIT_CODES = {
    "UsageError": 2, "ConfigError": 2, "WrongKind": 2, "EnvironmentFault": 3, "MissingExtra": 3, "RefNotFound": 4,
    "IntegrityError": 5, "BadRow": 5, "AuthError": 6, "BudgetReached": 7, "GateFailed": 8, "StageRejected": 9,
    "NotFinite": 9, "TryAgain": 75, "Locked": 75, "ProviderDown": 75,
}  # fmt: skip


@pytest.mark.parametrize(("name", "code"), EXIT_CODES.items())
def test_exit_codes(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code


def test_tree_is_drawn_completely() -> None:
    drawn = errors.__doc__ or ""
    for cls in _tree(errors.ZephyrError):
        if cls.__module__ == errors.__name__:
            assert cls.__name__ in drawn, f"{cls.__name__} is missing from the drawing"


def test_only_try_again_and_signals_are_retryable() -> None:
    for cls in _tree(errors.ZephyrError):
        assert cls.retryable == issubclass(cls, errors.TryAgain | errors.Interrupted)


@pytest.mark.parametrize(
    "error",
    [
        errors.BadRow("data.jsonl:3", "not JSON"),
        errors.MissingExtra("torch", "train"),
        errors.Interrupted(15, resume="zephyrctl sft"),
        errors.UsageError("what", hint="why", resume="next"),
    ],
)
def test_survives_a_process_boundary(error: errors.ZephyrError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (copy.message, copy.hint, copy.resume) == (error.message, error.hint, error.resume)


def test_signal_exit_codes() -> None:
    assert errors.Interrupted(2).exit_code == 130
    assert errors.Interrupted(15).exit_code == 143


def test_document() -> None:
    assert errors.BadRow("f.jsonl:7", "no `prompt`").as_dict() == {
        "code": 5,
        "kind": "bad_row",
        "message": "f.jsonl:7: no `prompt`",
        "hint": "mend that row, or leave bad rows out with --set on_bad_row=skip",
        "resume": None,
        "retryable": False,
    }
