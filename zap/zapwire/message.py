"""ZAP messages: the builder and the zero-copy reader, with the names that ZAP's Python users know.

A message is a 16-byte header and a data segment, little-endian throughout. An object is a run of fields
addressed by byte offset; nothing on the wire says how long it is or what is in it, so a field that the
message does not reach reads as zero or null. Text, bytes, lists and nested objects are stored elsewhere
and reached through an i32 that counts from the field's own address; 0 means null.

The reader answers what the Go reader (luxfi/zap v0.2.1) answers, with one exception that makes it safe on
a peer's bytes: a pointer out of the message or into its header, a null root, and a list that runs past the
end read as null, where Go follows them. No accessor ever raises.

    builder = Builder()
    root = builder.start_object(16)
    root.set_uint32(0, 7)
    root.set_text(8, "seven")
    root.finish_as_root()
    data = builder.finish()

    parse(data).root().text(8)  # "seven"
"""

from __future__ import annotations

import builtins
import struct
from typing import Final

from zapwire.errors import BadMessage, LocalProtocolError
from zapwire.frame import Buffer

MAGIC: Final = b"ZAP\x00"
VERSION: Final = 1
HEADER_BYTES: Final = 16
ALIGNMENT_BYTES: Final = 8
"""Objects, lists and raw blobs start at a multiple of this, counted from the message's first byte."""

_HEADER: Final = struct.Struct("<4sHHII")
_POINTER: Final = struct.Struct("<i")
_SLOT: Final = struct.Struct("<iI")
_U8: Final = struct.Struct("<B")
_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_I8: Final = struct.Struct("<b")
_I16: Final = struct.Struct("<h")
_I32: Final = struct.Struct("<i")
_I64: Final = struct.Struct("<q")
_F32: Final = struct.Struct("<f")
_F64: Final = struct.Struct("<d")

_NOTHING: Final = memoryview(b"")


# Reading


def parse(data: Buffer) -> Message:
    """Check the header and return a view of the message; `data` must not change while the view is used.

    Bytes after the declared size are ignored. Raises `BadMessage`. A declared size below the header's 16
    bytes is accepted, as Go accepts it, and holds nothing: its root is null.
    """
    if len(data) < HEADER_BYTES:
        raise BadMessage(f"a message of {len(data)} bytes: the header alone takes {HEADER_BYTES}")
    magic, version, flags, root, size = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise BadMessage(f"magic {magic.hex()}: a message starts with {MAGIC.hex()}")
    if version != VERSION:
        raise BadMessage(f"version {version}: only version {VERSION} is known")
    if size > len(data):
        raise BadMessage(f"the header says {size} bytes, only {len(data)} are here")
    return Message(memoryview(data)[:size], flags, root)


class Message:
    """A parsed message."""

    __slots__ = ("_data", "_flags", "_root")

    def __init__(self, data: memoryview, flags: int, root: int) -> None:
        self._data = data
        self._flags = flags
        self._root = root

    @property
    def data(self) -> memoryview:
        """The message's bytes, cut to its declared size."""
        return self._data

    @property
    def version(self) -> int:
        """The header's version, 1 in every message that parses."""
        return VERSION

    @property
    def flags(self) -> int:
        """All 16 flag bits; the opcode is the upper 8."""
        return self._flags

    @property
    def opcode(self) -> int:
        """The message type, 0 in responses and handshakes."""
        return self._flags >> 8

    @property
    def size(self) -> int:
        """The declared size in bytes, header included."""
        return len(self._data)

    def root(self) -> Object:
        """The root object. An empty root may lie exactly at the end of the message."""
        root = self._root
        return Object(self._data, root if HEADER_BYTES <= root <= len(self._data) else 0)


class Object:
    """A view of one object; every accessor takes the field's byte offset within it."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: memoryview, offset: int) -> None:
        self._data = data
        self._offset = offset

    def is_null(self) -> builtins.bool:
        """True for an absent object, of which every field reads as zero or null."""
        return self._offset == 0

    def _number(self, kind: struct.Struct, offset: int) -> int:
        position = self._offset + offset
        if self._offset == 0 or offset < 0 or position + kind.size > len(self._data):
            return 0
        value: int = kind.unpack_from(self._data, position)[0]
        return value

    def _float(self, kind: struct.Struct, offset: int) -> float:
        position = self._offset + offset
        if self._offset == 0 or offset < 0 or position + kind.size > len(self._data):
            return 0.0
        value: float = kind.unpack_from(self._data, position)[0]
        return value

    def bool(self, offset: int) -> builtins.bool:
        """A byte that is not 0."""
        return self._number(_U8, offset) != 0

    def uint8(self, offset: int) -> int:
        """An unsigned 8-bit number."""
        return self._number(_U8, offset)

    def uint16(self, offset: int) -> int:
        """An unsigned 16-bit number."""
        return self._number(_U16, offset)

    def uint32(self, offset: int) -> int:
        """An unsigned 32-bit number."""
        return self._number(_U32, offset)

    def uint64(self, offset: int) -> int:
        """An unsigned 64-bit number."""
        return self._number(_U64, offset)

    def int8(self, offset: int) -> int:
        """A signed 8-bit number."""
        return self._number(_I8, offset)

    def int16(self, offset: int) -> int:
        """A signed 16-bit number."""
        return self._number(_I16, offset)

    def int32(self, offset: int) -> int:
        """A signed 32-bit number."""
        return self._number(_I32, offset)

    def int64(self, offset: int) -> int:
        """A signed 64-bit number."""
        return self._number(_I64, offset)

    def float32(self, offset: int) -> float:
        """A 32-bit IEEE 754 number."""
        return self._float(_F32, offset)

    def float64(self, offset: int) -> float:
        """A 64-bit IEEE 754 number."""
        return self._float(_F64, offset)

    def bytes(self, offset: int) -> memoryview:
        """Bytes as a view of the message, empty when null. `bytes(view)` copies them out of it."""
        position = self._offset + offset
        if self._offset == 0 or offset < 0 or position + _SLOT.size > len(self._data):
            return _NOTHING
        pointer, length = _SLOT.unpack_from(self._data, position)
        start = position + pointer
        if pointer == 0 or start < HEADER_BYTES or start + length > len(self._data):
            return _NOTHING
        return self._data[start : start + length]

    def text(self, offset: int) -> str:
        """Text, empty when null. Bytes that are not UTF-8 read as U+FFFD: Go lets a peer send any."""
        return str(self.bytes(offset), "utf-8", "replace")

    def object(self, offset: int) -> Object:
        """A nested object, null when its pointer is 0 or leaves the message."""
        position = self._offset + offset
        if self._offset == 0 or offset < 0 or position + _POINTER.size > len(self._data):
            return Object(self._data, 0)
        (pointer,) = _POINTER.unpack_from(self._data, position)
        target = position + pointer
        if pointer == 0 or not HEADER_BYTES <= target < len(self._data):
            return Object(self._data, 0)
        return Object(self._data, target)

    def list(self, offset: int, *, element_bytes: int = 1) -> List:
        """A list, null when its pointer leaves the message or its elements run past the end.

        The wire does not say how long an element is; at least 1 byte is assumed. Who knows better says so
        in `element_bytes`, and then a length that promises more than is there is found here.
        """
        position = self._offset + offset
        if self._offset == 0 or offset < 0 or position + _SLOT.size > len(self._data):
            return List(_NOTHING, 0, 0)
        pointer, length = _SLOT.unpack_from(self._data, position)
        start = position + pointer
        if pointer == 0 or start < HEADER_BYTES or start + length * max(1, element_bytes) > len(self._data):
            return List(_NOTHING, 0, 0)
        return List(self._data, start, length)


class List:
    """A view of a list. An index outside it, and an element outside the message, read as 0 or null."""

    __slots__ = ("_data", "_length", "_start")

    def __init__(self, data: memoryview, start: int, length: int) -> None:
        self._data = data
        self._start = start
        self._length = length

    def __len__(self) -> int:
        return self._length

    def is_null(self) -> bool:
        """True for an absent list, whose length is 0."""
        return self._length == 0

    def _number(self, kind: struct.Struct, index: int) -> int:
        position = self._start + index * kind.size
        if not 0 <= index < self._length or position + kind.size > len(self._data):
            return 0
        value: int = kind.unpack_from(self._data, position)[0]
        return value

    def uint8(self, index: int) -> int:
        """An element of a list of unsigned 8-bit numbers."""
        return self._number(_U8, index)

    def uint32(self, index: int) -> int:
        """An element of a list of unsigned 32-bit numbers."""
        return self._number(_U32, index)

    def uint64(self, index: int) -> int:
        """An element of a list of unsigned 64-bit numbers."""
        return self._number(_U64, index)

    def object(self, index: int, elem_size: int) -> Object:
        """An element of a list of inline objects of `elem_size` bytes each; null unless all of it is there."""
        position = self._start + index * elem_size
        if not 0 <= index < self._length or elem_size < 0 or position + elem_size > len(self._data):
            return Object(self._data, 0)
        return Object(self._data, position)

    def raw(self) -> memoryview:
        """The bytes of a list whose elements are single bytes."""
        return self._data[self._start : self._start + self._length]

    def bytes_at(self, index: int) -> memoryview:
        """An entry of a list made with `add_object_bytes`. Entries before it are stepped over one by one."""
        if not 0 <= index < self._length:
            return _NOTHING
        position = self._start
        for _ in range(index + 1):
            if position + _U32.size > len(self._data):
                return _NOTHING
            start = position + _U32.size
            position = start + _U32.unpack_from(self._data, position)[0]
        return self._data[start:position] if position <= len(self._data) else _NOTHING


# Building


class Builder:
    """Builds one message: inner objects and lists first, then the root that points at them.

    `capacity` is accepted for the name's sake and changes nothing: the buffer grows by itself. Mistakes
    raise `LocalProtocolError` where they are made, with the value and what would be right.
    """

    __slots__ = ("_buffer", "_open", "_root")

    def __init__(self, capacity: int = 256) -> None:
        self._buffer = bytearray(HEADER_BYTES)
        self._root = 0
        self._open = 0  # objects started and not finished

    def reset(self) -> None:
        """Begin a new message; nothing of the last one stays, its flags included."""
        self._buffer = bytearray(HEADER_BYTES)
        self._root = 0
        self._open = 0

    def start_object(self, size: int) -> ObjectBuilder:
        """Begin an object with `size` bytes of fields, all zero until set."""
        if size < 0:
            raise LocalProtocolError(f"object size {size}: must be 0 or more bytes")
        self._align()
        self._open += 1
        builder = ObjectBuilder(self, len(self._buffer), size)
        self._buffer += bytes(size)
        return builder

    def start_list(self, elem_size: int) -> ListBuilder:
        """Begin a list of elements of `elem_size` bytes. Nothing else may be built until its last element."""
        if elem_size < 0:
            raise LocalProtocolError(f"element size {elem_size}: must be 0 or more bytes")
        self._align()
        return ListBuilder(self, len(self._buffer))

    def write_bytes(self, data: Buffer) -> int:
        """Append raw bytes and return their offset, 0 when there are none."""
        if not len(data):
            return 0
        self._align()
        offset = len(self._buffer)
        self._buffer += data
        return offset

    def write_text(self, text: str) -> int:
        """Append text as UTF-8 and return its offset, 0 when it is empty."""
        return self.write_bytes(_encode(text))

    def finish(self) -> bytes:
        """The finished message, flags 0."""
        return self.finish_with_flags(0)

    def finish_with_flags(self, flags: int) -> bytes:
        """The finished message; `flags` are the header's 16 bits, the opcode in the upper 8."""
        if not 0 <= flags <= 0xFFFF:
            raise LocalProtocolError(f"flags {flags}: must be 0 to 65535")
        if self._open:
            raise LocalProtocolError(
                f"{self._open} objects are not finished: call finish() or finish_as_root() on each"
            )
        _HEADER.pack_into(self._buffer, 0, MAGIC, VERSION, flags, self._root, len(self._buffer))
        return bytes(self._buffer)

    def _align(self) -> None:
        self._buffer += bytes(-len(self._buffer) % ALIGNMENT_BYTES)


class ObjectBuilder:
    """Sets the fields of one object. Made by `Builder.start_object`.

    A field past the declared size makes the object longer, as in Go, while nothing has been built after
    it; afterwards the field would overwrite another object, and is refused.
    """

    __slots__ = ("_builder", "_deferred", "_end", "_finished", "_start")

    def __init__(self, builder: Builder, start: int, size: int) -> None:
        self._builder = builder
        self._start = start
        self._end = start + size
        self._deferred: list[tuple[int, bytes]] = []  # (slot's address, payload), laid down by finish()
        self._finished = False

    def _claim(self, offset: int, width: int) -> int:
        """Return the address of a field `width` bytes wide, making the object longer where it must be."""
        if self._finished:
            raise LocalProtocolError(f"field {offset}: the object is finished, set its fields before")
        if offset < 0:
            raise LocalProtocolError(f"field {offset}: an offset counts from the object's start, 0 or more")
        address = self._start + offset
        end = address + width
        if end > self._end:
            buffer = self._builder._buffer
            if len(buffer) != self._end:
                size = self._end - self._start
                raise LocalProtocolError(
                    f"field {offset} of {width} bytes: the object has {size} bytes and something is built after it"
                )
            buffer += bytes(end - self._end)
            self._end = end
        return address

    def _set(self, kind: struct.Struct, offset: int, value: float) -> None:
        address = self._claim(offset, kind.size)
        try:
            kind.pack_into(self._builder._buffer, address, value)
        except (struct.error, OverflowError) as error:
            raise LocalProtocolError(f"field {offset}: {value!r} cannot be stored: {error}") from None

    def set_bool(self, offset: int, value: bool) -> None:
        """Set one byte to 1 or 0."""
        self._set(_U8, offset, 1 if value else 0)

    def set_uint8(self, offset: int, value: int) -> None:
        """Set an unsigned 8-bit number."""
        self._set(_U8, offset, value)

    def set_uint16(self, offset: int, value: int) -> None:
        """Set an unsigned 16-bit number."""
        self._set(_U16, offset, value)

    def set_uint32(self, offset: int, value: int) -> None:
        """Set an unsigned 32-bit number."""
        self._set(_U32, offset, value)

    def set_uint64(self, offset: int, value: int) -> None:
        """Set an unsigned 64-bit number."""
        self._set(_U64, offset, value)

    def set_int8(self, offset: int, value: int) -> None:
        """Set a signed 8-bit number."""
        self._set(_I8, offset, value)

    def set_int16(self, offset: int, value: int) -> None:
        """Set a signed 16-bit number."""
        self._set(_I16, offset, value)

    def set_int32(self, offset: int, value: int) -> None:
        """Set a signed 32-bit number."""
        self._set(_I32, offset, value)

    def set_int64(self, offset: int, value: int) -> None:
        """Set a signed 64-bit number."""
        self._set(_I64, offset, value)

    def set_float32(self, offset: int, value: float) -> None:
        """Set a 32-bit IEEE 754 number."""
        self._set(_F32, offset, value)

    def set_float64(self, offset: int, value: float) -> None:
        """Set a 64-bit IEEE 754 number."""
        self._set(_F64, offset, value)

    def set_text(self, offset: int, text: str) -> None:
        """Set text; an empty one is stored as null."""
        self.set_bytes(offset, _encode(text))

    def set_bytes(self, offset: int, data: Buffer) -> None:
        """Set bytes; an empty value is stored as null. The payload follows the object's fields.

        Setting a field twice lays both payloads down and points at the second, byte for byte as Go does.
        """
        address = self._claim(offset, _SLOT.size)
        _SLOT.pack_into(self._builder._buffer, address, 0, len(data))
        if len(data):
            self._deferred.append((address, bytes(data)))

    def set_object(self, offset: int, obj_offset: int) -> None:
        """Point at an object built before, by the offset that its `finish()` returned; 0 is null."""
        address = self._claim(offset, _POINTER.size)
        pointer = self._pointer(address, obj_offset) if obj_offset else 0
        _POINTER.pack_into(self._builder._buffer, address, pointer)

    def set_list(self, offset: int, list_offset: int, length: int) -> None:
        """Point at a list built before, by the pair that its `finish()` returned; no elements are null."""
        if not 0 <= length <= 0xFFFF_FFFF:
            raise LocalProtocolError(f"field {offset}: list length {length} must be 0 to 4294967295")
        address = self._claim(offset, _SLOT.size)
        if list_offset and length:
            _SLOT.pack_into(self._builder._buffer, address, self._pointer(address, list_offset), length)
        else:
            _SLOT.pack_into(self._builder._buffer, address, 0, 0)

    def _pointer(self, address: int, target: int) -> int:
        if not HEADER_BYTES <= target <= len(self._builder._buffer):
            raise LocalProtocolError(
                f"offset {target} points out of the message: use what finish() returned, "
                f"{HEADER_BYTES} to {len(self._builder._buffer)} here"
            )
        return target - address

    def finish(self) -> int:
        """Lay the payloads down, in the order of the set calls, and return the object's offset."""
        if self._finished:
            raise LocalProtocolError("the object is finished already")
        self._finished = True
        buffer = self._builder._buffer
        for address, data in self._deferred:
            _POINTER.pack_into(buffer, address, len(buffer) - address)
            buffer += data
        self._builder._open -= 1
        return self._start

    def finish_as_root(self) -> int:
        """Finish the object, make it the message's root and return its offset."""
        offset = self.finish()
        self._builder._root = offset
        return offset


class ListBuilder:
    """Adds the elements of one list. Made by `Builder.start_list`."""

    __slots__ = ("_builder", "_end", "_length", "_start")

    def __init__(self, builder: Builder, start: int) -> None:
        self._builder = builder
        self._start = start
        self._end = start
        self._length = 0

    def _append(self, data: Buffer, elements: int) -> None:
        buffer = self._builder._buffer
        if len(buffer) != self._end:
            raise LocalProtocolError("a list's elements lie side by side, and something was built after the last one")
        buffer += data
        self._end = len(buffer)
        self._length += elements

    def _append_number(self, kind: struct.Struct, value: int) -> None:
        try:
            data = kind.pack(value)
        except struct.error as error:
            raise LocalProtocolError(f"element {self._length}: {value!r} cannot be stored: {error}") from None
        self._append(data, 1)

    def add_uint8(self, value: int) -> None:
        """Add an unsigned 8-bit number."""
        self._append_number(_U8, value)

    def add_uint32(self, value: int) -> None:
        """Add an unsigned 32-bit number."""
        self._append_number(_U32, value)

    def add_uint64(self, value: int) -> None:
        """Add an unsigned 64-bit number."""
        self._append_number(_U64, value)

    def add_bytes(self, data: Buffer) -> None:
        """Add raw bytes, each of them counted as one element."""
        self._append(data, len(data))

    def add_object_bytes(self, data: Buffer) -> None:
        """Add one entry of variable length: its u32 length and its bytes, counted as one element."""
        self._append(_U32.pack(len(data)) + data, 1)

    def finish(self) -> tuple[int, int]:
        """The list's offset and its number of elements, as `set_list` takes them."""
        return self._start, self._length


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        bad = text[error.start]
        raise LocalProtocolError(
            f"text has {bad!r} at position {error.start}: a lone surrogate has no UTF-8 form"
        ) from None
