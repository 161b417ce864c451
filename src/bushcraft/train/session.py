"""The state of a run in one process: weights, optimizer, position, receipt; how it is saved and restored."""

from collections.abc import Callable
from dataclasses import dataclass

from bushcraft.checkpoint.manifest import CheckpointManifest, write_manifest
from bushcraft.checkpoint.tensors import load_tensor, save_tensors
from bushcraft.checkpoint.weights import load_weights, model_tensors
from bushcraft.data.loader import Loader, Rows, SourceData
from bushcraft.ledger.ledger import Ledger
from bushcraft.model.transformer import Model
from bushcraft.objectives.batch import Batch
from bushcraft.objectives.objective import Objective
from bushcraft.store.workspace import Store
from bushcraft.train.objective import microbatches
from bushcraft.train.optimizer import Optimizer
from bushcraft.train.receipt import EMPTY
from bushcraft.train.recipe import Recipe
from bushcraft.train.run_record import RunRecord

Say = Callable[[str], None]
"""Hears what a person should know."""


@dataclass
class Session:
    """`position`, `step` and `receipt` move with each step; a checkpoint holds them together with the tensors."""

    store: Store
    ledger: Ledger
    record: RunRecord
    recipe: Recipe
    sources: tuple[SourceData, ...]
    loader: Loader
    objective: Objective
    model: Model
    optimizer: Optimizer
    position: int = 0
    step: int = 0
    receipt: str = EMPTY
    checkpoint: str | None = None
    """Object name of the newest checkpoint's manifest."""
    saved_at: int | None = None
    """The position of that checkpoint."""

    @property
    def separator(self) -> int:
        return self.sources[0].manifest.separator_id

    def batches(self, rows: Rows, begin: int) -> list[Batch]:
        """The microbatches of rows that stand at positions from `begin` on."""
        return microbatches(self.recipe, self.objective, self.separator, rows, begin)

    @property
    def bytes_per_token(self) -> float:
        """Of the training text, weighted as the mixture is now."""
        weights = {name: source.weight for name, source in self.recipe.data.sources.items()}
        splits = [(weights[s.name], s.manifest.splits["train"]) for s in self.sources]
        return sum(w * split.n_text_bytes / split.n_tokens for w, split in splits) / sum(weights.values())

    def introduction(self) -> str:
        """What is about to be trained, in two lines."""
        run, model = self.recipe.run, self.recipe.model
        n_parameters = sum(p.numel() for p in self.model.parameters())
        sources = ", ".join(f"{s.name} ({len(s.stream):,} tokens)" for s in self.sources)
        began = f"goes on at {self.position:,} of" if self.position else "begins:"
        return (
            f"run {run.name} {began} {self.record.sequences:,} sequences of {run.sequence_length} tokens, {sources}\n"
            f"{n_parameters / 1e6:.2f}M parameters ({model.n_layers} layers of {model.d_model}), "
            f"{self.record.precision}, {self.record.threads} threads; Ctrl-C stops it safely, the same command goes on"
        )

    def save(self) -> str:
        """Write a checkpoint of this position, published when all of it is durable; its object name."""
        tensors = model_tensors(self.model) | {f"optimizer/{name}": t for name, t in self.optimizer.tensors().items()}
        manifest = CheckpointManifest(
            run=self.recipe.run.name,
            position=self.position,
            step=self.step,
            receipt=self.receipt,
            ledger=self.ledger.seal(),
            recipe=self.recipe.model_dump(mode="json"),
            datasets=self.record.datasets,
            code=self.record.code,
            optimizer=self.optimizer.scalars(),
            tensors=save_tensors(self.store.depot, tensors),
        )
        self.checkpoint = write_manifest(self.store.depot, manifest)
        self.saved_at = self.position
        self.ledger.append("checkpoint", self.position, durable=True, manifest=self.checkpoint, step=self.step)
        return self.checkpoint

    def restore(self, name: str, manifest: CheckpointManifest) -> None:
        """Go back to a checkpoint. Errors: `CheckpointError`, `CorruptObjectError`."""
        load_weights(self.store.depot, name, manifest, self.model)
        if manifest.optimizer:
            for key, target in self.optimizer.prepare(manifest.optimizer).items():
                load_tensor(self.store.depot, f"optimizer/{key}", manifest.tensors[f"optimizer/{key}"], target)
        self.position, self.step, self.receipt = manifest.position, manifest.step, manifest.receipt
        self.checkpoint, self.saved_at = name, manifest.position
