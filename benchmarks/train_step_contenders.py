"""The contenders of `train_step.py`, each in processes of its own: one, or one a rank."""

import multiprocessing
import statistics
import sys
import warnings
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from time import perf_counter, process_time

import torch
import transformers
from train_step_programs import SHAPE, batch_of, ours, plain_fsdp, plain_loop

from bushcraft.model.flops import training_flops
from bushcraft.parallel.rendezvous import host_store
from bushcraft.parallel.world import World, join, leave
from bushcraft.train.heap import keep_freed_memory

THREADS = 2
"""Of all processes of a contender together."""
PATIENCE = timedelta(minutes=10)
VERSIONS = {"transformers": f" {transformers.__version__}", "FSDP2": f" of torch {torch.__version__}"}
STEPS = {"bushcraft": ours, "transformers": plain_loop, "FSDP2": plain_fsdp}


@dataclass(frozen=True)
class Program:
    """What a contender's processes do."""

    who: str
    """A name of `STEPS`."""
    precision: str
    compile: bool = False
    keep_memory: bool = False
    """Whether freed memory stays with the process: Bushcraft's trainer does so, a plain loop does not."""
    n_ranks: int = 1

    @property
    def name(self) -> str:
        """As the result calls it."""
        options = [self.precision, *["compiled"] * self.compile]
        if self.n_ranks > 1:
            options.append(f"{self.n_ranks} ranks")
        if self.keep_memory and self.who != "bushcraft":
            options.append("with Bushcraft's heap settings")
        return f"{self.who}{VERSIONS.get(self.who, '')}, {', '.join(options)}"


class Contender:
    """Processes that train: `step` does one optimizer step there, and notes what it took and the loss before it."""

    def __init__(self, program: Program, shape: tuple[int, int]) -> None:
        self.program, self.shape = program, shape
        self.seconds: list[float] = []
        self.processor_seconds: list[float] = []
        """Of all threads of all ranks: what waiting does not add to, be it for a rank or for other programs."""
        self.losses: list[float] = []
        context = multiprocessing.get_context("spawn")
        self._store = host_store()
        self._pipes, self._processes = [], []
        for rank in range(program.n_ranks):
            world = World(
                rank, program.n_ranks, rank, program.n_ranks, "127.0.0.1", self._store.port, store_is_hosted=True
            )
            pipe, other = context.Pipe()
            process = context.Process(target=serve, args=(other, program, shape, world), daemon=True)
            process.start()
            self._pipes.append(pipe)
            self._processes.append(process)

    def step(self, measured: bool) -> None:
        """One step, which takes as long as the slowest rank."""
        self._tell("step")
        found = [pipe.recv() for pipe in self._pipes]
        seconds = max(seconds for seconds, _, _ in found)
        self.losses.append(found[0][2])
        if measured:
            self.seconds.append(seconds)
            self.processor_seconds.append(sum(processor_seconds for _, processor_seconds, _ in found))
        print(f"{self.program.name}: {seconds:.2f} s{'' if measured else ', warming up'}", file=sys.stderr)

    def close(self) -> None:
        """End the processes."""
        self._tell("end")
        for process in self._processes:
            process.join()

    def _tell(self, what: str) -> None:
        for pipe in self._pipes:
            pipe.send(what)

    @property
    def tokens_per_second(self) -> float:
        n_rows, width = self.shape
        return n_rows * width / statistics.median(self.seconds)

    @property
    def flops_per_second(self) -> float:
        return training_flops(SHAPE, batch_of(*self.shape).segments) / statistics.median(self.seconds)


def serve(pipe: Connection, program: Program, shape: tuple[int, int], world: World) -> None:
    """A contender's process: make the model, step whenever asked."""
    torch.set_num_threads(THREADS // world.world_size)
    quiet()
    if program.keep_memory:
        keep_freed_memory()
    if world.world_size > 1:
        join(world, "cpu", PATIENCE)
    step = STEPS[program.who](program.precision, shape, program.compile)
    while pipe.recv() == "step":
        began, busy = perf_counter(), process_time()
        loss = step()
        pipe.send((perf_counter() - began, process_time() - busy, loss))
    leave()


def quiet() -> None:
    """Nothing on the terminal but our own lines."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
