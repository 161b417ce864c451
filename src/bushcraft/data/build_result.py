"""What a build came to, in numbers and in words; and whether an earlier one still stands."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bushcraft.data.manifest import PackTable, read_manifest
from bushcraft.errors import BushcraftError
from bushcraft.store.depot import Depot

MOST_LINES = 20


@dataclass(frozen=True)
class BuildResult:
    """What `bushcraft data build` prints, and `--json` as it is."""

    name: str
    manifest: str
    """Object name: the data set's identity."""
    train: dict[str, Any]
    """`manifest.Split`: documents, bytes of text, tokens, packs."""
    heldout: dict[str, Any]
    vocab_size: int
    baselines: dict[str, float]
    """Bits per byte of the held-out text."""
    exact_copies: int
    """Documents removed because another one has the same bytes."""
    near_duplicates: int
    """Held-out documents not scored because a training document contains half of them or more."""
    empty_documents: int
    n_skipped: int
    skipped: list[str] = field(default_factory=list)
    """Bad inputs left out, or the first of them."""
    seconds: float = 0.0
    longest_example: int | None = None
    """Tokens of the longest example; None where documents are text."""
    too_long: int = 0
    """Examples left out by --longest."""
    unchanged: bool = False
    """It had been built before; nothing was done."""

    @property
    def next_command(self) -> str:
        """What a user does next."""
        command = "bushcraft train"
        if self.longest_example is not None:
            command += " --set objective.kind=sft --set run.start_from=RUN"
            command += f" --set run.sequence_length={self.longest_example}"
        if self.name != "python":  # the data set of the default recipe
            command += f" --set data.sources.python.dataset={self.name}"
        if self.vocab_size > 4096:
            command += f" --set model.vocab_size={-(-self.vocab_size // 128) * 128}"
        return command

    def lines(self) -> list[str]:
        """The result for a person."""
        head = f"{self.name}: already built, every byte checked" if self.unchanged else f"{self.name}: built"
        lines = [f"{head} in {self.seconds:.1f} s", f"  manifest   {self.manifest}"]
        for label, split in (("train", self.train), ("held-out", self.heldout)):
            ratio = f", {split['n_text_bytes'] / split['n_tokens']:.3f} bytes/token" if split["n_tokens"] else ""
            lines.append(
                f"  {label:<9}  {split['n_documents']:,} documents, {split['n_text_bytes']:,} bytes, "
                f"{split['n_tokens']:,} tokens{ratio}"
            )
        lines.append(f"  tokenizer  {self.vocab_size:,} tokens")
        lines += [f"  {name}: {value:.4f} bits/byte of the held-out text" for name, value in self.baselines.items()]
        lines.append(
            f"  removed    {self.exact_copies:,} exact copies, {self.empty_documents:,} empty documents, "
            f"{self.near_duplicates:,} held-out documents that training documents contain"
        )
        if self.longest_example is not None:
            left_out = f"; {self.too_long:,} longer ones were left out" if self.too_long else ""
            lines.append(f"  examples   the longest has {self.longest_example:,} tokens{left_out}")
        if not self.heldout["n_documents"]:
            lines.append("  nothing is held out: a run on this data set has no held-out loss")
        if self.n_skipped:
            lines.append(f"  skipped    {self.n_skipped:,} bad inputs:")
            lines += [f"    {message}" for message in self.skipped[:MOST_LINES]]
            if self.n_skipped > MOST_LINES:
                lines.append(f"    … and {self.n_skipped - MOST_LINES:,} more")
        return [*lines, f"next: {self.next_command}"]


def holds(depot: Depot, manifest: str, progress: Callable[[str, int, int], None]) -> bool:
    """Whether every object of a data set is there and whole."""
    try:
        _, about = read_manifest(depot, manifest)
        depot.verify(about.tokenizer)
        if about.examples and about.examples.chat_template:
            depot.verify(about.examples.chat_template)
        tables = [PackTable(depot, split) for split in about.splits.values()]
        packs = [table[i] for table in tables for i in range(len(table))]
        total, done = sum(pack.n_bytes for pack in packs), 0
        for pack in packs:
            depot.verify(pack.object)
            done += pack.n_bytes
            progress("verify", done, total)
    except BushcraftError:
        return False
    return True
