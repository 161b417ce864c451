"""What a person reads at the end of a run; all of it stands in the ledger, so it can be read again."""

from bushcraft.data.manifest import DatasetManifest, read_manifest
from bushcraft.ledger.events import Event
from bushcraft.ledger.goodput import goodput
from bushcraft.store.workspace import Store
from bushcraft.train.progress import clock
from bushcraft.train.run_record import read_record


def final_report(store: Store, name: str, events: list[Event]) -> str:
    """The report of a finished run."""
    record = read_record(events, name)
    manifest = read_manifest(store.depot, next(iter(record.datasets.values())))[1]
    evaluation = next(event for event in reversed(events) if event.type == "evaluation")
    finished = next(event for event in reversed(events) if event.type == "finished")
    parts = [
        _held_out(evaluation, manifest),
        _samples(finished),
        _time(events),
        f"checkpoint   {finished.data['checkpoint']}\n             in {store.depot}",
        _next_commands(name),
    ]
    return "\n\n".join(part for part in parts if part)


def _held_out(evaluation: Event, manifest: DatasetManifest) -> str:
    data = evaluation.data
    loss = data.get("objective_loss")
    lines = [] if loss is None else [f"held-out     {loss:.4f} nats a target, under the objective of the run"]
    if not data["n_bytes"]:
        return "\n".join(lines) or "held-out     the data set has no held-out documents"
    lines += [
        f"held-out     {data['n_bytes']:,} bytes in {data['n_documents']:,} documents, every byte scored:",
        f"  {'this model':<28} {data['bits_per_byte']:.4f} bits/byte",
    ]
    lines += [f"  {name:<28} {value:.4f} bits/byte" for name, value in manifest.baselines.items()]
    return "\n".join(lines)


def _samples(finished: Event) -> str:
    texts = [f"  {sample['prompt']}⟶{sample['text']}" for sample in finished.data.get("samples", [])]
    return "\n".join(["samples", *(text.replace("\n", "\n  ") for text in texts)]) if texts else ""


def _time(events: list[Event]) -> str:
    spent = goodput(events)
    kinds = ", ".join(f"{kind} {share:.1f} %" for kind, share in spent.shares().items())
    return f"time         {clock(spent.total)}, of which {kinds}"


def _next_commands(name: str) -> str:
    return (
        "next\n"
        f'  bushcraft generate {name} --prompt "def main():"\n'
        f"  bushcraft run explain {name} --position 0\n"
        f"  bushcraft run show {name}"
    )
