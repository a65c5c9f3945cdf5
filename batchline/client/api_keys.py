"""API keys: create, list, revoke, and look up by token."""

from __future__ import annotations

import hashlib
import secrets
import time

from batchline.client.access import Access
from batchline.client.client import Batchline
from batchline.models.api_keys import KeyLimits, KeyObject, MemberObject, Role
from batchline.models.errors import InvalidInput
from batchline.models.ids import new_key_id
from batchline.storage.records.record_types import KeyRecord

TOKEN_PREFIX = "bl-"  # noqa: S105 - a prefix of all tokens, not a secret
TOKEN_BYTES = 32
HINT_CHARACTERS = 4


class ApiKeys:
    """The API keys in a client's database."""

    def __init__(self, client: Batchline) -> None:
        self._records = client.services.records.api_keys

    def create(self, name: str, *, role: Role = "member", limits: KeyLimits | None = None) -> KeyObject:
        """Create a key for the named member, created if new. Only this return value holds the token.

        Raises `InvalidInput` for an empty name, `Conflict` for a name that has another role.
        """
        if not name.strip() or "\0" in name:
            raise InvalidInput("the member has no name; give one", param="name")
        token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        key = KeyRecord(
            id=new_key_id(),
            sha256=_hash_token(token),
            hint=token[-HINT_CHARACTERS:],
            member_id=self._records.find_or_create_member(name, role),
            name=name,
            role=role,
            created_at=int(time.time()),
            **(limits or KeyLimits()).model_dump(),
        )
        self._records.add_key(key)
        return key.to_object().model_copy(update={"token": token})

    def members(self) -> list[MemberObject]:
        """Return every member that ever had a key, sorted by name."""
        members_by_id = {key.member_id: key.to_object().member for key in self._records.list_keys()}
        return sorted(members_by_id.values(), key=lambda member: member.name)

    def list(self) -> list[KeyObject]:
        """Return all keys, including revoked ones, newest first."""
        return [key.to_object() for key in self._records.list_keys()]

    def revoke(self, key_id: str) -> KeyObject:
        """Revoke the key with immediate effect; raises `NotFound`."""
        return self._records.revoke(key_id, now=int(time.time())).to_object()

    def find_by_token(self, token: str) -> KeyRecord | None:
        """Return the key with that token, or None if it is unknown or revoked."""
        return self._records.find_by_digest(_hash_token(token))

    def is_key_required(self) -> bool:
        """Return True once any key was created, even a revoked one; authentication is then required."""
        return self._records.has_keys()

    def has_valid_key(self) -> bool:
        """Return True if at least one key is not revoked."""
        return self._records.has_keys(valid=True)


def access_of(key: KeyRecord) -> Access:
    """Return the rights that the key grants."""
    return Access(
        member_id=key.member_id,
        is_restricted=key.role != "manager",
        max_upload_bytes=key.max_upload_bytes,
        max_open_batches=key.max_open_batches,
    )


def _hash_token(token: str) -> str:
    """Return the stored digest. Tokens are long and random, so an unsalted hash cannot be reversed."""
    return hashlib.sha256(token.encode()).hexdigest()
