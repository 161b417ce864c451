"""lm-evaluation-harness runs offline task files on our models, of both architectures."""

import json
from pathlib import Path

import pytest

from bushcraft.errors import DataError
from bushcraft.store.workspace import Store
from bushcraft.train.load_model import load_model
from tests.train.saved_model import save_model

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'bushcraft[eval]'")
KINDS = {
    "causal": ["objective.kind=causal"],
    "prefix": ["objective.kind=prefix"],
    "encoder-decoder ul2": ["objective.kind=ul2", "model.kind=encoder_decoder"],
}
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{{{{text}}}}"
doc_to_target: {target}
{more}
metric_list:
  - metric: {metric}
"""


def task(folder: Path, name: str, kind: str, target: str, metric: str, more: str) -> Path:
    data = folder / f"{name}.jsonl"
    rows = [{"text": f"number {n}", "answer": n % 2} for n in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / f"{name}.yaml"
    path.write_text(TASK.format(name=name, data=data, kind=kind, target=target, metric=metric, more=more))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_choices_and_generated_answers_are_scored(kind: str, store: Store, tmp_path: Path) -> None:
    from bushcraft.train.lm_eval_adapter import run_tasks

    save_model(store, "model", *KINDS[kind])
    model, _ = load_model(store, "model")
    choices = task(tmp_path, "choices", "multiple_choice", "answer", "acc", 'doc_to_choice: [" even", " odd"]')
    more = 'generation_kwargs:\n  until: ["x"]\n  max_gen_toks: 4'
    written = task(tmp_path, "written", "generate_until", '"nothing"', "exact_match", more)
    found = run_tasks(model, "fp32", [choices, written], None)
    assert 0 <= found["choices"]["acc,none"] <= 1
    assert found["written"]["exact_match,none"] == 0


@pytest.mark.slow
def test_the_likelihood_of_a_continuation_is_the_sum_over_its_parts(store: Store) -> None:
    from lm_eval.api.instance import Instance

    from bushcraft.train.lm_eval_adapter import BushcraftLM

    save_model(store, "model")
    model, _ = load_model(store, "model")
    harness = BushcraftLM(model)

    def likelihood(context: str, continuation: str) -> float:
        request = Instance("loglikelihood", {}, (context, continuation), 0)
        return harness.loglikelihood([request])[0][0]

    whole = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("abcdef",), 0)])[0][0]
    assert whole == pytest.approx(likelihood("", "abc") + likelihood("abc", "def"), abs=1e-4)


def test_a_broken_task_file_is_told_in_one_line(store: Store, tmp_path: Path) -> None:
    from bushcraft.train.lm_eval_adapter import run_tasks

    save_model(store, "model")
    model, _ = load_model(store, "model")
    path = tmp_path / "broken.yaml"
    path.write_text("task: [")
    with pytest.raises(DataError, match=r"cannot run .*broken\.yaml") as refused:
        run_tasks(model, "fp32", [path], None)
    assert "\n" not in str(refused.value)


def test_what_the_model_raises_keeps_its_traceback(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bushcraft.train import lm_eval_adapter

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    save_model(store, "model")
    model, _ = load_model(store, "model")
    monkeypatch.setattr(lm_eval_adapter, "score_pairs", broken)
    choices = task(tmp_path, "choices", "multiple_choice", "answer", "acc", 'doc_to_choice: [" even", " odd"]')
    with pytest.raises(ZeroDivisionError):
        lm_eval_adapter.run_tasks(model, "fp32", [choices], 2)


def test_the_harness_makes_a_model_by_its_name(store: Store) -> None:
    from lm_eval.api.registry import get_model

    import bushcraft.train.lm_eval_adapter  # noqa: F401  (registers the name)

    save_model(store, "model")
    options = {"batch_size": 1, "device": None}
    for made in (
        get_model("bushcraft").create_from_arg_string(f"run=model,store={store.root}", options),
        get_model("bushcraft").create_from_arg_obj({"run": "model", "store": str(store.root)}, options),
    ):
        assert made._model.prompts.context == load_model(store, "model")[0].prompts.context


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_of_any_length_are_scored_and_answered(kind: str, store: Store) -> None:
    from lm_eval.api.instance import Instance

    from bushcraft.train.lm_eval_adapter import BushcraftLM

    save_model(store, "model", *KINDS[kind])
    harness = BushcraftLM(load_model(store, "model")[0])
    end = "wxyz" * 50
    asked = [Instance("loglikelihood", {}, (f"{'abc' * n}{end}", " answer"), n) for n in (100, 2000)]
    first, second = harness.loglikelihood(asked)
    assert first == pytest.approx(second, abs=1e-4), "only the end of a long context counts"
    options = {"until": ["q"], "max_gen_toks": 300}
    assert len(harness.generate_until([Instance("generate_until", {}, ("abc" * 2000, options), 0)])) == 1
