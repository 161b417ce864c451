"""The listing of a resolved recipe, and the reference page."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from bushcraft.train.explain import explain, explain_json, explain_text, print_explanation, reference_markdown
from bushcraft.train.overrides import toml_value
from bushcraft.train.recipe import recipe_keys
from bushcraft.train.resolve import load_recipe

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "recipe.md"
EXAMPLE = Path(__file__).with_name("example.toml")
RESOLVED = load_recipe(EXAMPLE, ["run.seed=7", "data.sources.code={dataset='code'}"])


def test_every_value_is_listed_once_with_its_origin() -> None:
    listed = {value.key: value for value in explain(RESOLVED)}
    assert len(listed) == len(explain(RESOLVED))
    assert {key: value.value for key, value in listed.items()} == RESOLVED.recipe.values()
    assert listed["run.seed"].origin == "--set"
    assert listed["run.seed"].description.startswith("Initial weights")
    assert listed["data.sources.code.weight"].origin == "default"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(prompts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3), seed=st.integers(0, 2**63 - 1))
def test_the_text_is_a_recipe_that_resolves_to_the_same_values(prompts: list[str], seed: int, tmp_path: Path) -> None:
    overrides = [f"evaluate.sample_prompts={toml_value(prompts)}", f"run.seed={seed}", "checkpoint.every_sequences=9"]
    resolved = load_recipe(EXAMPLE, overrides)
    path = tmp_path / "explained.toml"
    path.write_text(explain_text(resolved), encoding="utf-8")
    assert load_recipe(path).recipe.digest() == resolved.recipe.digest()


def test_the_text_shows_origin_and_meaning_beside_each_value() -> None:
    lines = explain_text(RESOLVED).splitlines()
    (seed,) = (line for line in lines if line.startswith("seed ="))
    assert seed.split()[:5] == ["seed", "=", "7", "#", "--set"]
    assert seed.endswith("Initial weights, data order and every random draw follow from it.")
    assert any(line.startswith("# sequences = none") for line in lines)
    assert RESOLVED.recipe.digest() in lines[0]


def test_json_has_every_value_with_its_origin() -> None:
    explained = json.loads(explain_json(RESOLVED))
    assert explained["digest"] == RESOLVED.recipe.digest()
    values = {value["key"]: value for value in explained["values"]}
    assert values.keys() == RESOLVED.recipe.values().keys()
    assert (values["run.seed"]["value"], values["run.seed"]["from"]) == (7, "--set")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_a_table_and_a_pipe_gets_toml(terminal: bool) -> None:
    out = io.StringIO()
    print_explanation(RESOLVED, console=Console(file=out, force_terminal=terminal, width=160))
    assert (out.getvalue() == explain_text(RESOLVED)) != terminal
    assert all(f"{key} " in out.getvalue() for key in RESOLVED.recipe.values()) == terminal


def test_json_is_asked_for_and_not_guessed() -> None:
    out = io.StringIO()
    print_explanation(RESOLVED, as_json=True, console=Console(file=out, force_terminal=True))
    assert out.getvalue() == explain_json(RESOLVED) + "\n"


def test_the_reference_has_every_key() -> None:
    text = reference_markdown()
    for key in recipe_keys():
        assert f"`{key.rpartition('.')[2]}`" in text or f"`[{key.replace('*', 'NAME')}]`" in text


def test_the_reference_page_is_up_to_date() -> None:
    command = 'python -c "from bushcraft.train.explain import *; print(reference_markdown(), end=str())"'
    assert REFERENCE.read_text(encoding="utf-8") == reference_markdown(), f"{command} > docs/reference/recipe.md"
