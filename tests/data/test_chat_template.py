"""Chat templates render as those of Hugging Face, answers are told from prompts, and what cannot work is one line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bushcraft.data.chat_template import ChatTemplate, from_json, load_chat_template
from bushcraft.errors import DataError
from tests.data.chatml import CHATML

LLAMA = (
    "{{- bos_token }}\n{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}\n"
    "    {{- message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n{%- endif %}"
)
USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": " Hi. "}
contents = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(contents, contents), min_size=1, max_size=4), st.sampled_from([CHATML, LLAMA]))
def test_prompts_and_answers_together_are_the_text(pairs: list[tuple[str, str]], source: str) -> None:
    template = ChatTemplate(source, bos_token="<s>")
    messages = [
        {"role": role, "content": content}
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    turns = template.turns(messages)
    assert "".join(turn.prompt + turn.answer for turn in turns) == template.render(messages)
    for turn, (prompt, answer) in zip(turns, pairs, strict=True):
        assert prompt.strip() in turn.prompt
        assert turn.answer.startswith(answer if source == CHATML else answer.strip())


def test_a_template_gets_the_variables_of_transformers() -> None:
    source = (
        "{{ bos_token }}|{{ eos_token }}|{{ strftime_now('%d %b %Y') }}|{{ tools is none }}|{{ messages|length }}|"
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    assert template.render([USER, ANSWER]) == "<s>|</s>|26 Jul 2024|True|2|Hello"


def test_json_in_a_template_is_not_escaped_for_html() -> None:
    message = {"role": "user", "content": "<é> it's & 中"}
    assert ChatTemplate("{{ messages[0].content | tojson }}").render([message]) == '"<é> it\'s & 中"'
    assert ChatTemplate("{{ messages[0] | tojson(indent=1) }}").render([USER]) == json.dumps(USER, indent=1)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{% for message in messages %}", "is not Jinja2, at its line 1: Unexpected end of template"),
        ("{{ raise_exception('no\nsystem') }}", "chat template t fails: no system"),
        ("{{ messages.append(1) }}", "fails: access to attribute 'append' of 'list' object is unsafe"),
        ("{{ ''.__class__.__mro__ }}", "fails: access to attribute '__class__'"),
        ("{{ 1 // 0 }}", "fails: integer division or modulo by zero"),
        ("{{ messages[0]['content'] }}", "leaves out answer 1"),
        (
            "{{ messages[0]['content'] }} and{% if add_generation_prompt %}:{% endif %}",
            "cannot be told from the prompt",
        ),
        ("{{ messages[-1]['content'] }}", "cannot be told from the prompt"),
    ],
)
def test_a_template_that_cannot_work_is_one_line(source: str, told: str) -> None:
    with pytest.raises(DataError) as refused:
        ChatTemplate(source, "t").turns([USER, ANSWER])
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_closes_an_answer() -> None:
    assert ChatTemplate(CHATML).closing() == "<|im_end|>"
    assert ChatTemplate("{{ messages[0].content }}").closing() == ""


def test_a_template_is_found_in_a_file_a_config_and_a_folder(tmp_path: Path) -> None:
    alone, folder = tmp_path / "a.jinja", tmp_path / "model"
    alone.write_text(CHATML)
    folder.mkdir()
    config = folder / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    config.write_text(
        json.dumps({"chat_template": named, "bos_token": None, "eos_token": {"content": "<|im_end|>", "special": True}})
    )
    found = load_chat_template(alone)
    assert (found.source, found.bos_token, found.eos_token) == (CHATML, None, None)
    assert found.with_separator("<s>").eos_token == "<s>"
    for path in (config, folder):
        found = load_chat_template(path)
        assert (found.source, found.bos_token, found.eos_token) == (CHATML, "", "<|im_end|>")
        assert found.with_separator("<s>").eos_token == "<|im_end|>"
    (folder / "chat_template.jinja").write_text(LLAMA)
    found = load_chat_template(folder)
    assert (found.source, found.eos_token) == (LLAMA, "<|im_end|>")
    assert from_json(found.to_json()).render([USER]) == found.render([USER])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.jinja", None, "cannot read"),
        ("empty.jinja", "", "there is no chat template in"),
        ("broken.jinja", "{% if %}", "is not Jinja2, at its line 1"),
        ("tokenizer_config.json", "{}", "there is no chat template in"),
        ("tokenizer_config.json", "[1]", "is not a tokenizer_config.json"),
        ("tokenizer_config.json", "no", "is not a tokenizer_config.json"),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": "rag", "template": "x"}, {"name": "tools", "template": "y"}]}',
            "no chat template called 'default' .it has rag, tools.",
        ),
        ("latin-1.jinja", "\xe4", "is not UTF-8"),
    ],
)
def test_a_file_without_a_template_is_named(tmp_path: Path, name: str, content: str | None, told: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=told) as refused:
        load_chat_template(path)
    assert name in str(refused.value)


def test_a_folder_without_a_template_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no chat template in"):
        load_chat_template(tmp_path)
