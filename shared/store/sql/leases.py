"""What a lease lets its holder write: rows of runs, and of the slots of tasks.

Every such statement names the row, its fencing number and its owner, and wants the lease to be alive by the
database's clock: a host that was overtaken, or slept through its lease, changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from shared.errors import LeaseLost
from shared.store.contract import Tx
from shared.task_values import TaskRun
from shared.values import Lease

ALIVE: Final = "state = 'running' AND lease_until > lease_now()"
HELD_CLAIM: Final = f"id = $1 AND fence = $2 AND owner = $3 AND {ALIVE}"
HELD_RUN: Final = f"id = $1 AND fence = $2 AND lease_owner = $3 AND {ALIVE}"


async def hold(tx: Tx, holder: Lease | TaskRun, assignments: str, *values: Any) -> None:
    """Write into the row of a run or of a claim, which stays locked until the end; raises LeaseLost.

    The first of ``values`` is ``$4``.
    """
    if isinstance(holder, Lease):
        held, name = f"runs SET {assignments} WHERE {HELD_RUN}", holder.run_id
    else:
        held, name = f"task_runs SET {assignments} WHERE {HELD_CLAIM}", holder.id
    if not await tx.execute(f"UPDATE {held}", name, holder.fence, holder.owner, *values):
        raise LeaseLost(name)


async def those_held(tx: Tx, leases: Sequence[Lease]) -> set[str]:
    """Return which of the runs' leases are alive; nobody overtakes those until the transaction ends."""
    found = await tx.fetch(
        f"""SELECT id FROM runs WHERE (id, fence, lease_owner) IN
            (SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[])) AND {ALIVE} ORDER BY id FOR SHARE""",
        [lease.run_id for lease in leases],
        [lease.fence for lease in leases],
        [lease.owner for lease in leases],
    )
    return {row["id"] for row in found}
