"""The seam to who is there: which controllers have a session with the database, as far as the database can tell."""

from abc import ABC, abstractmethod

from ci_common.models import ControllerState


class Presence(ABC):
    """This controller among others; a session ends with its process, whatever that dies of.

    Evidence only: a session may be cut while its process lives, and live while its process is stopped. The epoch in
    the row is the truth.
    """

    @abstractmethod
    async def stand_by(self) -> None:
        """This process is counted among those that wait; raises Unavailable."""

    @abstractmethod
    async def is_led(self, epoch: int | None = None) -> bool:
        """Tell whether the controller of that epoch (None: of any) has a session; raises Unavailable."""

    @abstractmethod
    async def former_leader(self) -> ControllerState | None:
        """Return what the tables of an older release say of the controller; None: nothing. Raises Unavailable."""

    @abstractmethod
    async def lead(self, epoch: int) -> bool:
        """This process is seen as the controller of that epoch, and again whenever its session was cut; it waits no
        more. False: another one is. Raises Unavailable."""

    @abstractmethod
    async def lead_after(self, epoch: int) -> None:
        """As `lead`, as soon as whoever else is seen as that controller is gone. Raises nothing, and does not wait."""

    @abstractmethod
    async def close(self) -> None:
        """Nothing is seen of this process."""
