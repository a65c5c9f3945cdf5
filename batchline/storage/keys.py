"""Records of members and of their keys."""

import time
import uuid

import msgspec
from sqlalchemy import Connection, Row, Select, insert, select, update

from batchline.models.errors import Conflict, NotFound
from batchline.models.keys import Role
from batchline.storage.rows import KeyRecord
from batchline.storage.schema import api_keys, members
from batchline.storage.search import is_storable
from batchline.storage.transactions import Transactions


class KeyRecords(Transactions):
    """Members and keys. Made by `Records.keys`."""

    def member(self, name: str, role: Role) -> str:
        """The id of the member of that name, who is made where missing; raises `Conflict` for another role."""

        def work(connection: Connection) -> tuple[str, str]:
            known = connection.execute(select(members.c.id, members.c.role).where(members.c.name == name)).first()
            if known is not None:
                return known.id, known.role
            made = str(uuid.uuid4())
            values = {"id": made, "name": name, "role": role, "created_at": int(time.time())}
            connection.execute(insert(members).values(**values))
            return made, role

        member_id, known_as = self._write(work)
        if known_as != role:
            raise Conflict(f"{name} is a {known_as}; make a {role}'s key under another name")
        return member_id

    def add(self, key: KeyRecord) -> None:
        """Record a key."""
        values = msgspec.structs.asdict(key)
        columns = {name: value for name, value in values.items() if name in api_keys.c}
        self._write(lambda connection: connection.execute(insert(api_keys).values(**columns)))

    def all(self) -> list[KeyRecord]:
        """Every key, the revoked ones as well, newest first."""
        statement = _keys().order_by(api_keys.c.created_at.desc(), api_keys.c.id.desc())
        return [_key_of(row) for row in self._read(lambda connection: connection.execute(statement).all())]

    def of_token(self, sha256: str) -> KeyRecord | None:
        """The key whose token has that digest; none where there is none, or it is revoked."""
        statement = _keys().where(api_keys.c.sha256 == sha256, api_keys.c.revoked_at.is_(None))
        row = self._read(lambda connection: connection.execute(statement).first())
        return None if row is None else _key_of(row)

    def exist(self, *, valid: bool = False) -> bool:
        """Whether a key was ever made, or with `valid` one that is not revoked."""
        statement = select(api_keys.c.id).limit(1)
        if valid:
            statement = statement.where(api_keys.c.revoked_at.is_(None))
        return self._read(lambda connection: connection.execute(statement).first()) is not None

    def revoke(self, key_id: str, *, now: int) -> KeyRecord:
        """Let the key open nothing any more; one that is revoked stays so. Raises `NotFound`."""
        one = api_keys.c.id == key_id

        def work(connection: Connection) -> Row[tuple[object, ...]] | None:
            if not is_storable(key_id):
                return None
            connection.execute(update(api_keys).where(one, api_keys.c.revoked_at.is_(None)).values(revoked_at=now))
            return connection.execute(_keys().where(one)).first()

        row = self._write(work)
        if row is None:
            raise NotFound(f"there is no key {key_id}; `batchline keys list` shows which there are")
        return _key_of(row)


def _keys() -> Select[tuple[object, ...]]:
    whose = (members.c.name, members.c.role)
    return select(*api_keys.c, *whose).join_from(api_keys, members, members.c.id == api_keys.c.member_id)


def _key_of(row: Row[tuple[object, ...]]) -> KeyRecord:
    return KeyRecord(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
