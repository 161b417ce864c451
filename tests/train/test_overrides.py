"""What the user wrote: TOML with the place of each key, and `--set`."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bushcraft.errors import RecipeError
from bushcraft.train.overrides import (
    Origin,
    Override,
    Written,
    key_lines,
    nearest_key,
    parse_override,
    read_toml,
    same_key,
    toml_value,
    with_overrides,
)
from bushcraft.train.recipe import recipe_keys

names = st.text("abcdefgh_", min_size=1, max_size=6)
scalars = (
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))
IN_FILE = {"recipe": {"seed": 1, "minutes": 4}, "data": {"sources": {"a": {"weight": 1.0}, "b": {"weight": 2.0}}}}


def written(table: dict[str, Any]) -> Written:
    return Written(table, {}, "x.toml")


@given(values)
def test_a_toml_value_reads_back_as_itself(value: Any) -> None:
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value


@given(scalars | st.lists(scalars, max_size=3))
def test_an_override_written_as_toml_gives_that_value(value: Any) -> None:
    assert parse_override(f"a.b={toml_value(value)}") == Override("a.b", value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=3", 3),
        ("a.b = 1e-3 ", 1e-3),
        ("a.b=true", True),
        ("a.b=[1, 2]", [1, 2]),
        ('a.b=["x", "y"]', ["x", "y"]),
        ("a.b=hello", "hello"),
        ("a.b=7b", "7b"),
        ("a.b='7'", "7"),
        ("a.b=x=y", "x=y"),
        ("a.b=1\nc=2", "1\nc=2"),
    ],
)
def test_an_override_is_toml_or_else_text(text: str, value: Any) -> None:
    assert parse_override(text) == Override("a.b", value)


def test_a_text_key_takes_a_number_as_text() -> None:
    assert parse_override("run.name=2024", ["run.name"]) == Override("run.name", "2024")
    assert parse_override("data.sources.x.dataset=7", ["data.sources.*.dataset"]).value == "7"
    assert parse_override("run.name='7'", ["run.name"]).value == "7"
    assert parse_override("run.seed=2024", ["run.name"]).value == 2024


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("run.seed", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("run..seed=3", "not of the form key=value"),
        ("run.seed=", "gives no value"),
        ("evaluate.sample_prompts=[a, b]", "double quotes"),
        ('run.name="tiny', "not a valid TOML value"),
    ],
)
def test_an_override_that_cannot_be_read_says_how_to_write_it(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse_override(text)


def test_overrides_reach_nested_tables_and_leave_the_file_s_table_alone() -> None:
    file = written(IN_FILE)
    new = with_overrides(file, [Override("data.sources.a.weight", 0.3), Override("data.sources.c.weight", 1.0)])
    assert new.table["data"]["sources"] == {"a": {"weight": 0.3}, "b": {"weight": 2.0}, "c": {"weight": 1.0}}
    assert file.table["data"]["sources"]["a"]["weight"] == 1.0
    assert new.origins["data.sources.a.weight"] == Origin("override", "--set")


def test_the_last_override_of_a_key_wins() -> None:
    assert with_overrides(written({}), [Override("a.b", 1), Override("a.b", 2)]).table == {"a": {"b": 2}}


def test_a_table_replaces_a_table() -> None:
    origins = {key: Origin("recipe", "x.toml:1") for key in ("data.sources", "data.sources.a")}
    file = Written(IN_FILE, origins, "x.toml")
    new = with_overrides(file, [Override("data.sources", {"c": {"weight": 3}})])
    assert new.table["data"]["sources"] == {"c": {"weight": 3}}
    assert set(new.origins) == {"data.sources", "data.sources.c", "data.sources.c.weight"}
    assert str(new.origins["data.sources.c.weight"]) == "--set"


def test_an_override_takes_the_place_of_the_file_s_alternative_only() -> None:
    alternatives = [("recipe.minutes", "recipe.steps")]
    new = with_overrides(written(IN_FILE), [Override("recipe.steps", 9)], alternatives)
    assert new.table["recipe"] == {"seed": 1, "steps": 9}
    both = with_overrides(written(IN_FILE), [Override("recipe.steps", 9), Override("recipe.minutes", 2)], alternatives)
    assert both.table["recipe"] == {"seed": 1, "steps": 9, "minutes": 2}


def test_every_key_is_found_on_the_line_where_it_starts() -> None:
    text = '# comment\n[a]\nx = 1\n\nlist = [\n  1,  # x = 2\n  2,\n]\ntext = """\nz = 3\n"""\n[a.b]\ny.z = { w = 1 }\n'
    assert key_lines(text) == {"a": 2, "a.x": 3, "a.list": 5, "a.text": 9, "a.b": 12, "a.b.y": 13} | {
        "a.b.y.z": 13,
        "a.b.y.z.w": 13,
    }


@settings(deadline=None)  # a busy machine is no failure
@given(st.dictionaries(names, scalars, max_size=8), st.data())
def test_the_line_of_a_key_holds_its_name(table: dict[str, Any], data: st.DataObject) -> None:
    lines: list[str] = []
    for name, value in table.items():
        lines += [""] * data.draw(st.integers(0, 2)) + [f"{name} = {toml_value(value)}"]
    found = key_lines("\n".join(lines))
    assert {name: lines[line - 1].partition(" ")[0] for name, line in found.items()} == {name: name for name in table}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[run]\nseed 3\n", r"x\.toml:2, column 6: not valid TOML: Expected '='"),
        (b"[run]\nseed =", r"x\.toml:2"),
        (b"a = 1\na = 2\n", r"x\.toml:2.*overwrite"),
        (b"\xff\xfe", r"x\.toml is not UTF-8"),
    ],
)
def test_a_file_that_is_not_toml_names_the_line(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=says) as caught:
        read_toml(path, "x.toml")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read_toml(tmp_path / "x.toml", "x.toml")


KEYS = [key.replace("*", "python") for key in recipe_keys() if not key.endswith("*")]


@settings(deadline=None)  # a busy machine is no failure
@given(st.sampled_from(KEYS), st.data())
def test_a_key_with_one_slip_is_recognised(key: str, data: st.DataObject) -> None:
    section, _, name = key.rpartition(".")
    at = data.draw(st.integers(0, max(len(name) - 2, 0)))
    slips = [name[:at] + name[at + 1] + name[at] + name[at + 2 :], name[: at + 1] + name[at] + name[at + 1 :]]
    if len(name) > 3:
        slips.append(name[:at] + name[at + 1 :])
    slipped = f"{section}.{data.draw(st.sampled_from(slips))}".lstrip(".")
    assert nearest_key(slipped, KEYS) == key or slipped in KEYS


def test_a_key_in_the_wrong_section_is_found_in_its_own() -> None:
    assert nearest_key("run.learning_rate", KEYS) == "optimizer.learning_rate"
    assert nearest_key("learning_rate", KEYS) == "optimizer.learning_rate"


def test_a_key_that_is_like_nothing_gets_no_suggestion() -> None:
    assert nearest_key("run.zzz", KEYS) is None


def test_a_star_stands_for_one_name() -> None:
    assert same_key("a.*.c", "a.b.c")
    assert not same_key("a.*.c", "a.b.b.c")
    assert not same_key("a.b", "a.c")
