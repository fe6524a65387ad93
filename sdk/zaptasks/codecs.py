"""What may happen to a payload's bytes on their way to the server: compression, encryption, or something of yours.

    keys = {"2026-11": key}  # 32 bytes each
    DataConverter(codecs=[Compression(), Encryption(keys, active="2026-11")])

Codecs work in the order given when something is sent, and in the opposite order when it is read.
"""

from __future__ import annotations

import importlib
import os
import zlib
from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol, runtime_checkable

from zapwire.body import BODY_BYTES_MAX

from .errors import CodecError

COMPRESSED_BYTES_MIN: Final = 1024
"""Shorter payloads are left alone, unless the codec is made with another number."""

KEY_BYTES: Final = 32
KEY_ID_BYTES_MAX: Final = 255
_VERSION: Final = 1
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16


@runtime_checkable
class Codec(Protocol):
    """Turns bytes into other bytes and back. Methods may be called from any thread, several at once, and must not wait.

    `name` is written beside what was encoded, and finds the codec that decodes it. `encode` may return the very object
    that it was given, which says that it has done nothing. Two attributes are read if they are there: `key`, the id of
    a key, which is written beside the payload for people to see; and `hides`, which is False for a codec that does not
    keep anything secret: failures are hidden from the server unless every codec says so.
    """

    @property
    def name(self) -> str: ...

    def encode(self, data: bytes) -> bytes: ...

    def decode(self, data: bytes) -> bytes:
        """Raise `CodecError` for what cannot be decoded."""


class Compression:
    """Makes payloads shorter, where that helps: from `bytes_min` bytes on, and when they are still shorter as base64.

    "zlib" is everywhere; "zstd" needs Python 3.14 or the package `backports.zstd`, and `ValueError` says so. To read
    what was compressed either way, list both: the second one finds nothing left to do.
    """

    hides: Final = False

    def __init__(
        self, algorithm: Literal["zlib", "zstd"] = "zlib", *, bytes_min: int = COMPRESSED_BYTES_MIN, level: int = 3
    ) -> None:
        if bytes_min < 0:
            raise ValueError(f"bytes_min is {bytes_min}: it must be 0 or more")
        if algorithm not in ("zlib", "zstd"):
            raise ValueError(f'algorithm is {algorithm!r}: it must be "zlib" or "zstd"')
        self._zstd = _zstd() if algorithm == "zstd" else None
        self._bytes_min = bytes_min
        self._level = level
        self.name: Final[str] = algorithm

    def encode(self, data: bytes) -> bytes:
        """The compressed bytes; `data` itself where compression does not help."""
        if len(data) < self._bytes_min:
            return data
        shorter: bytes = (
            zlib.compress(data, self._level) if self._zstd is None else self._zstd.compress(data, self._level)
        )
        return shorter if len(shorter) * 4 < len(data) * 3 else data

    def decode(self, data: bytes) -> bytes:
        """At most as much as a body may have, so that a few bytes cannot fill the memory."""
        stream: Any = zlib.decompressobj() if self._zstd is None else self._zstd.ZstdDecompressor()
        try:
            plain: bytes = stream.decompress(data, BODY_BYTES_MAX + 1)
        except Exception as error:  # each library has its own
            raise CodecError(f"this payload cannot be decompressed with {self.name}: {error}") from None
        if len(plain) > BODY_BYTES_MAX:
            raise CodecError(f"this payload has more than {BODY_BYTES_MAX} bytes when it is decompressed")
        if not stream.eof or stream.unused_data:
            raise CodecError(f"this payload cannot be decompressed with {self.name}: it is cut off, or too long")
        return plain


def _zstd() -> Any:
    for module in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    raise ValueError('algorithm is "zstd", which needs Python 3.14 or the package backports.zstd; or say "zlib"')


class Encryption:
    """AES-256-GCM. Only those who have the key can read a payload, and nobody else can change one unnoticed.

    `keys` are 32 random bytes each (`os.urandom(32)`), by ids of your choice; `active` is the id of the one that
    encrypts, the others only decrypt. Anybody can read the ids. Each payload has a random nonce of 96 bits: change the
    active key before it has encrypted four billion payloads.

    The encoded form is one byte of version (1), one byte with the length of the key id, the id, the nonce, and the
    ciphertext with its tag. All that comes before the nonce is authenticated too.
    """

    name: Final = "aes-256-gcm"
    hides: Final = True

    def __init__(self, keys: Mapping[str, bytes], active: str) -> None:
        # 30 ms that a program without encryption need not wait.
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if active not in keys:
            raise ValueError(f"the active key is {active!r}, and the keys are {_names(keys)}: name one of them")
        for key_id, key in keys.items():
            if not 0 < len(key_id.encode()) <= KEY_ID_BYTES_MAX or not key_id.isprintable():
                raise ValueError(f"key id {key_id!r}: it must be 1 to {KEY_ID_BYTES_MAX} bytes of printable text")
            if not isinstance(key, bytes | bytearray) or len(key) != KEY_BYTES:
                size = f"{len(key)} bytes" if isinstance(key, bytes | bytearray) else f"a {type(key).__name__}"
                raise ValueError(f"key {key_id!r} is {size}: it must be {KEY_BYTES} random bytes")
        self.key: Final = active
        self._invalid = InvalidTag
        self._ciphers = {key_id: AESGCM(bytes(key)) for key_id, key in keys.items()}
        self._header = bytes((_VERSION, len(active.encode()))) + active.encode()

    def __repr__(self) -> str:
        return f"<Encryption with key {self.key!r} of {_names(self._ciphers)}>"

    def encode(self, data: bytes) -> bytes:
        """Encrypt with the active key."""
        nonce = os.urandom(_NONCE_BYTES)
        return self._header + nonce + self._ciphers[self.key].encrypt(nonce, data, self._header)

    def decode(self, data: bytes) -> bytes:
        """Decrypt with the key that was used. Raises `CodecError` without that key, and for bytes that were changed."""
        if len(data) < 2 or data[0] != _VERSION:
            raise CodecError(f"this payload is not encrypted in version {_VERSION} of the format: {data[:1].hex()!r}")
        start = 2 + data[1]
        if len(data) < start + _NONCE_BYTES + _TAG_BYTES:
            raise CodecError(f"this payload is cut off: {len(data)} bytes are too few for an encrypted one")
        header, nonce, sealed = data[:start], data[start : start + _NONCE_BYTES], data[start + _NONCE_BYTES :]
        key_id = header[2:].decode("utf-8", "replace")
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise CodecError(
                f"this payload is encrypted with key {key_id!r}, and the keys here are {_names(self._ciphers)}"
            )
        try:
            return cipher.decrypt(nonce, sealed, header)
        except self._invalid:
            raise CodecError(
                f"this payload was changed on its way, or key {key_id!r} is not the same here as where it was encrypted"
            ) from None


def _names(keys: Mapping[str, object]) -> str:
    return ", ".join(map(repr, sorted(keys))) or "none"
