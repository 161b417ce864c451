"""One read for all who want the same at the same time."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

from bushcraft.errors import UnreachableError


class SingleFlight:
    """Those who want the same at the same time wait for the first of them, for `seconds` at most."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._flying: dict[object, Future[bytes]] = {}

    def result(self, key: object, get: Callable[[], bytes]) -> bytes:
        """What `get` gives, or raises. Errors: `UnreachableError` for those who waited too long."""
        with self._lock:
            flying = self._flying.get(key)
            if flying is None:
                ours = self._flying[key] = Future()
        if flying is not None:
            try:
                return flying.result(self._seconds)
            except TimeoutError:
                raise UnreachableError("the depots do not answer in time", "Wait until they answer") from None
        try:
            data = get()
        except BaseException as error:
            ours.set_exception(error)
            raise
        else:
            ours.set_result(data)
            return data
        finally:
            with self._lock:
                del self._flying[key]
