"""The one codec of the messages that cross processes: tagged MessagePack arrays, validated as they arrive.

Nothing is pickled. A message is a frozen `Message` with typed fields; its tag is the name of its class. Whatever bytes
come, a decoder gives one of the messages that it was made for, every field within its bounds, or raises one of
`DecodeError`. Used by the vocabularies, one a conversation: `messages` and `reader_messages`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Position = Annotated[int, msgspec.Meta(ge=0, le=2**53)]

# Text that is no UTF-8 is an error of its own.
DecodeError = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of every message."""


encode = msgspec.msgpack.Encoder().encode
