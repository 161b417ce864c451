"""From what the user wrote to a recipe: found by path or name, read from TOML, changed with `--set a.b=c`, checked.

Of each value it is known where it came from.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import bushcraft
from bushcraft.errors import RecipeError
from bushcraft.train.overrides import Origin, nearest_key, parse_override, read_toml, same_key, with_overrides
from bushcraft.train.recipe import CHECKPOINT_INTERVALS, RUN_LENGTHS, Recipe, recipe_keys


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe, where each of its values came from, and the name of the file that it was read from."""

    recipe: Recipe
    provenance: Mapping[str, Origin]
    source: str


def load_recipe(recipe: str | Path | None = None, overrides: Iterable[str] = ()) -> ResolvedRecipe:
    """Read a recipe (a path, or the name of one that comes with Bushcraft; `tiny` by default) and override it."""
    path = find_recipe(recipe)
    text_keys = [key for key, field in recipe_keys().items() if field.annotation is str]
    written = with_overrides(
        read_toml(path, _shown(path)),
        [parse_override(text, text_keys) for text in overrides],
        alternatives=[RUN_LENGTHS, CHECKPOINT_INTERVALS],
    )
    checked = Recipe.checked(written)
    defaults = {key: field.get_default(call_default_factory=True) for key, field in recipe_keys().items()}

    def origin(key: str, value: object) -> Origin:
        pattern = next(k for k in defaults if same_key(k, key))
        return written.origins.get(key) or Origin("default" if value == defaults[pattern] else "derived")

    provenance = {key: origin(key, value) for key, value in checked.values().items()}
    return ResolvedRecipe(checked, MappingProxyType(provenance), written.source)


def find_recipe(recipe: str | Path | None = None) -> Path:
    """The file of a recipe that is given by its path or by its bare name."""
    folder = bundled_recipes()
    path = Path(recipe or "tiny")
    if recipe is not None and path.is_file():
        return path
    if len(path.parts) == 1 and (folder / path.with_suffix(".toml").name).is_file():
        return folder / path.with_suffix(".toml").name
    names = sorted(file.stem for file in folder.glob("*.toml"))
    nearest = nearest_key(path.stem, names)
    hint = f"Did you mean {nearest}? " if nearest else ""
    raise RecipeError(f"there is no recipe {path}", f"{hint}Give a path, or one of the names {', '.join(names)}")


def bundled_recipes() -> Path:
    """The folder of the recipes that come with Bushcraft: inside an installed package, or beside src/."""
    package = Path(bushcraft.__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def _shown(path: Path) -> str:
    """A path as messages show it: relative to the working directory where it lies inside."""
    absolute = path.resolve()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path)
