"""The command `bushcraft`: one thin module a noun.

What a user did wrong ends in one line on stderr and exit code 2; a bug of ours keeps its traceback.
"""

import atexit
import os
import sys

import typer

from bushcraft import __version__
from bushcraft.cli import checkpoint, data, evaluate, generate, run, store, train
from bushcraft.errors import BushcraftError

app = typer.Typer(
    help="Train great language models from scratch on hardware you neither own nor trust.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("generate")(generate.generate)
app.command("evaluate")(evaluate.evaluate)
app.add_typer(data.app, name="data")
app.add_typer(run.app, name="run")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(store.app, name="store")


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True)) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def command() -> None:
    """`main` as a whole process.

    The threads of obstore do not end before the interpreter does, and now and then abort the process when they meet one
    that is being taken down (5 of 180 commands on a busy machine). So where it was used, the process ends without that.
    """
    code: int | str | None = 1

    def leave() -> None:
        if "obstore" in sys.modules:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else int(code is not None))

    atexit.register(leave)  # the first one registered is the last one called
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code
        raise


def main() -> None:
    """Run the command line and exit with its code."""
    threads_yield()
    try:
        app()
    except BushcraftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `bushcraft … | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def threads_yield() -> None:
    """Let a thread that waits for another sleep after some microseconds; to be called before torch is imported.

    By default GNU OpenMP spins for milliseconds. Then any other busy process, a monitor or a compiler, takes turns
    with threads that do nothing but wait, and a training step takes 7 times as long in place of 1.6.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "2000"
