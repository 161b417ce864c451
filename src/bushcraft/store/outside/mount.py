"""A store's tree as a read-only file system, through FUSE (extra `mount`).

Every call ends: what a depot does not answer in time is an I/O error for who asked, and a line in the log.
"""

import contextlib
import errno
import importlib
import itertools
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bushcraft.errors import BushcraftError, StoreError
from bushcraft.store.outside.blocks import BlockCache, File
from bushcraft.store.outside.tree import Directory, Node, Remembered, find

T = TypeVar("T")
CACHE_BYTES = 256 * 1024 * 1024
"""Of blocks, beside the page cache: the kernel asks for 128 KiB at a time, a block is 4 MiB."""
BLOCKS_AHEAD = 2
READ_AHEAD_KIB = 4096
"""What the kernel asks for in advance, where we may say so: calls of 1 MiB cost less than eight of 128 KiB."""
DEADLINE_SECONDS = 120.0
"""A call that took longer failed: a process that waits for a file cannot be ended by Ctrl-C for ever."""
LOOK_SECONDS = 1.0
"""So long what is at a path is not looked up again; the kernel remembers sizes and times as long."""
THREADS = 10
"""Kept for calls to come."""
QUIET_SECONDS = 60.0
"""So long the same line is not written again: the kernel repeats a read that failed."""
DEVICE = Path("/dev/fuse")


class RefusedError(OSError):
    """What the caller of the file system is told."""

    def __init__(self, number: int) -> None:
        super().__init__(number, os.strerror(number))


class TreeOperations:
    """What FUSE asks of a file system, over a tree. Paths are absolute, as FUSE gives them; times are nanoseconds.

    Source of the calls and their meaning: libfuse, include/fuse.h, `struct fuse_operations`.
    """

    use_ns = True

    def __init__(
        self,
        top: Directory,
        log: Callable[[str], None],
        deadline: float = DEADLINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        first_open: Callable[[], None] = lambda: None,
    ) -> None:
        """`log` hears of failures; `first_open` is called before a file is opened for the first time."""
        self._log = log
        self._deadline = deadline
        self._clock = clock
        self._first_open = first_open
        self._started = time.time_ns() // 10**9 * 10**9
        self._cache = BlockCache(CACHE_BYTES)
        self._at: Remembered[str, Node | None] = Remembered(lambda path: find(top, path), LOOK_SECONDS, clock)
        self._open: dict[int, File] = {}
        self._handles = itertools.count(1)
        self._told: dict[str, float] = {}
        self._lock = threading.Lock()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """Size, mode and times of what is at `path`."""
        file = self._open.get(fh or 0)
        return self._attributes(file or self._in_time(path, lambda: self._node(path)))

    def readdir(self, path: str, fh: int) -> Iterable[str]:  # noqa: ARG002 - a directory has no handle
        """The names in a directory."""
        return [".", "..", *self._in_time(path, lambda: self._names(path))]

    def open(self, path: str, flags: int) -> int:
        """A handle, which keeps its file also when the path becomes another one."""
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise RefusedError(errno.EROFS)
        node = self._in_time(path, lambda: self._node(path))
        if isinstance(node, Directory):
            raise RefusedError(errno.EISDIR)
        handle = next(self._handles)
        if handle == 1:
            self._first_open()
        self._open[handle] = node
        return handle

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Verified bytes; EIO where they are damaged, missing or late."""
        file, end = self._open[fh], offset + size
        at_hand = self._cache.at_hand(file, offset, end)
        if at_hand is not None:
            return at_hand
        self._read_ahead(file, file.indexes(offset, end))
        return self._in_time(path, lambda: file.read(offset, end, self._cache))

    def release(self, path: str, fh: int) -> int:  # noqa: ARG002
        """The handle is not used any more."""
        del self._open[fh]
        return 0

    def _read_ahead(self, file: File, wanted: range) -> None:
        """Ask for the next blocks too where somebody reads on: a bucket answers late, but to many."""
        if (file.identity, wanted.start - 1) in self._cache:
            for index in range(wanted.stop, min(wanted.stop + BLOCKS_AHEAD, len(file.begins))):
                _start(partial(self._cache.block, file, index))  # what fails is told by the read that comes to it

    def _node(self, path: str) -> Node:
        node = self._at(path)
        if node is None:
            raise RefusedError(errno.ENOENT)
        return node

    def _names(self, path: str) -> list[str]:
        node = self._node(path)
        if not isinstance(node, Directory):
            raise RefusedError(errno.ENOTDIR)
        return list(node.names())

    def _attributes(self, node: Node) -> dict[str, Any]:
        owner = {"st_uid": os.getuid(), "st_gid": os.getgid()}
        if isinstance(node, Directory):
            # one link: `find` then does not conclude from the count how many directories are in there
            return owner | dict.fromkeys(_TIMES, self._started) | {"st_mode": stat.S_IFDIR | 0o555, "st_nlink": 1}
        # Other bytes have another time, by which the kernel sees that its pages are old.
        changed = self._started + int(node.identity[:8], 16) % 10**9
        return (
            owner
            | dict.fromkeys(_TIMES, changed)
            | {"st_mode": stat.S_IFREG | (0o555 if node.executable else 0o444), "st_nlink": 1}
            | {"st_size": node.size, "st_blocks": -(-node.size // 512)}
        )

    def _in_time(self, path: str, work: Callable[[], T]) -> T:
        try:
            return _start(work).result(self._deadline)
        except BushcraftError as error:
            self._tell(f"{path}: {error}")
        except TookTooLong:
            self._tell(f"{path}: no answer in {self._deadline:.0f} s")
        raise RefusedError(errno.EIO)

    def _tell(self, line: str) -> None:
        with self._lock:
            now = self._clock()
            self._told = {old: at for old, at in self._told.items() if now < at + QUIET_SECONDS}
            is_new = line not in self._told
            self._told.setdefault(line, now)
        if is_new:
            self._log(line)


def _start(work: Callable[[], T]) -> Future[T]:
    """Work in a thread of its own, for which nobody waits when the process ends."""
    done: Future[T] = Future()

    def settle() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=settle, daemon=True).start()
    return done


_TIMES = ("st_atime", "st_mtime", "st_ctime")


def check_mount_point(where: Path) -> None:
    """Make the directory if there is none. Errors: `StoreError` if nothing can be mounted there, or at all."""
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise StoreError(f"this machine does not let us mount: no access to {DEVICE}", "Use `bushcraft store get`")
    try:
        where.mkdir(parents=True, exist_ok=True)
        if where.is_mount():
            raise StoreError(f"something is mounted at {where} already", f"Use it, or end it: fusermount3 -u {where}")
        if any(where.iterdir()):
            raise StoreError(f"{where} is not empty", "Mount at an empty directory, or at a new one")
    except OSError as error:
        dead = error.errno == errno.ENOTCONN
        step = f"An earlier mount died: fusermount3 -u {where}" if dead else "Mount at an empty directory"
        raise StoreError(f"cannot mount at {where}: {os.strerror(error.errno or errno.EIO)}", step) from None
    _fuse()


def mount(top: Directory, where: Path, log: Callable[[str], None], deadline: float = DEADLINE_SECONDS) -> None:
    """Serve a tree at the empty directory `where` until SIGINT, SIGTERM, SIGHUP or `umount`; then it is unmounted.

    Errors: `StoreError` if it cannot be mounted.
    """
    check_mount_point(where)
    fuse = _fuse()
    # libfuse 3.14 complains of its own default where neither number of threads is given
    threads = {"max_idle_threads": THREADS} if fuse.fuse_version_major >= 3 else {}
    try:
        # auto_cache: pages outlive the process that read them, until a look at the file shows another time
        fuse.FUSE(
            TreeOperations(top, log, deadline, first_open=lambda: _ask_for_large_reads(where)),
            str(where),
            foreground=True,
            ro=True,
            auto_cache=True,
            fsname="bushcraft",
            subtype="store",
            **threads,
        )
    except RuntimeError as error:
        if error.args[0] not in _ENDED:
            raise StoreError(f"cannot mount at {where}", "FUSE says why in the line above") from None


_ENDED = (7, 8)
"""What `fuse_main` returns after it was mounted: a signal came (libfuse, lib/helper.c, `fuse_main_real`)."""


def _ask_for_large_reads(where: Path) -> None:
    """Root may set how far the kernel reads ahead, once the mount is set up.

    Source: Linux, Documentation/ABI/testing/sysfs-class-bdi.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            _, _, device, _, point, *_ = line.split()
            if point == str(where.absolute()):  # a path with a space is escaped there, and read as it was
                Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(READ_AHEAD_KIB))


def _fuse() -> Any:
    try:
        return importlib.import_module("mfusepy")
    except ImportError:
        raise StoreError("mounting needs mfusepy", "pip install 'bushcraft[mount]'") from None
    except OSError:
        raise StoreError("mounting needs libfuse", "Install fuse3: apt-get install fuse3") from None
