"""lm-evaluation-harness asks, our models answer: of any architecture, on task files that need no network.

Source of the interface: lm_eval.api.model.LM, docs/model_guide.md of the harness. A context goes where the model's
objective had it: to the encoder of an encoder-decoder, to the prefix of a prefix decoder.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")  # before the harness reads it: task files name local files

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from bushcraft.errors import DataError
from bushcraft.train.heldout import windows
from bushcraft.train.sample import TextModel
from bushcraft.train.scoring import score_pairs

MOST_TOKENS = 256
"""Of a generated answer, where the task says nothing."""


class BushcraftLM(LM):  # type: ignore[misc]
    """A model as the harness wants it."""

    def __init__(self, model: TextModel, precision: str = "fp32") -> None:
        super().__init__()
        self._model = model
        self._precision = precision

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether it is what greedy generation gives) of each (context, continuation)."""
        reader = self._model.prompts
        pairs = [reader.text_pair(*request.args) for request in requests]
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
        """Greedy text after each context, up to the first of the strings in `until`."""
        found = []
        for request in requests:
            context, options = request.args
            n_tokens = options.get("max_gen_toks", MOST_TOKENS)
            prompt = self._model.prompts.read(context)
            text = "".join(piece for _, piece in self._model.continuations([prompt], n_tokens, 0.0, 1.0, seed=0))
            until = options.get("until") or []
            for stop in [until] if isinstance(until, str) else until:
                text = text.split(stop)[0]
            found.append(text)
        return found


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
        raise DataError(
            f"lm-evaluation-harness cannot run {', '.join(map(str, files))}: {' '.join(str(error).split())}",
            "See that the file has dataset_path: json and data_files that exist",
        ) from error
    metrics: dict[str, dict[str, Any]] = results["results"]
    return metrics
