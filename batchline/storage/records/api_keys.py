"""Records of members and their API keys."""

import time
import uuid

import msgspec
from sqlalchemy import Connection, Row, Select, insert, select, update

from batchline.models.api_keys import Role
from batchline.models.errors import Conflict, NotFound
from batchline.storage.records.record_types import KeyRecord, record_from_row
from batchline.storage.records.schema import api_keys, members
from batchline.storage.records.search import is_storable
from batchline.storage.records.transactions import Transactions


class KeyRecords(Transactions):
    """Operations on members and keys. Made by `Records.api_keys`."""

    def find_or_create_member(self, name: str, role: Role) -> str:
        """Return the id of the member of that name, created if missing; raises `Conflict` for another role."""

        def find_or_insert(connection: Connection) -> tuple[str, str]:
            member = connection.execute(select(members.c.id, members.c.role).where(members.c.name == name)).first()
            if member is not None:
                return member.id, member.role
            new_id = str(uuid.uuid4())
            values = {"id": new_id, "name": name, "role": role, "created_at": int(time.time())}
            connection.execute(insert(members).values(**values))
            return new_id, role

        member_id, known_role = self._run_write(find_or_insert)
        if known_role != role:
            raise Conflict(f"{name} is a {known_role}; use another name for a {role}'s key")
        return member_id

    def add_key(self, key: KeyRecord) -> None:
        """Insert a key."""
        values = msgspec.structs.asdict(key)
        columns = {name: value for name, value in values.items() if name in api_keys.c}
        self._write(insert(api_keys).values(**columns))

    def list_keys(self) -> list[KeyRecord]:
        """Return all keys, including revoked ones, newest first."""
        statement = _select_keys().order_by(api_keys.c.created_at.desc(), api_keys.c.id.desc())
        return [record_from_row(KeyRecord, row) for row in self._read_all(statement)]

    def find_by_digest(self, sha256: str) -> KeyRecord | None:
        """Return the key whose token has that digest; None if there is none or it is revoked."""
        statement = _select_keys().where(api_keys.c.sha256 == sha256, api_keys.c.revoked_at.is_(None))
        row = self._read_first(statement)
        return None if row is None else record_from_row(KeyRecord, row)

    def has_keys(self, *, valid: bool = False) -> bool:
        """Return True if a key was ever made; with `valid`, if one is not revoked."""
        statement = select(api_keys.c.id).limit(1)
        if valid:
            statement = statement.where(api_keys.c.revoked_at.is_(None))
        return self._read_first(statement) is not None

    def revoke(self, key_id: str, *, now: int) -> KeyRecord:
        """Revoke the key, unless it is revoked already, and return it; raises `NotFound`."""
        is_key = api_keys.c.id == key_id

        def revoke_key(connection: Connection) -> Row[tuple[object, ...]] | None:
            if not is_storable(key_id):
                return None
            connection.execute(
                update(api_keys).where(is_key, api_keys.c.revoked_at.is_(None)).values(revoked_at=now)
            )
            return connection.execute(_select_keys().where(is_key)).first()

        row = self._run_write(revoke_key)
        if row is None:
            raise NotFound(f"there is no key {key_id}; see `batchline keys list`")
        return record_from_row(KeyRecord, row)


def _select_keys() -> Select[tuple[object, ...]]:
    member_columns = (members.c.name, members.c.role)
    return select(*api_keys.c, *member_columns).join_from(api_keys, members, members.c.id == api_keys.c.member_id)
