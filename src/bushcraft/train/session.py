"""The state of a run as a rank has it: weights, optimizer, position, receipt; how it is saved and restored."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from bushcraft.checkpoint.manifest import CheckpointManifest
from bushcraft.checkpoint.tensors import load_parts
from bushcraft.checkpoint.weights import PREFIX, load_weights
from bushcraft.data.loader import Loader, SourceData
from bushcraft.errors import CheckpointError
from bushcraft.ledger.ledger import Ledger
from bushcraft.model.transformer import Model
from bushcraft.parallel.box import Part
from bushcraft.parallel.parallel_model import ParallelModel
from bushcraft.parallel.ranks import Ranks
from bushcraft.parallel.whole_model import whole_model
from bushcraft.store.depot import Depot
from bushcraft.store.memory import remove_memory
from bushcraft.store.workspace import Store
from bushcraft.train.optimizer import Optimizer
from bushcraft.train.receipt import EMPTY
from bushcraft.train.recipe import Recipe
from bushcraft.train.run_record import RunRecord
from bushcraft.train.saving import Saving
from bushcraft.train.step_data import StepReader

Say = Callable[[str], None]
"""Hears what a person should know."""

T = TypeVar("T")


@dataclass
class Session:
    """`position`, `step` and `receipt` move with each step; a checkpoint holds them together with the tensors."""

    store: Store
    ledger: Ledger
    ranks: Ranks
    record: RunRecord
    recipe: Recipe
    reader: StepReader
    parallel: ParallelModel
    optimizer: Optimizer
    saving: Saving
    position: int = 0
    step: int = 0
    receipt: str = EMPTY

    @property
    def checkpoint(self) -> str | None:
        """Object name of the newest durable checkpoint's manifest."""
        return self.saving.newest.name if self.saving.newest else None

    @property
    def loader(self) -> Loader:
        return self.reader.loader

    @property
    def sources(self) -> tuple[SourceData, ...]:
        return self.loader.sources

    @property
    def bytes_per_token(self) -> float:
        """Of the training text, weighted as the mixture is now."""
        weights = {name: source.weight for name, source in self.recipe.data.sources.items()}
        splits = [(weights[s.name], s.manifest.splits["train"]) for s in self.sources]
        return sum(w * split.n_text_bytes / split.n_tokens for w, split in splits) / sum(weights.values())

    def introduction(self) -> str:
        """What is about to be trained, in two lines."""
        run, model = self.recipe.run, self.recipe.model
        n_parameters = self.parallel.n_parameters
        sources = ", ".join(f"{s.name} ({len(s.stream):,} tokens)" for s in self.sources)
        began = f"goes on at {self.position:,} of" if self.position else "begins:"
        ranks = f"{self.ranks.world_size} ranks ({self.parallel.layout}), " if self.ranks.world_size > 1 else ""
        return (
            f"run {run.name} {began} {self.record.sequences:,} sequences of {run.sequence_length} tokens, {sources}\n"
            f"{n_parameters / 1e6:.2f}M parameters ({model.n_layers} layers of {model.d_model}), "
            f"{ranks}{self.record.precision}, {self.record.threads} threads; Ctrl-C stops it safely, the same command "
            "goes on"
        )

    def with_whole_model(self, work: Callable[[Model], T]) -> T:
        """What `work` makes of the whole model, on all ranks; the first does it, and has all weights meanwhile."""
        model = whole_model(self.parallel, self.ranks)
        return self.ranks.first(lambda: work(_there(model)))

    def parts(self) -> dict[str, Part]:
        """Everything that a checkpoint holds of this rank."""
        weights = {PREFIX + name: part for name, part in self.parallel.weights.parts().items()}
        return weights | {f"optimizer/{name}": part for name, part in self.optimizer.parts().items()}

    def begin_save(self) -> None:
        """Copy the state of this position; it is written while the steps go on. Errors: `StoreError`."""
        manifest = CheckpointManifest(
            run=self.recipe.run.name,
            position=self.position,
            step=self.step,
            receipt=self.receipt,
            ledger="",
            recipe=self.recipe.model_dump(mode="json"),
            datasets=self.record.datasets,
            code=self.record.code,
            optimizer=self.optimizer.scalars(),
            tensors={},
        )
        self.saving.begin(manifest, self.parts())

    def restore(self, depot: Depot, name: str, manifest: CheckpointManifest) -> None:
        """Go back to a checkpoint of any layout, which `depot` has. Errors: `CheckpointError`, `CorruptObjectError`."""
        load_weights(depot, name, manifest, self.parallel.weights.parts())
        if manifest.optimizer:
            parts = {f"optimizer/{key}": part for key, part in self.optimizer.prepare(manifest.optimizer).items()}
            if missing := sorted(set(parts) - set(manifest.tensors)):
                raise CheckpointError(
                    f"checkpoint {name[:12]} misses the tensor {missing[0]}"
                    + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
                    "Train on from an older checkpoint, or from its weights alone: run.start_from",
                )
            load_parts(depot, manifest.tensors, parts)
        self.position, self.step, self.receipt = manifest.position, manifest.step, manifest.receipt

    def close(self, ended_well: bool) -> None:
        """Let another process have the run; `ended_well`: all of it is durable."""
        self.saving.close(ended_well)
        if ended_well and self.ranks.local_rank == 0:
            remove_memory(self.store.root, self.recipe.run.name)
        self.ledger.close()


def _there(model: Model | None) -> Model:
    assert model is not None
    return model
