"""Names to classes, and what a user may write instead of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sloguard.errors import SpecError
from sloguard.registry import load

TABLE = {"decoder": "json:JSONDecoder"}


@pytest.mark.parametrize("name", ["decoder", "json:JSONDecoder"])
def test_a_name_and_a_dotted_path_give_a_class(name: str) -> None:
    assert load(TABLE, name, "--codec", "decode") is json.JSONDecoder


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("coder", "no such name"),
        ("", "no such name"),
        (":X", "not of the form"),
        ("json:", "not of the form"),
        (".json:X", "not of the form"),
        ("json..tool:X", "not of the form"),
        ("json:JSONDecoder.decode", "not of the form"),
        ("a:b:c", "not of the form"),
        ("no_such_module:X", "can't be imported"),
        ("json.no_such:X", "can't be imported"),
        ("json:NoSuch", "has no 'NoSuch'"),
        ("os:path", "is no class but a module"),
        ("os:getcwd", "is no class but a builtin_function_or_method"),
        ("json:JSONEncoder", "has no method 'decode'"),
    ],
)
def test_what_is_no_class_of_the_family_is_the_users_error(name: str, says: str) -> None:
    with pytest.raises(SpecError, match=r"--codec = .*Choose one of decoder") as raised:
        load(TABLE, name, "--codec", "decode")
    assert says in str(raised.value)


def test_an_import_that_fails_inside_the_users_module_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_own_module.py").write_text("import users_own\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="users_own"):
        load(TABLE, "users_own_module:X", "--codec")
