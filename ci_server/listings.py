"""Pages of jobs as bytes, kept as long as nothing was committed: a list that is asked for again is made once."""

from collections import OrderedDict
from collections.abc import Hashable

from ci_common.models import DocumentPage, JobFilter
from ci_common.repository import JobRepository

_MAX_BYTES = 8 * 1024**2  # some fifteen pages of 1000 jobs
_OVERHEAD = 1024  # what a page is counted for beside its content


class Listings:
    """Pages under their filter, which names the owner; the latest used stay."""

    def __init__(self, repository: JobRepository, max_bytes: int = _MAX_BYTES) -> None:
        self._repository = repository
        self._max_bytes = max_bytes
        self._version: Hashable = None
        self._pages = OrderedDict[JobFilter, DocumentPage]()
        self._bytes = 0

    async def page(self, wanted: JobFilter) -> DocumentPage:
        """Return the page as it is in the database at some moment during this call."""
        # The version first: what is read afterwards is at least as new, so it can only be thrown away too early.
        version = await self._repository.version()
        if version != self._version:
            self._version, self._bytes = version, 0
            self._pages.clear()
        if (kept := self._pages.get(wanted)) is not None:
            self._pages.move_to_end(wanted)
            return kept
        page = await self._repository.list_documents(wanted)
        if version == self._version:
            self._keep(wanted, page)
        return page

    def _keep(self, wanted: JobFilter, page: DocumentPage) -> None:
        if wanted in self._pages or _cost(page) > self._max_bytes:
            return
        self._pages[wanted] = page
        self._bytes += _cost(page)
        while self._bytes > self._max_bytes:
            _, dropped = self._pages.popitem(last=False)
            self._bytes -= _cost(dropped)


def _cost(page: DocumentPage) -> int:
    return len(page.content) + _OVERHEAD
