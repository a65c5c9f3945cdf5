"""Keys of the API: made, listed, revoked, and looked up by their token."""

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

TOKEN_PREFIX = "bl-"  # noqa: S105 - what tokens start with is no secret
TOKEN_BYTES = 32
HINT_CHARACTERS = 4


class ApiKeys:
    """The keys of a client's records."""

    def __init__(self, client: Batchline) -> None:
        self._records = client.services.records.api_keys

    def create(self, name: str, *, role: Role = "member", limits: KeyLimits | None = None) -> KeyObject:
        """Make a key for the member of that name, who is made where missing; with its token, which is not kept.

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
        """Everybody for whom a key was ever made, by name."""
        members_by_id = {key.member_id: key.to_object().member for key in self._records.list_keys()}
        return sorted(members_by_id.values(), key=lambda member: member.name)

    def list(self) -> list[KeyObject]:
        """Every key, the revoked ones as well, newest first."""
        return [key.to_object() for key in self._records.list_keys()]

    def revoke(self, key_id: str) -> KeyObject:
        """Let the key open nothing any more, at once; raises `NotFound`."""
        return self._records.revoke(key_id, now=int(time.time())).to_object()

    def find_by_token(self, token: str) -> KeyRecord | None:
        """The key with that token; none where there is none, or it is revoked."""
        return self._records.find_by_digest(_hash_token(token))

    def is_key_required(self) -> bool:
        """Whether a key was ever made: from then on nothing is open without."""
        return self._records.has_keys()

    def has_valid_key(self) -> bool:
        """Whether there is a key that is not revoked."""
        return self._records.has_keys(valid=True)


def access_of(key: KeyRecord) -> Access:
    """What the key opens."""
    return Access(
        member_id=key.member_id,
        is_restricted=key.role != "manager",
        max_upload_bytes=key.max_upload_bytes,
        max_open_batches=key.max_open_batches,
    )


def _hash_token(token: str) -> str:
    """As it is kept: tokens are random and long, so that a plain hash cannot be turned round."""
    return hashlib.sha256(token.encode()).hexdigest()
