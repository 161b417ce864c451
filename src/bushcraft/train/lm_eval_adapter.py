"""lm-evaluation-harness asks, our models answer: of any architecture, on task files that need no network.

Source of the interface: lm_eval.api.model.LM, docs/model_guide.md of the harness. A context goes where the model's
objective had it: to the encoder of an encoder-decoder, to the prefix of a prefix decoder.
"""

import itertools
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")  # before the harness reads it: task files name local files

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.tasks import TaskManager
from lm_eval.utils import simple_parse_args_string

from bushcraft.errors import DataError
from bushcraft.store.workspace import Store
from bushcraft.train.answers import answers, fitted
from bushcraft.train.heldout import windows
from bushcraft.train.load_model import load_model
from bushcraft.train.sample import TextModel
from bushcraft.train.scoring import Pair, score_pairs

MOST_TOKENS = 256
"""Of a generated answer, where the task says nothing."""


@register_model("bushcraft")
class BushcraftLM(LM):  # type: ignore[misc]
    """A model as the harness wants it."""

    def __init__(self, model: TextModel, precision: str = "fp32") -> None:
        super().__init__()
        self._model = model
        self._precision = precision

    @classmethod
    def of_run(cls, run: str, store: str, precision: str = "fp32") -> "BushcraftLM":
        """The model of a run, or of a checkpoint, in the store at that path. Errors: those of `load_model`."""
        return cls(load_model(Store.open(Path(store)), run)[0], precision)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], _: object = None) -> "BushcraftLM":
        """The harness's way to make one: the arguments of `of_run`; batch sizes and devices are ours to choose."""
        return cls.of_run(**arg_dict)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, _: object = None) -> "BushcraftLM":
        """As `create_from_arg_obj`, from "run=NAME,store=PATH"."""
        return cls.of_run(**simple_parse_args_string(arg_string))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether it is what greedy generation gives) of each (context, continuation)."""
        pairs = [self._pair(*request.args) for request in requests]
        scores = score_pairs(self._model.model, pairs, self._model.start, self._precision)
        return [(-score.nats, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[tuple[float]]:
        """The log-likelihood of whole texts.

        An encoder-decoder reads one half of a window and predicts the other: its figures do not compare with those of
        causal models.
        """
        found = []
        for request in requests:
            (text,) = request.args
            reader = self._model.prompts
            pairs = list(windows([self._model.start, *reader.ids_of(text)], reader, with_end=False))
            scores = score_pairs(self._model.model, pairs, self._model.start, self._precision)
            found.append((-sum(score.nats for score in scores),))
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Text after each context, up to the first of the strings in `until`; greedy unless `do_sample` is set."""
        found: list[str] = []
        for options, some in itertools.groupby(requests, key=lambda request: request.args[1]):
            until = options.get("until") or []
            found += answers(
                self._model,
                [request.args[0] for request in some],
                options.get("max_gen_toks", MOST_TOKENS),
                [until] if isinstance(until, str) else until,
                options.get("temperature", 1.0) if options.get("do_sample") else 0.0,
                options.get("top_p", 1.0),
            )
        return found

    def _pair(self, context: str, continuation: str) -> Pair:
        pair = self._model.prompts.text_pair(context, continuation)
        return fitted(self._model, pair, len(pair.lead) + len(pair.predicted))


def run_tasks(model: TextModel, precision: str, files: Sequence[Path], limit: int | None) -> dict[str, dict[str, Any]]:
    """The metrics of the tasks in YAML files. Errors: `DataError` for a file that the harness refuses."""
    try:
        manager = TaskManager(include_path=[str(path.parent) for path in files], include_defaults=False)
        results = lm_eval.simple_evaluate(
            BushcraftLM(model, precision),
            tasks=[str(path) for path in files],
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
        )
    except Exception as error:  # the harness and its libraries raise everything, for what a task file says
        if _is_ours(error):
            raise
        raise DataError(
            f"lm-evaluation-harness cannot run {', '.join(map(str, files))}: {' '.join(str(error).split())}",
            "See that the file has dataset_path: json and data_files that exist",
        ) from error
    metrics: dict[str, dict[str, Any]] = results["results"]
    return metrics


def _is_ours(error: Exception) -> bool:
    """Whether the model raised it, for which no task file is to blame."""
    asked = (BushcraftLM.loglikelihood, BushcraftLM.loglikelihood_rolling, BushcraftLM.generate_until)
    codes = {function.__code__ for function in asked}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))
