"""A trained model evaluated apart from its training: held-out text by domain, and probes with known answers.

The result is an object of the store, `evaluations/RUN` names the newest one, so that it neither waits for a run that is
going on nor changes one that is over.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from bushcraft.data.manifest import DatasetManifest, read_manifest
from bushcraft.errors import DataError
from bushcraft.objectives.batch import Batch
from bushcraft.store.workspace import Store
from bushcraft.train.evaluate import Score, heldout_documents
from bushcraft.train.heldout import score_text
from bushcraft.train.load_model import SavedModel
from bushcraft.train.objective_loss import objective_loss
from bushcraft.train.probes import Probe
from bushcraft.train.sample import TextModel
from bushcraft.train.scoring import PairScore, score_pairs
from bushcraft.train.step import losses

MOST_DOMAINS = 12
"""Smaller ones are added up as "others"."""


@dataclass(frozen=True)
class Domain:
    """Held-out documents of one kind."""

    name: str
    n_documents: int
    n_bytes: int
    bits_per_byte: float | None


@dataclass(frozen=True)
class ProbeResult:
    """What a model made of a probe."""

    name: str
    accuracy: float
    chance: float
    answer_nats: float
    """Mean nats of the right answers."""
    n_questions: int


@dataclass(frozen=True)
class Evaluation:
    """All that was measured of a checkpoint."""

    run: str
    checkpoint: str
    position: int
    domains: dict[str, list[Domain]] = field(default_factory=dict)
    """By data set; the first is all of its held-out documents."""
    objective_losses: dict[str, float] = field(default_factory=dict)
    """By data set: nats a target under the objective that was trained, where that is not causal."""
    probes: list[ProbeResult] = field(default_factory=list)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What lm-evaluation-harness found, by task."""

    def publish(self, store: Store) -> str:
        """Keep it in the store; its object name."""
        document = {"format": "bushcraft-evaluation", "version": 1, **asdict(self)}
        name = store.depot.put_bytes(json.dumps(document, indent=1, sort_keys=True).encode())
        store.depot.publish(f"evaluations/{self.run}", name)
        return name


def heldout_sets(store: Store, saved: SavedModel, model: TextModel, names: Sequence[str]) -> list[DatasetManifest]:
    """The data sets of these names, of which something is held out that the model can be asked.

    Errors: `DataError` for a data set that is unknown, has another tokenizer, nothing held out, or instructions where
    the model was trained on none.
    """
    return [_heldout_set(store, saved, model, name) for name in names]


def _heldout_set(store: Store, saved: SavedModel, model: TextModel, name: str) -> DatasetManifest:
    _, manifest = read_manifest(store.depot, name)
    if manifest.fingerprint != saved.dataset.fingerprint:
        raise DataError(
            f"data set {manifest.name!r} has another tokenizer than run {saved.manifest.run!r}",
            "Build it with the model's: `bushcraft data build --tokenizer FILE`",
        )
    if not (_has_text(manifest, model) or _has_objective(manifest, saved)):
        raise DataError(
            f"data set {manifest.name!r} holds instructions, and run {saved.manifest.run!r} was trained on texts",
            "Name a data set of texts by --data",
        )
    if not manifest.splits["heldout"].n_documents:
        raise DataError(f"data set {manifest.name!r} has no held-out documents", "Build it with --heldout 0.05, say")
    return manifest


def _has_text(manifest: DatasetManifest, model: TextModel) -> bool:
    """Whether there are bits per byte: of texts, by a model that goes on with texts."""
    return manifest.kind == "text" and model.prompts.goes_on


def _has_objective(manifest: DatasetManifest, saved: SavedModel) -> bool:
    """Whether the objective is not causal, and can be put to these data."""
    kinds = saved.recipe.objective.kinds
    return kinds != {"causal"} and ("sft" in kinds) == (manifest.kind == "examples")


def objective_losses(
    store: Store,
    saved: SavedModel,
    model: TextModel,
    manifests: Sequence[DatasetManifest],
    precision: str,
    max_bytes: int | None,
    progress: Callable[[str], None],
) -> dict[str, float]:
    """The held-out loss under the model's own objective, nats a target, of the data sets that it can be put to."""

    def nats(batch: Batch) -> Tensor:
        return losses(model.model, batch, precision)[0]

    found = {}
    for manifest in manifests:
        if _has_objective(manifest, saved):
            progress(f"objective on held-out text of {manifest.name}")
            n_bytes = max_bytes or manifest.splits["heldout"].n_text_bytes
            found[manifest.name] = objective_loss(nats, store.depot, manifest, saved.recipe, n_bytes)
    return {name: loss for name, loss in found.items() if loss is not None}


def domains(
    store: Store,
    model: TextModel,
    manifests: Sequence[DatasetManifest],
    precision: str,
    max_bytes: int | None,
    progress: Callable[[str], None],
) -> dict[str, list[Domain]]:
    """Held-out bits per byte of the data sets that have them, by the first component of their documents' names."""
    return {
        manifest.name: list(_domains(store, manifest, model, precision, max_bytes, progress))
        for manifest in manifests
        if _has_text(manifest, model)
    }


def _domains(
    store: Store,
    manifest: DatasetManifest,
    model: TextModel,
    precision: str,
    max_bytes: int | None,
    progress: Callable[[str], None],
) -> list[Domain]:
    by_domain = defaultdict(list)
    for document in heldout_documents(store.depot, manifest, max_bytes):
        by_domain[_domain_of(document[0])].append(document)
    ordered = sorted(by_domain.items(), key=lambda item: -sum(size for _, _, size in item[1]))
    if len(ordered) > MOST_DOMAINS:
        rest = list(itertools.chain.from_iterable(documents for _, documents in ordered[MOST_DOMAINS - 1 :]))
        ordered = [*ordered[: MOST_DOMAINS - 1], ("others", rest)]
    scores: dict[str, Score] = {}
    for name, documents in ordered:
        progress(f"held-out text of {manifest.name}: {name}")
        scores[name] = score_text(model, precision, documents)
    whole = Score(
        sum(s.nats for s in scores.values()),
        sum(s.n_bytes for s in scores.values()),
        sum(s.n_tokens for s in scores.values()),
        sum(s.n_documents for s in scores.values()),
    )
    parts = scores if len(scores) > 1 else {}
    return [Domain(name, s.n_documents, s.n_bytes, s.bits_per_byte) for name, s in {"all": whole, **parts}.items()]


def _domain_of(name: str) -> str:
    """The first component of a document's name, and the second below site-packages, which says nothing."""
    first, *more = name.split("/")
    return f"{first}/{more[0]}" if first == "site-packages" and len(more) > 1 else first if more else "documents"


def probe(model: TextModel, questions: Sequence[Probe], precision: str) -> list[ProbeResult]:
    """What the model makes of each probe."""
    return [_probe(model, each, precision) for each in questions]


def _probe(model: TextModel, probe: Probe, precision: str) -> ProbeResult:
    right = _answers(model, [(q.context, q.answer) for q in probe.questions], precision)
    wrong = _answers(model, [(q.context, q.wrong) for q in probe.questions if q.wrong is not None], precision)
    if wrong:
        hits = sum(a.nats < b.nats for a, b in zip(right, wrong, strict=True))
    else:
        hits = sum(score.is_greedy for score in right)
    n = len(right)
    return ProbeResult(probe.name, hits / n, probe.chance, sum(score.nats for score in right) / n, n)


def _answers(model: TextModel, questions: list[tuple[str, str]], precision: str) -> list[PairScore]:
    pairs = [model.prompts.text_pair(context, answer) for context, answer in questions]
    return score_pairs(model.model, pairs, model.start, precision)
