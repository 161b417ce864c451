"""`bushcraft evaluate`: held-out text by domain, probes with known answers, tasks of lm-evaluation-harness."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bushcraft.cli.options import JsonOption, StoreOption, open_store, print_json, print_table

if TYPE_CHECKING:
    from bushcraft.train.evaluation import Evaluation


def evaluate(
    run: Annotated[str, typer.Argument(help="A run's name, or the object name of a checkpoint's manifest.")],
    data: Annotated[
        list[str] | None, typer.Option(help="A data set whose held-out text is scored; the run's by default.")
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Read about so many held-out bytes of each.")] = None,
    probes: Annotated[bool, typer.Option("--probes", help="Also ask questions with known answers.")] = False,
    lm_eval: Annotated[
        list[Path] | None, typer.Option(help="Also run this task file (YAML) of lm-evaluation-harness, offline.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --lm-eval: so many questions of each task.")] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Evaluate a trained or imported model. The result is also kept in the store."""
    where = open_store(store)  # before torch is imported, which takes seconds
    from dataclasses import asdict

    from bushcraft.train.evaluate_run import evaluate_run
    from bushcraft.train.progress import stdout_console

    console = stdout_console(quiet=json)
    with console.status("loading the model") as status:
        found, name = evaluate_run(
            where, run, data, max_bytes, probes, lm_eval or [], limit, precision, lambda text: status.update(text)
        )
    if json:
        return print_json({"evaluation": name, **asdict(found)})
    return _print(found, name)


def _print(found: "Evaluation", name: str) -> None:
    print(f"run {found.run} at position {found.position:,}, checkpoint {found.checkpoint[:12]}")
    for dataset, parts in found.domains.items():
        print(f"\nheld-out text of {dataset}")
        rows = [
            [
                d.name,
                f"{d.n_documents:,}",
                f"{d.n_bytes:,}",
                "" if d.bits_per_byte is None else f"{d.bits_per_byte:.4f}",
            ]
            for d in parts
        ]
        print_table(["domain", "documents", "bytes", "bits/byte"], rows, ("documents", "bytes", "bits/byte"))
    for dataset, loss in found.objective_losses.items():
        print(f"\nheld-out text of {dataset}, under the run's own objective: {loss:.4f} nats a target")
    if found.probes:
        print("\nprobes")
        rows = [
            [p.name, f"{p.accuracy:.1%}", f"{p.chance:.1%}", f"{p.answer_nats:.2f}", str(p.n_questions)]
            for p in found.probes
        ]
        columns = ["probe", "right", "by chance", "nats of the answer", "questions"]
        print_table(columns, rows, tuple(columns[1:]))
    for task, metrics in found.tasks.items():
        print(f"\n{task}")
        rows = [[metric, f"{value:.4f}"] for metric, value in metrics.items() if isinstance(value, float)]
        print_table(["metric", "value"], rows, ("value",))
    print(f"\nkept as {name[:12]}")
