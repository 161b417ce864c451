"""The source code that makes a checkpoint, kept with it: a run can be read after the checkout is gone."""

import io
import tarfile
from pathlib import Path

import zstandard

from bushcraft.store.depot import Depot


def save_code(depot: Depot, package: Path) -> str:
    """Store the `.py` and `.toml` files below `package` as a tar.zst; its object name.

    The same files give the same bytes, so that an unchanged package is one object for ever.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(p for p in package.rglob("*") if p.suffix in {".py", ".toml"}):
            data = path.read_bytes()
            about = tarfile.TarInfo(str(path.relative_to(package.parent)))
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return depot.put_bytes(zstandard.ZstdCompressor(level=6).compress(buffer.getvalue()))
