"""The documentation is true: its commands exist, its links lead somewhere, what it says can be run runs."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bushcraft.cli import app
from bushcraft.data.tokenizer_training import train_tokenizer
from bushcraft.store.local import LocalDepot
from tests.conftest import random_documents, write_pack

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
COMMAND = typer.main.get_command(app)
RUNNABLE = "<!-- run -->"
_BLOCK = re.compile(r"(?P<mark><!-- \w+ -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(bushcraft [^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_OPTIONS_OF_ALL = {"--help", "-h"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str, mark: str = "") -> list[str]:
    """The fenced blocks of a language; with `mark` only those behind that HTML comment."""
    found = _BLOCK.finditer(page.read_text())
    return [b["text"] for b in found if b["language"] == language and mark in (b["mark"] or "")]


def simple_commands(script: str) -> Iterator[list[str]]:
    """The words of each command of a shell script, without variables, redirections and `timeout`."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                yield without_prefix(words)
                words = []
            else:
                words.append(word)


def without_prefix(words: list[str]) -> list[str]:
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    return words[4:] if words[:3] == ["timeout", "-s", "KILL"] else words


def leaf(words: list[str]) -> tuple[str, Any, list[str]]:
    """The command that `words` (after `bushcraft`) name, and the words that are left for it."""
    command, name = COMMAND, "bushcraft"
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{name} has no command {words[0]!r}"
        name, command, words = f"{name} {words[0]}", command.commands[words[0]], words[1:]
    return name, command, words


def options_of(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts if option.startswith("-")}


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, below in command.commands.items():
        yield from leaves(below, f"{name} {word}")


def slug(heading: str) -> str:
    """The anchor that MkDocs gives a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_blocks_parse(page: Path) -> None:
    for block in blocks(page, "sh"):
        for words in simple_commands(block):
            if words[:1] == ["bushcraft"]:
                name, command, rest = leaf(words[1:])
                try:
                    command.make_context(name, rest)
                except Exception as error:
                    pytest.fail(f"{name_of(page)}: {shlex.join(words)}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_text_exist(page: Path) -> None:
    for text in _INLINE.findall(page.read_text()):
        words = [word for word in text.split()[1:] if word.islower() or word.startswith("-")]
        if "|" in text or words[:1] == []:  # `bushcraft run list|show` and `bushcraft COMMAND`
            continue
        _, command, rest = leaf(words)
        known = options_of(command) | _OPTIONS_OF_ALL
        assert {word for word in rest if word.startswith("--")} <= known, f"{name_of(page)}: {text}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {w[1] for block in blocks(page, "sh") for w in simple_commands(block) if w[:1] == ["make"]}
    assert used <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    inside = DOCS if page.is_relative_to(DOCS) else ROOT
    for link in _LINK.findall(page.read_text()):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{name_of(page)}: {link}"
        assert target.is_relative_to(inside), f"{name_of(page)}: {link} is outside of what is published"
        if anchor:
            assert anchor in map(slug, _HEADING.findall(target.read_text())), f"{name_of(page)}: {link}"


def test_navigation_has_every_page() -> None:
    listed = re.findall(r"\S+\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_reference_has_every_command_and_option() -> None:
    text = (DOCS / "reference" / "commands.md").read_text()
    sections = dict(re.findall(r"^## `(bushcraft [^`]+)`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    existing = dict(leaves(COMMAND, "bushcraft"))
    assert set(sections) == set(existing)
    for name, command in existing.items():
        assert set(_OPTION.findall(sections[name])) == options_of(command) - _OPTIONS_OF_ALL, name


def test_claims_quote_their_results() -> None:
    """Each benchmark that the README names exists, and each number beside a claim is one of its result's."""
    claims = (ROOT / "README.md").read_text().split("<!-- claims -->")[1].split("<!-- /claims -->")[0]
    for row in claims.strip().splitlines()[2:]:
        name = re.findall(r"benchmarks/results/(\w+)\.json", row)[0]
        assert (ROOT / "benchmarks" / f"{name}.py").is_file(), f"there is no benchmark {name}"
        quoted = re.findall(r"\d+(?:\.\d+)?", re.sub(r"`[^`]*`", "", row))
        result = ROOT / "benchmarks" / "results" / f"{name}.json"
        known = (
            {number for row in json.loads(result.read_text())["rows"] for number in numbers(row)} if quoted else set()
        )
        for number in quoted:
            digits = len(number.partition(".")[2])
            assert any(f"{value:.{digits}f}" == number for value in known), f"{number} is not in {result.name}"


def numbers(row: dict[str, Any]) -> list[float]:
    return [value for value in row.values() if isinstance(value, int | float) and not isinstance(value, bool)]


def test_the_published_reader_reads_a_pack(depot: LocalDepot) -> None:
    documents = list(random_documents(seed=1, n_documents=150, max_tokens=5000))
    entry = write_pack(depot, documents)
    assert entry.n_tokens > 2 * 131_072  # several frames
    (code,) = blocks(DOCS / "reference" / "formats.md", "python", "<!-- reader -->")
    published: dict[str, Any] = {}
    exec(code, published)
    read = published["read_pack"](depot.read(entry.object), entry.footer)
    assert [(name, list(tokens), size) for name, tokens, size in read] == [
        (f"document-{i}", tokens.tolist(), 4 * len(tokens)) for i, tokens in enumerate(documents)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the pages assume to be there: `books/`, `posts/`, `rows.parquet`, `tokenizer.json`."""
    texts = [path.read_text() for path in sorted(Path(json.__file__).parent.glob("*.py"))]
    texts += [path.read_text() for path in sorted((ROOT / "src").rglob("*.py"))]
    for kind in ("books", "posts"):
        (tmp_path / kind).mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "books" / f"{i}.txt").write_text(text)
    lines = [json.dumps({"body": text}) + "\n" for text in texts]
    (tmp_path / "posts" / "1.jsonl").write_text("".join(lines))
    (tmp_path / "tokenizer.json").write_bytes(train_tokenizer(texts, 512).json)
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table({"content": texts}), tmp_path / "rows.parquet")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if RUNNABLE in page.read_text()], ids=name_of)
def test_marked_blocks_run(page: Path, folder: Path) -> None:
    """All in one shell and in order, on a small data set `python`; what `timeout` kills may be killed."""
    script = "\n".join(["bushcraft data build python books/", *blocks(page, "sh", RUNNABLE)])
    script = re.sub(r"^(timeout -s KILL .*)$", r"\1 || test $? = 137", script, flags=re.MULTILINE)
    environment = os.environ | {
        "BUSHCRAFT_STORE": str(folder / "store"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(["bash", "-exc", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
