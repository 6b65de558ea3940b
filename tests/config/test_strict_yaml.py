"""Unambiguous YAML is parsed; every other text is refused with its position."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from kwbench.config.strict_yaml import Strict, parse_yaml, read_yaml, validate
from kwbench.errors import CannotEvaluate, KwbenchError, UsageError


class Leaf(Strict):
    steps: int = 1
    size: float = 1.0


class Tree(Strict):
    leaf: Leaf
    maybe: Leaf | None = None
    named: dict[str, Leaf] | None = None
    listed: list[Leaf] | None = None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", r"it.yaml:2:1: found duplicate key \"a\""),
        ("b:\n  a: 1\n  a: 2\n", r"it.yaml:3:3: found duplicate key \"a\""),
        ("{a: 1, a: 2}", "duplicate key"),
        ("b: 1\na: &x 1\n", "it.yaml:2: anchors are not allowed"),
        ("a: *x\n", "it.yaml:1: aliases are not allowed"),
        ("a: !!python/object/apply:os.system [ls]\n", "it.yaml:1: tags are not allowed"),
        ("a: !!int '3'\n", "tags are not allowed"),
        ("a: 1\n<<: {b: 2}\n", "it.yaml:2: merges are not allowed"),
        ("%YAML 1.1\n---\na: yes\n", "it.yaml:1: directives are not allowed"),
        ("a:\n\tb: 1\n", r"it.yaml:2:1: found character '\\t'"),
        ("a: 1\n---\nb: 2\n", "another document"),
        ("- a\n- b\n", "must hold a mapping"),
        ("just text\n", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("a: [1, 2\n", "it.yaml:2:1"),
        ("a: 2001-01-01\n", "a: 2001-01-01 would be read as a date; put it in quotes"),
        ("a: {b: [1, .nan]}\n", "a.b.1: must be a finite number, got nan"),
        ("a: .inf\n", "a: must be a finite number"),
        ("a: 1e999\n", "a: must be a finite number"),
        ("1: a\n", "the key 1 is not text"),
        ("a: {true: 1}\n", "the key True is not text"),
        ("? [a, b]\n: c\n", r"the key \('a', 'b'\) is not text"),
        ("? {a: b}\n: c\n", "unhashable key"),
        ("a: \x00\n", "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("[" * 1500, "not valid YAML"),
    ],
)
def test_ambiguous_yaml_is_refused_with_its_position(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_yaml(text, "it.yaml")


def test_plain_values_are_parsed_as_in_yaml_1_2() -> None:
    text = "a: yes\nb: 010\nc: 1e-3\nd: [1, x, null, true]\ne: {f: 1.5}\ng: 8/255\nh: '<<'\n"
    assert parse_yaml(text, "it.yaml") == {
        "a": "yes",
        "b": 10,
        "c": 0.001,
        "d": [1, "x", None, True],
        "e": {"f": 1.5},
        "g": "8/255",
        "h": "<<",
    }


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>#%@?,'\"\n\t .<0123=~\\", max_size=30))
def test_any_text_is_parsed_as_plain_data_or_refused_in_one_line(text: str) -> None:
    refusal = ""
    try:
        data = parse_yaml(text, "it.yaml")
    except KwbenchError as failure:
        refusal = str(failure)
    if refusal:
        assert refusal.startswith("it.yaml")
        assert "\n" not in refusal
    else:
        assert data == YAML(typ="safe", pure=True).load(text)


def test_files_too_big_missing_or_not_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "it.yaml"
    file.write_text("a: " + "x" * (1 << 20))
    with pytest.raises(UsageError, match="more than 1048576 characters"):
        read_yaml(file)
    file.write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(UsageError, match="not a text file in UTF-8"):
        read_yaml(file)
    with pytest.raises(CannotEvaluate, match=r"none\.yaml: cannot be read \(No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(CannotEvaluate, match="cannot be read"):
        read_yaml(tmp_path)
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_yaml(file) == {"a": 1, "b": 2}


def test_a_file_of_too_many_values_is_refused_where_it_has_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kwbench.config.strict_yaml._MAX_TOKENS", 100)
    path = tmp_path / "suite.yaml"
    # Each line has two values and two signs.
    path.write_text("".join(f"key{line}: 1\n" for line in range(20)))
    assert len(read_yaml(path)) == 20
    path.write_text("".join(f"key{line}: 1\n" for line in range(30)))
    with pytest.raises(UsageError, match=r"suite\.yaml:25: more than 100 keys, values and signs"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"leaf": {}, "leav": {}}, "unknown key 'leav'; did you mean 'leaf'"),
        ({"leaf": {"step": 1}}, "unknown key 'leaf.step'; did you mean 'steps'"),
        ({"leaf": {}, "maybe": {"step": 1}}, "unknown key 'maybe.step'; did you mean 'steps'"),
        ({"leaf": {}, "named": {"x": {"step": 1}}}, "unknown key 'named.x.step'; did you mean 'steps'"),
        ({"leaf": {}, "named": {"leaf": {"step": 1}}}, "unknown key 'named.leaf.step'; did you mean 'steps'"),
        ({"leaf": {}, "listed": [{"sise": 1}]}, "unknown key 'listed.0.sise'; did you mean 'size'"),
        ({"leaf": {"qqqqqqq": 1}}, "unknown key 'leaf.qqqqqqq'; known: size, steps"),
        ({}, "leaf: Field required$"),
        ({"leaf": {"steps": "3"}}, "leaf.steps: .* integer, got '3'"),
        ({"leaf": {"steps": True}}, "leaf.steps: .* integer, got True"),
        ({"leaf": {"steps": 1.0}}, "leaf.steps: .* integer, got 1.0"),
        ({"leaf": {"size": float("nan")}}, "leaf.size: .*finite"),
        ({"leaf": None}, "leaf: must be a mapping of keys to values, got None"),
        ({"leaf": {"steps": "x" * 500}}, r"x{90,110} \.\.\.$"),
    ],
)
def test_sections_name_the_key_at_fault_and_suggest(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"it.yaml: {message}" if not message.startswith("x") else message):
        validate(Tree, data, "it.yaml")


def test_sections_are_frozen() -> None:
    tree = validate(Tree, {"leaf": {"steps": 2}}, "it.yaml")
    assert tree.leaf.steps == 2
    with pytest.raises(ValueError, match="frozen"):
        tree.leaf.steps = 3  # type: ignore[misc]
