"""The recipe's section about the objective: what the model learns to predict."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bushcraft.train.section import Count, Positive, Section

Corruption = Annotated[float, Field(gt=0, lt=1)]
SINGLE = ("causal", "prefix", "span_corruption", "ul2", "ul2r", "sft")
"""Every kind but a mixture of them."""
DENOISING = ("span_corruption", "ul2", "ul2r")
"""The kinds that need sentinels."""


class SingleObjective(Section):
    """One objective."""

    kind: Literal["causal", "prefix", "span_corruption", "ul2", "ul2r", "sft"]
    """As objective.kind."""
    mean_span: Positive = 3.0
    """Tokens of a span that "span_corruption" hides, on average (Raffel et al. 2020, arXiv:1910.10683, section 3.3)."""
    corruption: Corruption = 0.15
    """The share of the tokens that "span_corruption" hides."""


class PartConfig(SingleObjective):
    """One objective of a mixture."""

    weight: Positive = 1.0
    """Its share of the sequences, relative to the other parts. It may change in mid-run."""


class ObjectiveConfig(SingleObjective):
    """What the model learns to predict."""

    kind: Literal["causal", "prefix", "span_corruption", "ul2", "ul2r", "sft", "mixture"] = "causal"  # type: ignore[assignment]
    """"causal": each next token. "prefix": a document's beginning, of random length, is read both ways, and what
    follows is predicted (Raffel et al. 2020, arXiv:1910.10683, section 3.2.1). "span_corruption": spans of a document
    are hidden and predicted (section 3.3.4). "ul2": a mixture of seven denoisers, each told by a mode token (Tay et al.
    2022, arXiv:2205.05131, table 1). "ul2r": the mixture with which a trained model goes on (Tay et al. 2022,
    arXiv:2210.11399). "sft": the answers of instruction data. "mixture": several of them, in objective.parts."""
    document_mask: bool = True
    """Keep attention inside a document, where a sequence holds several. Only "causal" can do without."""
    prompts_both_ways: bool = True
    """Whether a decoder reads what it does not predict both ways, as a prefix. "causal" has nothing of the kind."""
    n_sentinels: Count = 100
    """Tokens that stand for hidden spans, at most so many in a document. The tokenizer's own <extra_id_0>… are used if
    it has them; else they stand directly above its vocabulary, and model.vocab_size must have room for them."""
    mode_names: Literal["released", "paper"] = "released"
    """UL2's mode tokens: [NLU] [S2S] [NLG], as the released checkpoints have them, or [R] [S] [X], as the paper."""
    parts: dict[str, PartConfig] = Field(default_factory=dict)
    """The mixture's objectives: a table [objective.parts.NAME] for each."""

    @model_validator(mode="after")
    def _parts_are_of_a_mixture(self) -> Self:
        if self.kind == "mixture" and len(self.parts) < 2:
            raise ValueError(
                'objective.kind = "mixture" needs at least two parts: write a table [objective.parts.NAME] for each'
            )
        if self.kind != "mixture" and self.parts:
            raise ValueError(f'objective.parts are given, but objective.kind = "{self.kind}": use "mixture"')
        for name in self.parts:
            if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
                raise ValueError(f'objective.parts has the name "{name}": use letters, digits, "-" and "_"')
        return self

    @model_validator(mode="after")
    def _documents_stay_apart(self) -> Self:
        if self.kind != "causal" and not self.document_mask:
            raise ValueError(f'objective.kind = "{self.kind}" is about documents: use objective.document_mask = true')
        return self

    @property
    def kinds(self) -> set[str]:
        """The kinds that it is made of."""
        return {part.kind for part in self.parts.values()} or {self.kind}

    @property
    def hides_spans(self) -> bool:
        """Whether it needs sentinels."""
        return bool(self.kinds & set(DENOISING))

    @property
    def has_modes(self) -> bool:
        """Whether it tells the model by a token which denoiser it was."""
        return bool(self.kinds & {"ul2", "ul2r"})
