"""What passes between the window and the process that holds a model: small values, pickled.

The window sends ``Load``, ``Generate`` and ``Stop``; None, or the end of the connection, ends the
process. What comes back is told at each class. Standard library only: both processes import this.
"""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("fp32", "int8", "int8-weight", "int4")
FRAME_SECONDS = 0.016  # between two of ``Written``: no screen shows more


@dataclass(frozen=True)
class Load:
    """Open ``path`` (None: the demo model): ``Loading``, then ``Loaded``, or ``Failed``."""

    path: str | None = None
    precision: str | None = None
    kv: str = "auto"


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; ``role`` is "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Generate:
    """Go on with a text, or answer a conversation: ``Written``, then ``Finished`` or ``Failed``."""

    number: int
    prompt: str | tuple[Turn, ...]
    temperature: float = 0.8
    max_tokens: int = 256
    seed: int | None = None


@dataclass(frozen=True)
class Stop:
    """End the generation of that number: its ``Finished`` comes at once."""

    number: int


@dataclass(frozen=True)
class Loading:
    """``stage`` is "download", "export" or "open"; bytes done and in all, 0 where unknown."""

    stage: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Notice:
    """A line that a person should read, but no failure."""

    text: str


@dataclass(frozen=True)
class Loaded:
    """A model is open, and which switches it has; the one before it is closed."""

    asked: Load
    name: str
    precision: str
    precisions: tuple[str, ...]
    kv: str
    kvs: tuple[str, ...]
    temperature: float
    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class Choice:
    """A token that was taken, and the likeliest in its place, as (text, probability).

    Probabilities are the model's own, before temperature.
    """

    text: str
    probability: float
    likeliest: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Part:
    """A piece of text, with the tokens that completed it: mostly one."""

    text: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Written:
    """More text: what came since the one before, see ``FRAME_SECONDS``."""

    number: int
    parts: tuple[Part, ...]
    tokens_per_second: float
    memory_bytes: int

    @property
    def text(self) -> str:
        """All parts of it."""
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True)
class Finished:
    """``reason`` is that of ``pocketlm.Result``."""

    number: int
    reason: str
    prompt_tokens: int
    new_tokens: int
    tokens_per_second: float
    memory_bytes: int


@dataclass(frozen=True)
class Failed:
    """What was asked did not work; ``number`` None: the loading. The process goes on."""

    number: int | None
    text: str


Asked = Load | Generate | Stop
Told = Loading | Notice | Loaded | Written | Finished | Failed
