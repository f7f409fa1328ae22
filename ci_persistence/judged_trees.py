"""What was learnt of the listings of trees, kept in memory: so of the next tree only what was edited is judged.

A piece says nothing that its listing's hash, its spot and its owner do not decide, but where contents lie. Whatever
makes some of an owner's contents count as missing raises the owner's number (`forgettings`) in the same transaction,
and what was learnt under another number is dropped.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from ci_common.blobs import BlobPlace, LaidTree
from ci_persistence.manifest_archive import frame, record
from ci_persistence.manifest_rules import check_sizes
from ci_persistence.tree_listings import Expansion, Fresh, Piece, Spot

_KEPT_BYTES: Final = 64 * 1024 * 1024  # about, of everybody's pieces; 50 000 files take 8 MB
_KEPT_PACKS: Final = 10_000  # of one owner: every manifest has a place for each of them
_OBJECTS: Final = 600  # bytes that a piece takes beside its names and records


class Known:
    """The pieces of one owner's trees, and the numbers that their records have for packs."""

    def __init__(self, forgettings: int | None) -> None:
        self.forgettings = forgettings
        self.pieces: dict[Spot, Piece] = {}
        self._packs: dict[str, int] = {}
        self._last: list[Spot] = []  # of the tree that was laid out last

    @property
    def full(self) -> bool:
        """Tell whether it is time to begin anew."""
        return len(self._packs) > _KEPT_PACKS

    @property
    def size(self) -> int:
        """About how many bytes this takes."""
        return sum(len(piece.names) + len(piece.records) + _OBJECTS for piece in self.pieces.values())

    def lay_out(
        self,
        root: bytes,
        expansion: Expansion,
        listings: Mapping[bytes, BlobPlace],
        contents: Mapping[bytes, BlobPlace],
    ) -> LaidTree:
        """Return the tree that was found, and what is new of it is known; raises InvalidArchive."""
        new = {
            spot: self._piece(fresh, listings[spot.sha256].pack, contents)
            for spot, fresh in expansion.fresh.items()
        }
        self.pieces |= new
        self._last = expansion.spots
        return self._tree(root)

    def keep_last(self) -> None:
        """Only the last tree is known."""
        self.pieces = {spot: self.pieces[spot] for spot in self._last}

    def _piece(self, fresh: Fresh, listing_pack: str, places: Mapping[bytes, BlobPlace]) -> Piece:
        """Return what was found at a spot, with the places of its contents; raises InvalidArchive."""
        check_sizes(fresh.files, places)
        packs = {places[file.sha256].pack for file in fresh.files}
        numbers = {name: self._packs.setdefault(name, len(self._packs)) for name in sorted(packs)}
        return Piece(
            files=len(fresh.files),
            names="\n".join(fresh.paths()).encode(),
            records=b"".join(record(file, places[file.sha256], numbers) for file in fresh.files),
            size=sum(file.size for file in fresh.files),
            listing_size=fresh.listing_size,
            directories=fresh.directories,
            below=fresh.below,
            packs=frozenset(packs | {listing_pack}),
        )

    def _tree(self, root: bytes) -> LaidTree:
        pieces = [self.pieces[spot] for spot in self._last]
        packs = frozenset[str]().union(*(piece.packs for piece in pieces))
        listed = [name if name in packs else "" for name in self._packs]
        names = b"\n".join(piece.names for piece in pieces if piece.files)
        first = frame(listed, sum(piece.files for piece in pieces), len(names))
        return LaidTree(root.hex(), packs, (first, names, *(piece.records for piece in pieces)))


class JudgedTrees:
    """Keeps what is known of each owner's trees, of those who came last."""

    def __init__(self) -> None:
        self._owners = OrderedDict[str, tuple[Known, int]]()  # with its size

    def known(self, owner: str, forgettings: int | None) -> Known:
        """Return what can be believed of earlier trees."""
        known, _ = self._owners.get(owner, (None, 0))
        if known is None or forgettings is None or known.forgettings != forgettings or known.full:
            return Known(forgettings)
        return known

    def keep(self, owner: str, known: Known) -> None:
        """What is known helps with the owner's next tree, unless others need the room."""
        if known.forgettings is None:
            return
        if known.size > _KEPT_BYTES // 2:
            known.keep_last()
        self._owners[owner] = known, known.size
        self._owners.move_to_end(owner)
        while sum(size for _, size in self._owners.values()) > _KEPT_BYTES:
            self._owners.popitem(last=False)
