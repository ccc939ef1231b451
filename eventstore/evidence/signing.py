"""Signing: Ed25519 keys in files, and what is signed with them. Needs the extra `seal` (the package `cryptography`)."""

from __future__ import annotations

import importlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from eventstore.errors import ExtraMissing, KeyFileError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_LARGEST_KEY_FILE_BYTES = 65_536


class SigningKey:
    """A private key. It is never shown: not by `repr`, not in an error."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @property
    def public(self) -> str:
        """The public key: 32 bytes as hexadecimal digits."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, data: bytes) -> bytes:
        """The signature, 64 bytes: always the same one of the same data."""
        return self._key.sign(data)


def is_signed(data: bytes, signature: bytes, public: str) -> bool:
    """Whether a signature of the data was made with the private key of a public one. Raises `ExtraMissing`."""
    _need_library()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def public_file(path: Path) -> Path:
    """Where the public key is put that belongs to a private one: beside it."""
    return path.with_name(path.name + ".pub")


def generate(path: Path) -> str:
    """Make a key: the private one in a file that only its owner can read, the public one beside it (`.pub`), both PEM.

    Returns the public key. Raises `KeyFileError` where one of the files exists, or cannot be written, and
    `ExtraMissing`.
    """
    _need_library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public_pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    try:
        _write_new(public_file(path), public_pem, 0o644)
        try:
            _write_new(path, private_pem, 0o600)
        except BaseException:
            public_file(path).unlink()
            raise
    except FileExistsError as error:
        raise KeyFileError(f"{error.filename} exists: no key was made; name another file") from error
    except OSError as error:
        raise KeyFileError(f"{path}: no key was made: {error.strerror}") from error
    return SigningKey(key).public


def private_key(path: Path) -> SigningKey:
    """The private key in a file. Raises `KeyFileError`, also where others than its owner can read it, and
    `ExtraMissing`."""
    _need_library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = _read(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise KeyFileError(f"{path} can be read by others: run chmod 600 on it, and make another key if somebody has")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        # Without the cause: what the file holds is nobody's business.
        raise KeyFileError(f"{path} holds no private key that can be read (PEM, no password)") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} holds a key of another kind: make one with `eventstore audit keys new`")
    return SigningKey(key)


def public_key(path: Path) -> str:
    """The public key in a file. Raises `KeyFileError` and `ExtraMissing`."""
    _need_library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    pem = _read(path)
    if b"PRIVATE KEY" in pem:
        raise KeyFileError(f"{path} holds a private key: name the public one, {public_file(path).name}")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"{path} holds no public key that can be read (PEM)") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path} holds a key of another kind: make one with `eventstore audit keys new`")
    return key.public_bytes_raw().hex()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_KEY_FILE_BYTES)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    # Not there for others for a moment, either: the mode is given when the file is made.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _need_library() -> None:
    try:
        importlib.import_module("cryptography")
    except ImportError as error:
        raise ExtraMissing("seal", "sealing a journal") from error
