"""Reading, checking, comparing and storing recipes."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bushcraft.errors import RecipeError
from bushcraft.train.recipe import Recipe, RunConfig, differences, recipe_keys
from bushcraft.train.resolve import bundled_recipes, find_recipe, load_recipe

EXAMPLE = Path(__file__).with_name("example.toml")
"""A recipe with values that these tests know; the bundled ones may be tuned."""
TINY = EXAMPLE.read_text()


def load(*overrides: str) -> Recipe:
    return load_recipe(EXAMPLE, overrides).recipe


def refused(*overrides: str, recipe: str | Path = EXAMPLE) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "x.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", [file.stem for file in bundled_recipes().glob("*.toml")])
def test_every_bundled_recipe_loads_by_name_and_is_called_by_it(name: str) -> None:
    assert load_recipe(name).recipe.run.name == name


def test_tiny_is_what_is_trained_when_nothing_is_said() -> None:
    assert load_recipe().recipe == load_recipe("tiny").recipe == load_recipe("tiny.toml").recipe


def test_a_recipe_is_found_by_path_before_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke.toml").write_text(TINY)
    assert load_recipe("smoke.toml").recipe.run.name == "tiny"
    assert load_recipe("smoke").recipe.run.name == "smoke"
    assert find_recipe(tmp_path / "smoke.toml") == tmp_path / "smoke.toml"


def test_the_default_is_the_bundled_one_even_beside_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_text("")
    assert load_recipe(None).recipe.run.name == "tiny"


def test_a_recipe_that_does_not_exist_is_answered_with_the_names() -> None:
    assert "Did you mean tiny?" in refused(recipe="tny")
    assert "flash-21b, small, smoke, tiny, tiny-prefix" in refused(recipe="nowhere/x.toml")


def test_an_installed_package_finds_its_recipes_inside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bushcraft" / "recipes").mkdir(parents=True)
    monkeypatch.setattr("bushcraft.__file__", str(tmp_path / "bushcraft" / "__init__.py"))
    assert bundled_recipes() == tmp_path / "bushcraft" / "recipes"


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load().run.seed = 3  # type: ignore[misc]


def test_values_come_from_file_override_default_or_derivation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = load_recipe(write(tmp_path, TINY), ["run.seed=3", "checkpoint.every_sequences=64"])
    origins = {key: str(origin) for key, origin in resolved.provenance.items()}
    line = TINY.splitlines().index('dataset = "python"') + 1
    assert origins["data.sources.python.dataset"] == f"x.toml:{line}"
    assert origins["run.seed"] == "--set"
    assert origins["run.threads"] == "default"
    assert origins["checkpoint.every_minutes"] == "default"
    assert origins.keys() == resolved.recipe.values().keys()


def test_a_length_on_the_command_line_replaces_the_one_in_the_file() -> None:
    run = load("run.tokens=1e6").run
    assert (run.tokens, run.minutes, run.sequences) == (1_000_000, None, None)
    assert load("checkpoint.every_sequences=5").checkpoint.every_minutes is None


@given(st.integers(1, 10**7), st.integers(1, 64), st.integers(1, 2048), st.booleans())
def test_the_planned_run_is_the_fewest_whole_steps_that_reach_the_length(
    length: int, batch: int, width: int, in_tokens: bool
) -> None:
    wanted: dict[str, Any] = {"tokens" if in_tokens else "sequences": length}
    run = RunConfig(name="x", global_batch_size=batch, microbatch_size=1, sequence_length=width, **wanted)
    planned, unit = run.planned_sequences(), width if in_tokens else 1
    assert planned is not None
    assert planned % batch == 0
    assert (planned - batch) * unit < length <= planned * unit


def test_a_run_in_minutes_has_no_planned_sequences() -> None:
    assert load("run.minutes=3").run.planned_sequences() is None


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimizer.learnig_rate=1", "unknown key optimizer.learnig_rate in --set: did you mean optimizer.learning_"),
        ("optimzer.learning_rate=1", "unknown key optimzer.learning_rate in --set: did you mean optimizer.learning_"),
        ("data.sources.python.wieght=1", "did you mean data.sources.python.weight?"),
        (
            "objective.zzz.y={a=1, b=2}",
            "unknown key objective.zzz.y in --set: known keys are objective.kind, objective",
        ),
        ("zzz=1", "known keys are run, model, data, objective, optimizer, schedule, parallel, checkpoint, evaluate"),
        ("objective.zzz=1", "known keys are objective.kind, objective.mean_span"),
        ("run.microbatch_size=5", "size = 5 does not divide run.global_batch_size = 16: use 1, 2, 4, 8 or 16"),
        ("run.seed=-1", "run.seed = -1 in --set: use a whole number of at least 0 and below"),
        ("run.seed=x", 'run.seed = "x" in --set: use a whole number of at least 0'),
        ("run.tokens=1.5", "run.tokens = 1.5 in --set: use a whole number above 0"),
        ("run.minutes=inf", "run.minutes = inf in --set: use a number above 0"),
        ("run.name=a/b", 'run.name = "a/b" in --set: use text that matches'),
        ("run.compile=yes", 'run.compile = "yes" in --set: use true or false'),
        ("run.compile=1", "run.compile = 1 in --set: use true or false"),
        ("run.precision=fp16", 'run.precision = "fp16" in --set: use "auto" or "fp32" or "bf16"'),
        ("optimizer.learning_rate=0", "optimizer.learning_rate = 0 in --set: use a number above 0"),
        ("optimizer.betas=[0.9, 1]", "use a list of 2, each a number of at least 0 and below 1"),
        ("optimizer.betas=[0.9]", "use a list of 2, each a number of at least 0 and below 1"),
        ("optimizer=3", "optimizer = 3 in --set: use a table"),
        ("run.seed.x=1", "run.seed = {x = 1} in --set: use a whole number"),
        ("schedule.warmup=0.9", "use a decay of at most 0.1"),
        ("schedule.decay=1.5", "schedule.decay = 1.5 in --set: use a number of at least 0 and at most 1"),
        ("data.sources={}", "data.sources = {} in --set: use one or more named tables"),
        ('data.sources={"a b"={dataset="x"}}', 'data.sources has the name "a b": use letters, digits'),
        ('data.sources={"é"={dataset="x"}}', 'data.sources has the name "é": use letters, digits'),
        ("model.n_kv_heads=3", "model.n_kv_heads = 3 does not divide model.n_heads = 4"),
        ("evaluate.sample_prompts=[3]", "evaluate.sample_prompts = [3] in --set: use a list, each item text"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_what_would_do(override: str, says: str) -> None:
    message = refused(override)
    assert says in message
    assert "\n" not in message


def test_a_mistake_in_a_file_names_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, TINY.replace("learning_rate", "learnig_rate"))
    line = next(number for number, text in enumerate(TINY.splitlines(), 1) if text.startswith("learning_rate"))
    assert refused(recipe=path) == (
        f"unknown key optimizer.learnig_rate in x.toml:{line}: did you mean optimizer.learning_rate?"
    )


def test_all_mistakes_of_a_file_come_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, TINY.replace("seed = 0", 'seed = "zero"').replace("[evaluate]", "[evalute]"))
    heading, *mistakes = refused("run.microbatch_size=-3", recipe=path).splitlines()
    assert heading == "3 problems in x.toml:"
    assert [mistake[:24] for mistake in mistakes] == [
        '  - run.seed = "zero" in x.toml:6'[:24],
        "  - run.microbatch_size = -3 in --set"[:24],
        "  - unknown key evalute in x.toml"[:24],
    ]


def test_an_empty_file_is_told_what_it_lacks(tmp_path: Path) -> None:
    message = refused(recipe=write(tmp_path, ""))
    assert "run.name is missing" in message
    assert "run.global_batch_size is missing in " in message
    assert "give a whole number above 0 (Sequences per optimizer step, over all devices)" in message
    assert "optimizer.learning_rate is missing" in message
    assert "data.sources is missing" in message


@pytest.mark.parametrize("lengths", [[], ["minutes=1", "tokens=5"], ["sequences=1", "tokens=5", "minutes=1"]])
def test_a_run_has_exactly_one_length(lengths: list[str], tmp_path: Path) -> None:
    text = TINY.replace("minutes = 4 ", "\n".join(lengths) + "\n")
    message = refused(recipe=write(tmp_path, text))
    assert ("keep one" if lengths else "give one of run.sequences, run.tokens, run.minutes") in message


def test_two_checkpoint_intervals_are_refused() -> None:
    assert "keep one of them" in refused("checkpoint.every_minutes=1", "checkpoint.every_sequences=1")


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_microbatch_sizes_that_are_named_would_do(batch: int, microbatch: int) -> None:
    sizes = {"global_batch_size": batch, "microbatch_size": microbatch}
    try:
        RunConfig(name="x", sequences=1, sequence_length=1, **sizes)
        assert batch % microbatch == 0
    except ValidationError as error:
        offered = str(error.errors()[0]["ctx"]["error"]).partition("use ")[2].replace(" or ", ", ").split(", ")
        assert 1 <= len(offered) <= 12
        assert all(batch % int(size) == 0 for size in offered)


def test_a_name_may_be_a_number() -> None:
    assert load("run.name=2024").run.name == "2024"


def test_whole_numbers_may_be_written_as_1e9() -> None:
    assert load("run.tokens=1e9") == load("run.tokens=1000000000")
    assert isinstance(load("run.tokens=1e9").run.tokens, int)


@settings(deadline=None)  # a busy machine is no failure
@given(st.floats(1e-9, 1), st.integers(0, 2**63 - 1), st.lists(st.text(), max_size=3))
def test_json_gives_the_recipe_back(rate: float, seed: int, prompts: list[str]) -> None:
    tiny = load()
    recipe = tiny.model_copy(
        update={
            "run": tiny.run.model_copy(update={"seed": seed}),
            "optimizer": tiny.optimizer.model_copy(update={"learning_rate": rate}),
            "evaluate": tiny.evaluate.model_copy(update={"sample_prompts": tuple(prompts)}),
        }
    )
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert again.digest() == recipe.digest()


def test_json_that_is_not_a_recipe_is_refused_in_one_line() -> None:
    table = json.loads(load().to_json())
    for text in ("{", "[]", json.dumps(table | {"extra": 1})):
        with pytest.raises(RecipeError, match="the manifest") as caught:
            Recipe.from_json(text, source="the manifest")
        assert "\n" not in str(caught.value)


def test_the_digest_depends_on_values_and_not_on_how_they_are_written(tmp_path: Path) -> None:
    rewritten = TINY.replace("3e-3", "0.003").replace("weight = 1.0", "weight = 1").replace("65_536", "65536")
    assert load_recipe(write(tmp_path, rewritten)).recipe.digest() == load().digest()
    assert load("run.seed=1").digest() != load().digest()
    assert len(load().digest()) == 64


def test_the_digest_does_not_depend_on_the_order_of_sources() -> None:
    one = load("data.sources={a={dataset='x'}, b={dataset='y'}}")
    other = load("data.sources={b={dataset='y'}, a={dataset='x'}}")
    assert one.digest() == other.digest()


def test_differences_name_the_values_that_changed() -> None:
    new = load("run.seed=1", "data.sources.code={dataset='code', weight=0.5}")
    assert differences(load(), load()) == {}
    assert differences(load(), new) == {
        "run.seed": (0, 1),
        "data.sources.code.dataset": (None, "code"),
        "data.sources.code.weight": (None, 0.5),
    }


def test_every_key_has_a_description() -> None:
    sections = {*Recipe.model_fields, "data.sources.*", "objective.parts.*"}
    assert [key for key, field in recipe_keys().items() if key not in sections and not field.description] == []
