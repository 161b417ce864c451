"""The training loop: from the session's position to the end of the run, or to a signal that asks it to stop."""

import math
import time
from contextlib import closing
from functools import partial

import torch
from rich.console import Console

from bushcraft.errors import RunError, UnreachableError
from bushcraft.ledger.events import Event
from bushcraft.model.flops import training_flops
from bushcraft.model.transformer import Model, build_model
from bushcraft.objectives.batch import Batch
from bushcraft.train import receipt as receipts
from bushcraft.train.ahead import Ahead
from bushcraft.train.interval import CheckpointDue
from bushcraft.train.judge import Judgement, judge
from bushcraft.train.peak import MatmulPeak
from bushcraft.train.progress import Progress, StepReport
from bushcraft.train.recipe import Recipe
from bushcraft.train.sample import TextModel
from bushcraft.train.schedule import learning_rate
from bushcraft.train.session import Session
from bushcraft.train.step import StepResult
from bushcraft.train.step_data import StepData, gather_step
from bushcraft.train.stop import Stopped, StopRequest

LAST_SAVE_PAUSES = (2.0, 10.0, 60.0)
"""Seconds between the tries to save the end of a run where a provider does not answer."""


def train(session: Session, console: Console, stop: StopRequest) -> Judgement | None:
    """Train to the end and evaluate; None if it was asked to stop before (a checkpoint of its position stands).

    Errors: `DataError` (a sample prompt that the model cannot read), `RunError` (the loss is not finite, the data
    changed), `CorruptObjectError`, `StoreError`.
    """
    _check_prompts(session)  # refused at once
    with Progress(console, peak := MatmulPeak(session.record.precision)) as progress:
        try:
            _train_steps(session, progress, peak, stop)
            _save_now(session, progress)
            found = judge(session, progress, None, stop)
            samples = _samples(session, stop)
        except Stopped:
            _save_now(session, progress)
            session.ledger.append("interrupted", session.position, durable=True)
            return None
    session.ledger.append("finished", session.position, durable=True, checkpoint=session.checkpoint, samples=samples)
    return found


def _train_steps(session: Session, progress: Progress, peak: MatmulPeak, stop: StopRequest) -> None:
    """Every step that is left, with the checkpoints and evaluations that are due between them. Raises `Stopped`."""
    ledger, end, config = session.ledger, session.record.sequences, session.recipe.evaluate
    earlier = receipts.receipts(ledger.history)
    evaluated = _last_evaluation(ledger.history, session.position)
    checkpoint_due = CheckpointDue(session.recipe.checkpoint, session.position, ledger.history, ledger.generation)
    ledger.history.clear()
    ahead = Ahead(session.reader, lambda position: session.loader.order.step(position, end))
    with closing(ahead):
        while True:
            _between_steps(session, stop, checkpoint_due)
            if session.position < end and _crosses(config.every_sequences, evaluated, session.position):
                found = judge(session, progress, config.heldout_bytes, stop)
                evaluated = session.position
                progress.say(f"position {evaluated:,}: held-out {found}")
            began = time.perf_counter()
            ledger.clock.enter("data")
            data = ahead.at(session.position)
            if data is None:
                return
            _train_step(session, data, earlier, progress, began)
            if session.ranks.is_first:
                with ledger.clock.phase("init"):
                    peak.look_again()
            if data.until < end:
                _save_if_due(session, progress, checkpoint_due)


def _last_evaluation(history: list[Event], position: int) -> int:
    """Where the run was evaluated last, up to `position`; 0 if nowhere. One that was stopped is not there."""
    return max((e.position for e in history if e.type == "evaluation" and e.position <= position), default=0)


def _between_steps(session: Session, stop: StopRequest, checkpoint_due: CheckpointDue) -> None:
    """Go on with the save in hand. Raises `Stopped` on all ranks if somebody asked one of them."""
    saving = session.saving
    was_in_hand = saving.in_hand
    found = session.ranks.gathered((stop.asked, saving.busy(), saving.too_old()))
    asked, busy, too_old = (any(answers) for answers in zip(*found, strict=True))
    saving.advance(busy, too_old)
    if was_in_hand and not saving.in_hand:
        checkpoint_due.ended(saving.stall, saving.seconds)
    if asked:
        raise Stopped


def _train_step(session: Session, data: StepData, earlier: dict[int, str], progress: Progress, began: float) -> None:
    clock, recipe, begin, until = session.ledger.clock, session.recipe, data.begin, data.until
    whole = gather_step(session.ranks, data, sum(map(partial(_flops, recipe), data.batches)))
    receipt = receipts.extend(session.receipt, begin, until, whole.digests)
    receipts.check_replay(until, receipt, earlier)
    data_seconds = time.perf_counter() - began
    clock.enter("step")
    progress_made = (begin + until) / 2 / session.record.sequences
    rate = learning_rate(progress_made, recipe.schedule, recipe.optimizer.learning_rate)
    result = _update(session, data.batches, whole.n_targets, rate)
    session.position, session.step, session.receipt = until, session.step + 1, receipt
    session.ledger.append(
        "step",
        until,
        step=session.step,
        begin=begin,
        tokens=int(whole.n_targets),
        learning_rate=rate,
        receipt=receipt,
        **vars(result),
    )
    progress.step(
        StepReport(
            step=session.step,
            n_steps=session.step + -(-(session.record.sequences - until) // (until - begin)),
            loss=result.loss,
            bits_per_byte=result.loss / math.log(2) / session.bytes_per_token,
            n_tokens=whole.n_tokens,
            flops=whole.flops / session.ranks.world_size,
            seconds=time.perf_counter() - began,
            data_seconds=data_seconds,
        )
    )


def _flops(recipe: Recipe, batch: Batch) -> int:
    encoder = batch.encoder.segments if batch.encoder else None
    return training_flops(recipe.model, batch.segments, encoder)


def _update(session: Session, batches: list[Batch], n_targets: float, rate: float) -> StepResult:
    parallel, recipe = session.parallel, session.recipe
    loss, z_loss = parallel.gradients(batches, n_targets)
    grad_norm = parallel.weights.clip(recipe.optimizer.clip_norm)
    result = StepResult(float(loss), float(z_loss), grad_norm)
    if not math.isfinite(result.loss + grad_norm):
        raise RunError(
            f"the loss is {result.loss} and the gradient norm {grad_norm} after position {session.position}",
            "The step was not applied; lower optimizer.learning_rate under another run.name",
        )
    session.optimizer.step(rate)
    parallel.weights.zero_gradients()
    return result


def _save_if_due(session: Session, progress: Progress, checkpoint_due: CheckpointDue) -> None:
    """Begin a save, which goes on beside the steps. One by the clock waits until none is in hand, one at a position
    has the steps wait."""
    saving = session.saving
    if saving.in_hand and not checkpoint_due.by_position:
        return
    if not session.ranks.first(partial(checkpoint_due.at, session.position)):
        return
    _finish_save(session, progress)
    with session.ledger.clock.phase("save"):
        session.begin_save()
    checkpoint_due.begun(session.position)
    if not session.recipe.checkpoint.asynchronous:
        _finish_save(session, progress)


def _finish_save(session: Session, progress: Progress) -> None:
    if session.saving.in_hand:
        progress.busy(f"step {session.step}: writing a checkpoint")
        with session.ledger.clock.phase("save"):
            session.saving.finish()


def _save_now(session: Session, progress: Progress) -> None:
    """A durable checkpoint of this position, tried again where a provider is silent. Errors: what it failed of."""
    _finish_save(session, progress)
    for pause in LAST_SAVE_PAUSES:
        try:
            _save_last(session, progress)
            return
        except UnreachableError:
            progress.busy(f"trying to save again in {pause:g} s")
            time.sleep(pause)
    _save_last(session, progress)


def _save_last(session: Session, progress: Progress) -> None:
    if not session.saving.is_durable(session.position):
        with session.ledger.clock.phase("save"):
            session.begin_save()
        _finish_save(session, progress)
        session.saving.check_durable(session.position)


def _check_prompts(session: Session) -> None:
    with torch.device("meta"):
        model = build_model(session.recipe.model)
    text_model = TextModel.of(model, session.store.depot, session.sources[0].manifest, session.recipe)
    for text in session.recipe.evaluate.sample_prompts:
        text_model.prompts.read(text)


def _samples(session: Session, stop: StopRequest) -> list[dict[str, str]]:
    prompts = session.recipe.evaluate.sample_prompts
    if not prompts:
        return []
    with session.ledger.clock.phase("evaluate"):
        texts = session.with_whole_model(lambda model: _continued(session, model, stop))
    return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]


def _continued(session: Session, model: Model, stop: StopRequest) -> list[str]:
    config = session.recipe.evaluate
    text_model = TextModel.of(model, session.store.depot, session.sources[0].manifest, session.recipe)
    prompts = [text_model.prompts.read(text) for text in config.sample_prompts]
    texts = [""] * len(prompts)
    for number, piece in text_model.continuations(prompts, config.sample_tokens, 0.7, 0.9, seed=0):
        stop.check()
        texts[number] += piece
    return texts


def _crosses(interval: int, begin: int, until: int) -> bool:
    """Whether a multiple of `interval` (0: none) lies in (begin, until]."""
    return bool(interval) and begin // interval != until // interval
