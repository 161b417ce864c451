import gzip
import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from bushcraft.data import readers, streams
from bushcraft.data.readers import Document, Slice, documents
from bushcraft.data.sources import find_sources
from bushcraft.data.streams import cut_near, lines, pieces
from bushcraft.data.tasks import plan_tasks
from bushcraft.errors import DataError


def read_all(*patterns: object, column: str = "text", lone: bool = False) -> list[Document]:
    tasks = plan_tasks(find_sources([str(p) for p in patterns]), column, lone)
    return [document for task in tasks for part in task.slices for document in documents(part, column)]


def test_every_kind_of_file_gives_its_text(tmp_path: Path) -> None:
    texts = ["first\n", "zweites: ä\n", "第三\n"]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    for name in ("a.txt", "a.md", "a.rst", "a.py"):
        (tmp_path / name).write_text(texts[0])
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(texts[1].encode()))
    (tmp_path / "b.md.zst").write_bytes(zstandard.compress(texts[1].encode()))
    (tmp_path / "c.jsonl").write_bytes(rows)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(rows))
    (tmp_path / "e.jsonl.zst").write_bytes(zstandard.compress(rows[:20]) + zstandard.compress(rows[20:]))
    pq.write_table(pa.table({"text": texts}), tmp_path / "f.parquet", row_group_size=2)
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    top = tmp_path.name
    found = {document.name: document.text.decode() for document in read_all(tmp_path)}
    assert found == {
        **{f"{top}/a{ending}": texts[0] for ending in (".txt", ".md", ".rst", ".py")},
        f"{top}/b.txt.gz": texts[1],
        f"{top}/b.md.zst": texts[1],
        **{
            f"{top}/{f}@{o}": t
            for f in ("c.jsonl", "d.jsonl.gz", "e.jsonl.zst")
            for o, t in zip((0, 20, 50), texts, strict=True)
        },
        **{f"{top}/f.parquet@{row}": text for row, text in enumerate(texts)},
    }


def test_a_row_is_named_by_the_byte_at_which_it_starts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * n}) + "\n" for n in range(30)))
    for document in read_all(path):
        offset = int(document.name.split("@")[1])
        assert json.loads(path.read_bytes()[offset:].split(b"\n")[0])["text"].encode() == document.text


@example(text="é", bounds=[1])
@example(text="a🙂", bounds=[3])
@given(text=st.text(alphabet="aé🙂\n ", max_size=400), bounds=st.lists(st.integers(0, 900), max_size=6))
def test_ranges_cut_at_newlines_join_to_the_whole_file(text: str, bounds: list[int]) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        file.write(data := text.encode())
        file.flush()
        source = find_sources([file.name])[0]
        edges = sorted({0, len(data), *(min(b, len(data)) for b in bounds)})
        parts = [Slice(source, a, b, cut_bytes=16) for a, b in itertools.pairwise(edges)]
        read = [document for part in parts for document in documents(part)]  # any cut inside a character would raise
        assert b"".join(document.text for document in read) == data
        assert [int(d.name.split("@")[1]) for d in read] == [
            sum(len(e.text) for e in read[:i]) for i in range(len(read))
        ]
        assert all(len(document.text) < 32 + 4 for document in read)


def test_shared_jsonl_gives_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"row {i} " + "é" * (i % 97)}, ensure_ascii=False) + "\n" for i in range(3000))
    )
    for size in (1000, 1001, 4096):
        monkeypatch.setattr("bushcraft.data.tasks.SMALLEST_TASK", size)
        monkeypatch.setattr("bushcraft.data.tasks.TASKS_AT_LEAST", 10**9)
        tasks = plan_tasks(find_sources([str(path)]))
        assert len(tasks) > 20
        assert [int(d.text.split()[1]) for t in tasks for p in t.slices for d in documents(p)] == list(range(3000))


def test_a_text_file_without_newlines_is_cut_between_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LARGEST_TEXT", 1000)
    monkeypatch.setattr(readers, "CUT_BYTES", 100)
    text = "第" * 2000
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    found = read_all(tmp_path / "a.txt.gz")
    assert len(found) > 20
    assert "".join(document.text.decode() for document in found) == text
    (tmp_path / "b.txt").write_text(text)
    assert cut_near(str(tmp_path / "b.txt"), 100, 6000, window=50) == 102


def test_a_lone_text_file_becomes_several_documents_so_that_some_can_be_held_out(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("a line of text\n" * 20_000)
    assert 32 <= len(read_all(tmp_path / "all.txt", lone=True)) <= 64
    assert len(read_all(tmp_path / "all.txt")) == 1


@example(b"aaaaaaaaaa\nb\n", [5], 2)
@given(st.text(alphabet="aaab\n", max_size=200).map(str.encode), st.lists(st.integers(0, 200)), st.integers(1, 30))
def test_lines_know_their_offsets_however_the_blocks_fall(data: bytes, cuts: list[int], longest: int) -> None:
    edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    blocks = (data[a:b] for a, b in itertools.pairwise(edges))
    expected, offset = [], 0
    for line in data.split(b"\n"):
        expected.append((offset, line[: longest + 1]))
        offset += len(line) + 1
    if data.endswith(b"\n") or not data:
        expected.pop()
    assert list(lines(blocks, longest)) == expected


@given(st.text(alphabet="aé🙂\n"), st.integers(4, 40))
def test_pieces_join_to_the_text_and_never_cut_a_character(text: str, longest: int) -> None:
    found = list(pieces(text.encode(), longest))
    assert "".join(piece.decode() for piece in found) == text
    assert all(0 < len(piece) <= longest for piece in found)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ok\ncaf\xe9\n", "a.txt is not UTF-8 at byte 6"),
        ("a.txt.gz", gzip.compress(b"text " * 999, mtime=0)[:-9], "a.txt.gz is truncated or corrupted"),
        ("a.txt.gz", b"no gzip", "a.txt.gz is truncated or corrupted"),
        ("a.txt.zst", zstandard.compress(b"text " * 999)[:-9], "a.txt.zst is truncated or corrupted"),
        ("a.txt.zst", b"no zstd at all", "a.txt.zst is truncated or corrupted"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": "y"', "a.jsonl:3: not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 5}', "a.jsonl:2: 'text' is int, not text"),
        ("a.jsonl", b'{"body": "x", "id": 1}', "a.jsonl:1: there is no column 'text' (there is 'body', 'id')"),
        ("a.jsonl", b'["text"]', "a.jsonl:1: the line is not a JSON object"),
        ("a.jsonl", b'{"text": "\\ud800"}', "a.jsonl:1: 'text' holds half of a surrogate pair"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}', "a.jsonl is not UTF-8 at byte 24"),
        ("a.jsonl", b"[" * 200_000, "a.jsonl:1: not JSON"),
        ("a.parquet", b"PAR1 no parquet", "a.parquet is truncated or corrupted"),
    ],
)
def test_bad_input_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_all(tmp_path / name)
    assert message in caught.value.message
    assert caught.value.next_step
    assert "\n" not in str(caught.value)


def test_parquet_without_such_a_column_or_with_nulls_says_so(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"has no column 'text' \(it has 'body', 'n'\)"):
        read_all(tmp_path)
    with pytest.raises(DataError, match="column 'n' is int64, not text"):
        read_all(tmp_path, column="n")
    assert [d.text for d in read_all(tmp_path, column="body")] == [b"x"]
    pq.write_table(pa.table({"text": ["x", None]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 1: 'text' is null"):
        read_all(tmp_path)


def test_a_bad_line_deep_in_a_shared_file_is_named_by_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bushcraft.data.tasks.SMALLEST_TASK", 100)
    rows = [json.dumps({"text": f"row {i}"}) for i in range(200)]
    rows[150] = "broken"
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"a\.jsonl:151: not JSON"):
        read_all(tmp_path)


def test_a_row_above_the_limit_is_refused_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LARGEST_ROW", 50)
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 100 + '"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: the line is longer"):
        read_all(tmp_path)
    assert max(len(line) for _, line in lines(iter([b"x" * 10] * 100), 50)) == 51


def test_skipped_input_leaves_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\nbroken\n{"text": "y"}\n')
    (tmp_path / "b.txt").write_bytes(b"\xff")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "z"}\n' * 2000, mtime=0)[:-10])
    bad: list[DataError] = []
    tasks = plan_tasks(find_sources([str(tmp_path)]))
    found = [d.text for t in tasks for p in t.slices for d in documents(p, on_bad=bad.append)]
    assert found[:2] == [b"x", b"y"]
    assert set(found[2:]) <= {b"z"}
    assert [Path(str(error).split(":")[0].split()[0]).name for error in bad] == ["a.jsonl", "b.txt", "c.jsonl.gz"]


def test_inputs_that_are_not_there_or_not_readable_are_named(tmp_path: Path) -> None:
    (tmp_path / "image.png").touch()
    for pattern, message in [
        ("nothing", "does not exist"),
        ("*.txt", "no file matches"),
        ("image.png", "is of no known kind"),
        (".", "holds none of .txt .md .rst .py .jsonl (also .gz and .zst of these) .parquet (only 1 .png)"),
    ]:
        with pytest.raises(DataError) as caught:
            find_sources([str(tmp_path / pattern)])
        assert message in caught.value.message
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"cannot read .*dangling\.txt: No such file"):
        find_sources([str(tmp_path)])


def test_a_folder_that_cannot_be_listed_is_an_error_not_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a.txt").write_text("x")
    (tmp_path / "closed").mkdir()
    real = streams.os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)  # tests may run as root, whom no mode stops
    with pytest.raises(DataError, match=r"cannot read folder .*closed: Permission denied"):
        find_sources([str(tmp_path)])
    bad: list[DataError] = []
    assert len(find_sources([str(tmp_path)], bad.append)) == 1
    assert len(bad) == 1


def test_overlapping_patterns_give_a_file_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("x")
    patterns = [str(tmp_path), str(tmp_path / "**" / "*.txt"), str(tmp_path / "sub" / "a.txt")]
    assert len(find_sources(patterns)) == 1
