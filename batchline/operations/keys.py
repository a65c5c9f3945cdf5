"""Keys of the API: made, listed, revoked, and looked up by their token."""

from __future__ import annotations

import hashlib
import secrets
import time

from batchline.models.errors import InvalidInput
from batchline.models.ids import new_key_id
from batchline.models.keys import KeyLimits, KeyObject, MemberObject, Role
from batchline.operations.access import Access
from batchline.operations.client import Batchline
from batchline.storage.rows import KeyRecord

TOKEN_PREFIX = "bl-"  # noqa: S105 - what tokens start with is no secret
TOKEN_BYTES = 32
HINT_LETTERS = 4


class Keys:
    """The keys of a client's records."""

    def __init__(self, client: Batchline) -> None:
        self._records = client.engine.records.keys

    def create(self, name: str, *, role: Role = "member", limits: KeyLimits | None = None) -> KeyObject:
        """Make a key for the member of that name, who is made where missing; with its token, which is not kept.

        Raises `InvalidInput` for an empty name, `Conflict` for a name that has another role.
        """
        if not name.strip() or "\0" in name:
            raise InvalidInput("the member has no name; give one", param="name")
        token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        key = KeyRecord(
            id=new_key_id(),
            sha256=_digest(token),
            hint=token[-HINT_LETTERS:],
            member_id=self._records.member(name, role),
            name=name,
            role=role,
            created_at=int(time.time()),
            **(limits or KeyLimits()).model_dump(),
        )
        self._records.add(key)
        return key.to_object().model_copy(update={"token": token})

    def members(self) -> list[MemberObject]:
        """Everybody for whom a key was ever made, by name."""
        found = {key.member_id: key.to_object().member for key in self._records.all()}
        return sorted(found.values(), key=lambda member: member.name)

    def list(self) -> list[KeyObject]:
        """Every key, the revoked ones as well, newest first."""
        return [key.to_object() for key in self._records.all()]

    def revoke(self, key_id: str) -> KeyObject:
        """Let the key open nothing any more, at once; raises `NotFound`."""
        return self._records.revoke(key_id, now=int(time.time())).to_object()

    def of_token(self, token: str) -> KeyRecord | None:
        """The key with that token; none where there is none, or it is revoked."""
        return self._records.of_token(_digest(token))

    def are_needed(self) -> bool:
        """Whether a key was ever made: from then on nothing is open without."""
        return self._records.exist()

    def can_be_used(self) -> bool:
        """Whether there is a key that is not revoked."""
        return self._records.exist(valid=True)


def access_of(key: KeyRecord) -> Access:
    """What the key opens."""
    return Access(
        member_id=key.member_id,
        confined=key.role != "manager",
        max_upload_bytes=key.max_upload_bytes,
        max_open_batches=key.max_open_batches,
    )


def _digest(token: str) -> str:
    """As it is kept: tokens are random and long, so that a plain hash cannot be turned round."""
    return hashlib.sha256(token.encode()).hexdigest()
