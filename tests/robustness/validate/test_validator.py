"""The validator sees what is wrong: rows tampered with, and an ingest that is broken on purpose in the data path."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from cncmon_ingest import ledger
from cncmon_ingest.decode import Decoded
from cncmon_ingest.store import Outcome, Store
from robustness.scenarios.plant import Plant
from robustness.traffic.machines import running_machines
from robustness.traffic.services import ingest_settings
from robustness.validate.finding import Finding, judge
from testkit import agent as agents
from testkit import ingest
from testkit.ingest import until

_ONE = "(SELECT ctid FROM sensor_data WHERE machine_id = 'e1-002' ORDER BY time OFFSET {0} LIMIT 1)"

Counts = tuple[int, int, int]


def counts(finding: Finding) -> Counts:
    return finding.verdict.lost, finding.verdict.duplicated, finding.verdict.mismatched


async def test_rows_that_were_tampered_with(plant: Plant) -> None:
    async with plant.running(edges=1, machines=3):
        await plant.flow(1.5)
    finding = await judge(plant.dsn, plant.accepted, plant.polls, plant.folder)
    assert (counts(finding), finding.holds) == ((0, 0, 0), True)
    database = await asyncpg.connect(plant.dsn)
    steps: list[tuple[str, Counts]] = [
        (f"DELETE FROM sensor_data WHERE ctid = {_ONE.format(3)}", (1, 0, 0)),
        (f"INSERT INTO sensor_data SELECT * FROM sensor_data WHERE ctid = {_ONE.format(5)}", (1, 1, 0)),
        (f"UPDATE sensor_data SET x_pos_mm = x_pos_mm + 1e-6 WHERE ctid = {_ONE.format(0)}", (1, 1, 1)),
        (f"UPDATE sensor_data SET temperature = NULL WHERE ctid = {_ONE.format(1)}", (1, 1, 2)),
        (f"UPDATE sensor_data SET machine_id = 'e1-003' WHERE ctid = {_ONE.format(2)}", (2, 2, 3)),
        # Stamped anew: what was accepted is not there, and what is there is still one answer of the machine's.
        (f"UPDATE sensor_data SET time = time + '1ms' WHERE ctid = {_ONE.format(9)}", (3, 2, 3)),
    ]
    for statement, expected in steps:
        await database.execute(statement)
        finding = await judge(plant.dsn, plant.accepted, plant.polls, plant.folder)
        assert counts(finding) == expected, statement
        assert not finding.holds
    await database.close()


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("INSERT INTO gaps VALUES ({epoch}, {seq}, {seq}, NULL, 'disk_full')", "is stored"),
        ("INSERT INTO gaps VALUES ({epoch}, 1, 1000000, NULL, 'lost')", "beyond the last accepted"),
        ("INSERT INTO gaps VALUES ({epoch}, {seq}, {seq}, 12345, 'epoch_abandoned')", "12345 samples"),
        ("INSERT INTO gaps VALUES ({epoch}, {seq}, {seq}, {samples}, 'disk_full')", "declared by nobody"),
        ("INSERT INTO gaps VALUES (77, 1, 1, NULL, 'disk_full')", "beyond the last accepted"),
        (
            "INSERT INTO dead_letters VALUES ('{epoch}:{seq}', '', -1, 'x', '', '', 0, '{{}}', '', 'dead')",
            "is stored",
        ),
    ],
)
async def test_excuses_that_are_none(
    statement: str, complaint: str, tmp_path: Path, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    epoch, seq, samples = await _stored_batch(database, tmp_path)
    await database.execute(statement.format(epoch=epoch, seq=seq, samples=samples))
    finding = await judge(postgres_dsn, [tmp_path / "accepted.jsonl"], [tmp_path / "polls.jsonl"], tmp_path)
    assert any(complaint in wrong for wrong in finding.excuses.wrong), finding.excuses


async def test_a_gap_that_is_true_and_declared_is_an_excuse(
    tmp_path: Path, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    epoch, seq, samples = await _stored_batch(database, tmp_path)
    await database.execute("DELETE FROM sensor_data")
    await database.execute("INSERT INTO gaps VALUES ($1, $2, $2, $3, 'disk_full')", epoch, seq, samples)
    declared = json.dumps({"epoch": epoch, "seq_from": 1, "seq_to": seq, "samples": samples, "reason": "disk_full"})
    await database.execute("INSERT INTO events VALUES (now(), 'hall', 'e1', 'gap', NULL, $1)", declared)
    finding = await judge(postgres_dsn, [tmp_path / "accepted.jsonl"], [tmp_path / "polls.jsonl"], tmp_path)
    assert finding.holds, finding.complaints
    assert (finding.verdict.gaps, finding.excuses.reasons) == (samples, {"disk_full"})


async def _stored_batch(database: asyncpg.Connection, folder: Path) -> tuple[int, int, int]:
    """Store two samples by hand, with the logs that go with them; return their epoch, seq and number."""
    epoch, seq = 4242, 3
    stamps = ["2026-01-02T03:04:05.000006Z", "2026-01-02T03:04:05.100006Z"]
    marks = [["m", counter, stamp] for counter, stamp in enumerate(stamps, 1)]
    line = {"epoch": epoch, "seq": seq, "kind": "samples", "base": 0, "samples": marks}
    (folder / "accepted.jsonl").write_text(json.dumps(line) + "\n")
    polls = [
        {"machine_id": "m", "counter": n, "t_ns": n, "values": {"temperature": 1.5, "poll_counter": n}} for n in (1, 2)
    ]
    (folder / "polls.jsonl").write_text("".join(json.dumps(poll) + "\n" for poll in polls))
    await database.execute("SELECT ensure_partition('sensor_data', $1::text::timestamptz)", stamps[0])
    await database.executemany(
        "INSERT INTO sensor_data (time, machine_id, temperature, extras) VALUES ($1::text::timestamptz, 'm', 1.5, $2)",
        [(stamp, json.dumps({"poll_counter": counter})) for counter, stamp in enumerate(stamps, 1)],
    )
    await database.execute("INSERT INTO machines (machine_id, site, edge) VALUES ('m', 'hall', 'e1')")
    return epoch, seq, len(stamps)


def _loses(message: Decoded) -> None:
    """Leave out one row."""
    message.packed.pop()


def _doubles(message: Decoded) -> None:
    """Write one row twice."""
    message.packed.append(message.packed[0])


def _alters(message: Decoded) -> None:
    """Flip one bit of a number, about a millionth of it."""
    row = bytearray(message.packed[0])
    length_at = row.index(b"\x00\x00\x00\x08", 40)
    row[length_at + 4 + 3] ^= 1
    message.packed[0] = bytes(row)


@pytest.mark.parametrize(
    ("breaks", "expected"), [(_loses, (1, 0, 0)), (_doubles, (0, 1, 0)), (_alters, (0, 0, 1))], ids=["l", "d", "a"]
)
async def test_an_ingest_that_is_broken_on_purpose(
    breaks: Callable[[Decoded], None], expected: Counts, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sample of many, in the very transaction that acknowledges it: no other part of the system can notice."""
    write = Store.write
    seen = 0

    async def broken(self: Store, messages: Sequence[Decoded]) -> Outcome:
        nonlocal seen
        for message in messages:
            seen += bool(message.packed)
            if message.packed and seen == 3:
                breaks(message)
        return await write(self, messages)

    monkeypatch.setattr(Store, "write", broken)
    assert counts(await _small_run(plant)) == expected


async def test_an_ingest_that_acknowledges_and_forgets(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fifth message: its ledger row is there, its samples are not."""
    write = Store.write
    skipped = 0

    async def broken(self: Store, messages: Sequence[Decoded]) -> Outcome:
        nonlocal skipped
        for message in messages:
            if message.identity and message.identity.seq % 5 == 0:
                skipped += len(message.packed)
                message.packed.clear()
        return await write(self, messages)

    monkeypatch.setattr(Store, "write", broken)
    finding = await _small_run(plant)
    assert skipped > 0
    assert counts(finding) == (skipped, 0, 0)


async def test_a_ledger_that_does_not_know_what_it_stored(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every message is taken for new, and each comes twice, out of reach of the stream's own duplicate window."""
    enter = ledger.enter

    async def all_new(connection: asyncpg.Connection, messages: Sequence[Decoded], **how: Any) -> ledger.Entered:
        return (await enter(connection, messages, **how))._replace(new=list(messages))

    monkeypatch.setattr(ledger, "enter", all_new)

    async def again() -> None:
        async with plant.client() as client:
            js = client.jetstream()
            for seq in range(1, (await js.stream_info("CNC_DATA")).state.last_seq + 1):
                message = await js.get_msg("CNC_DATA", seq)
                headers = {k: v for k, v in (message.headers or {}).items() if k != "Nats-Msg-Id"}
                await js.publish(message.subject or "", message.data or b"", headers=headers)

    finding = await _small_run(plant, again)
    assert finding.verdict.lost == 0
    assert finding.verdict.duplicated == finding.sent > 0


async def _small_run(plant: Plant, then: Callable[[], Any] | None = None) -> Finding:
    """Run agent and ingest in this process for a moment, and judge."""
    settings = ingest_settings(plant.dsn)
    plant.ingest_settings = settings
    await plant.bootstrap()
    async with running_machines(plant.folder, ["e1"], each=3, poll_interval_ms=50, seed=plant.seed) as machines:
        accepted = plant.folder / "accepted.jsonl"
        ours = agents.settings_for(
            plant.folder, machines=(str(machines[0].documents),), accepted_log=str(accepted), drain_s_max=1.0
        )
        async with ingest.running_ingest(plant.url, settings), plant.client() as client:

            async def some() -> bool:
                return (await client.jetstream().stream_info("CNC_DATA")).state.last_seq >= 20

            async with agents.running_agent(plant.url, ours):
                await until(some)
            await until(lambda: ingest.drained(client))
            if then is not None:
                await then()
                await until(lambda: ingest.drained(client))
    return await judge(plant.dsn, [accepted], [machines[0].polls], plant.folder)
