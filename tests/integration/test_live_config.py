"""Live configuration: a whole agent on real machines and a real NATS, changed while it reads."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client

from cncmon_core import edge_config, machine_files, names
from cncmon_core.edge_documents import EdgeDocuments
from cncmon_core.errors import EdgeDocumentError
from cncmon_core.machine import Machine
from cncmon_ingest import bootstrap
from cncmon_simulator import Settings, Simulator, documents, running
from cncmon_standalone.configure import apply
from cncmon_standalone.configure.rollout import Heard
from cncmon_standalone.errors import UnusableError
from testkit import ingest
from testkit.agent import running_agent, settings_for
from testkit.recorder import until
from testkit.servers import Server

SITE, EDGE = "hall", "e1"
ONE, TWO, THREE = "cnc-001", "cnc-002", "cnc-003"
KEY = f"$KV.{names.KV_CONFIG}.{SITE}.{EDGE}"


@contextlib.asynccontextmanager
async def plant(folder: Path, count: int = 3) -> AsyncIterator[tuple[Simulator, dict[str, Machine]]]:
    """Run simulated machines; yields their documents, for reading them twenty times a second."""
    file = folder / "machines.yaml"
    settings = Settings(
        machines=count,
        port_base=0,
        control_port=-1,
        behaviour="reference",
        poll_interval_ms=50,
        site=SITE,
        edge=EDGE,
    )
    async with running(settings) as simulator:
        documents.write(simulator.fleet, file)
        yield simulator, machine_files.load([file]).machines


class Accepted:
    """The agent's record of what it has taken."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def counters(self, name: str) -> list[int]:
        if not self.path.exists():
            return []
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        marks = [mark for line in lines for mark in line.get("samples", [])]
        return [counter for machine, counter, _ in marks if machine == name and counter is not None]

    def gaps(self, name: str) -> list[tuple[int, int]]:
        """Neighbours that are not; none where no answer was lost."""
        return [(a, b) for a, b in itertools.pairwise(self.counters(name)) if b != a + 1]


def faster(machine: Machine, interval_ms: int) -> Machine:
    return msgspec.structs.replace(machine, spec=msgspec.structs.replace(machine.spec, poll_interval_ms=interval_ms))


async def made_bucket(client: Client) -> None:
    await bootstrap.ensure(client, ingest.settings_for(""))


def agent_settings(folder: Path, **changes: Any) -> Any:
    return settings_for(
        folder, accepted_log=str(folder / "accepted.jsonl"), **({"config_poll_ms": 3_600_000} | changes)
    )


async def test_a_new_interval_counts_at_once_and_the_others_lose_nothing(
    nats_client: Client, nats_url: str, tmp_path: Path
) -> None:
    await made_bucket(nats_client)
    accepted = Accepted(tmp_path / "accepted.jsonl")
    async with plant(tmp_path) as (_, machines), running_agent(nats_url, agent_settings(tmp_path)) as agent:
        slow = machines | {ONE: faster(machines[ONE], 3_600_000)}
        await apply.apply(nats_client, slow)
        await until(lambda: all(len(accepted.counters(name)) > 3 for name in (TWO, THREE)) and accepted.counters(ONE))
        before = len(accepted.counters(ONE))
        # As often as a person never would, and each time only one machine is concerned.
        for interval_ms in (20, 40, 20, 3_600_000):
            (change,) = await apply.apply(nats_client, {ONE: faster(machines[ONE], interval_ms)})
            assert [machine.verb for machine in change.machines] == ["configured"]
            await asyncio.sleep(0.2)
        await apply.apply(nats_client, {ONE: faster(machines[ONE], 10)})
        count = len(accepted.counters(ONE))
        # At the interval before, the next poll would come in an hour.
        await until(lambda: len(accepted.counters(ONE)) >= count + 30)
        assert before <= 2
        await until(lambda: agent.config.report.revision == 6)
        reports = {report.id: report for report in agent.machines.reports()}
        assert {report.state for report in reports.values()} == {"connected"}
    for name in (ONE, TWO, THREE):
        assert len(accepted.counters(name)) > 20
        assert accepted.gaps(name) == []


async def test_machines_come_and_go_and_the_others_lose_nothing(
    nats_client: Client, nats_url: str, tmp_path: Path
) -> None:
    await made_bucket(nats_client)
    accepted = Accepted(tmp_path / "accepted.jsonl")
    async with plant(tmp_path) as (_, machines), running_agent(nats_url, agent_settings(tmp_path)) as agent:
        await apply.apply(nats_client, machines)
        await until(lambda: all(accepted.counters(name) for name in machines))
        for _ in range(3):
            await apply.delete(nats_client, [TWO])
            await until(lambda: len(agent.machines.reports()) == 2)
            await asyncio.sleep(0.1)
            count = len(accepted.counters(TWO))
            await asyncio.sleep(0.2)
            assert len(accepted.counters(TWO)) == count
            await apply.apply(nats_client, {TWO: machines[TWO]})
            await until(lambda: len(accepted.counters(TWO)) > count + 2)  # noqa: B023 done before the next round
    for name in (ONE, THREE):
        assert len(accepted.counters(name)) > 20
        assert accepted.gaps(name) == []


def changed(place: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(document: dict[str, Any]) -> None:
        node = document["machines"][1]
        *way, last = place.split(".")
        for step in way:
            node = node[step]
        node[last] = value

    return change


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "0 ms polls": (
        changed("spec.pollIntervalMs", 0),
        f"Machine {TWO} spec.pollIntervalMs: 0: expected a whole number; allowed are 10 to 3600000",
    ),
    "port 99999": (
        changed("spec.connection.modbus.port", 99999),
        f"Machine {TWO} spec.connection.modbus.port: 99999: expected a whole number; allowed are 1 to 65535",
    ),
    "a thousand million signals": (
        changed("spec.signals", 10**9),
        f"Machine {TWO} spec.signals: 1000000000: expected a list, got a whole number",
    ),
    "1001 signals": (
        changed("spec.signals", [{"name": f"s{n}", "register": n} for n in range(1001)]),
        f"Machine {TWO} spec.signals: a list of 1001: expected a list of length <= 1000",
    ),
    "an unknown driver": (
        changed("spec.connection", {"profinet": {}}),
        f"Machine {TWO} spec.connection: unknown field `profinet`; known are modbus",
    ),
    "a profile": (
        changed("spec.profileRef", {"name": "lathe"}),
        f"Machine {TWO} spec.profileRef.name: 'lathe'; an edge has no profiles: who writes this document",
    ),
    "two of one name": (
        changed("metadata.name", ONE),
        f"Machine {ONE} metadata.name: another machine of this document has this name already",
    ),
    "a newer schema": (
        lambda document: document.update(schema=2),
        "schema: 2; this version reads 1: update the agent",
    ),
    "another edge's": (
        lambda document: document.update(edge="e2"),
        "edge: 'e2'; this edge is 'e1'",
    ),
    "no JSON": (lambda _: b"machines: []", "not JSON: "),
    "too large": (lambda _: b" " * 1_044_481, "1044481 bytes; at most 1044480"),
}


async def test_bad_documents_are_refused_and_told_and_the_old_one_runs_on(
    nats_client: Client, nats_url: str, tmp_path: Path
) -> None:
    await made_bucket(nats_client)
    js = nats_client.jetstream()
    accepted = Accepted(tmp_path / "accepted.jsonl")
    async with plant(tmp_path) as (_, machines), running_agent(nats_url, agent_settings(tmp_path)) as agent:
        (change,) = await apply.apply(nats_client, machines)
        await until(lambda: agent.config.report.revision == 1)
        good = msgspec.json.decode(edge_config.encode(change.wanted))
        for number, (how, said) in enumerate(BAD.values(), 100):
            document = msgspec.json.decode(msgspec.json.encode(good)) | {"revision": number}
            data = how(document) or msgspec.json.encode(document)
            heard = Heard(nats_client)
            await heard.listen([(SITE, EDGE)])
            await js.publish(KEY, data)
            await until(lambda: str(next(iter(agent.config.report.errors), "")).startswith(said))  # noqa: B023 within
            if isinstance(data, bytes) and data[:1] == b"{":
                wanted = edge_config.make(SITE, EDGE, number, [])
                (outcome,) = await heard.wait([wanted], 5)
                assert outcome.state == "refused"
                assert str(outcome.errors[0]).startswith(said)
            status = msgspec.json.decode(msgspec.json.encode(agent.heartbeat()))["config"]
            assert (status["revision"], status["source"]) == (1, "kv")
        with pytest.raises(UnusableError, match="that is there can't be used, and so not changed"):
            await apply.apply(nats_client, machines)
        heard = Heard(nats_client)
        await heard.listen([(SITE, EDGE)])
        (change,) = await apply.apply(nats_client, machines, prune=True)
        assert [outcome.state for outcome in await heard.wait([change.wanted], 5)] == ["applied"]
        assert agent.config.report.errors == []
    for name in (ONE, TWO, THREE):
        assert accepted.gaps(name) == []


async def test_without_nats_it_reads_from_the_start_what_was_last_good(own_nats: Server, tmp_path: Path) -> None:
    url = f"nats://127.0.0.1:{own_nats.port}"
    accepted = Accepted(tmp_path / "accepted.jsonl")
    async with plant(tmp_path) as (_, machines):
        client = Client()
        await client.connect(url, allow_reconnect=False)
        await made_bucket(client)
        await apply.apply(client, machines)
        await client.close()
        async with running_agent(url, agent_settings(tmp_path)) as agent:
            await until(lambda: all(accepted.counters(name) for name in machines))
            await until(lambda: (tmp_path / "agent" / "config.json").exists())
        own_nats.stop()
        taken = {name: len(accepted.counters(name)) for name in machines}
        async with running_agent(url, agent_settings(tmp_path, drain_s_max=0.1)) as agent:
            # NATS is still away: they are read without a word from it.
            await until(lambda: all(len(accepted.counters(name)) > taken[name] for name in machines))
            assert (agent.config.report.source, agent.config.report.revision) == ("disk", 1)
            own_nats.start()
            await until(lambda: agent.config.report.source == "kv")
    for name in machines:
        counters = accepted.counters(name)
        assert counters == sorted(set(counters))


async def test_a_bucket_that_is_deleted_and_made_anew_is_followed_by_the_poll(
    nats_client: Client, nats_url: str, tmp_path: Path
) -> None:
    await made_bucket(nats_client)
    accepted = Accepted(tmp_path / "accepted.jsonl")
    settings = agent_settings(tmp_path, config_poll_ms=1000)
    async with plant(tmp_path) as (_, machines), running_agent(nats_url, settings) as agent:
        for interval_ms in (40, 50, 60, 50):
            await apply.apply(nats_client, machines | {ONE: faster(machines[ONE], interval_ms)})
        await until(lambda: agent.config.report.revision == 4)
        await nats_client.jetstream().delete_stream(f"KV_{names.KV_CONFIG}")
        with pytest.raises(EdgeDocumentError, match="no bucket edge_config"):
            await apply.apply(nats_client, machines)
        await asyncio.sleep(0.3)
        assert len(agent.machines.reports()) == 3
        # By hand, and so without republishing: only the poll can find it.
        await nats_client.jetstream().create_key_value(bucket=names.KV_CONFIG, direct=True)
        await apply.apply(nats_client, {ONE: machines[ONE], TWO: machines[TWO]})
        await until(lambda: len(agent.machines.reports()) == 2)
        assert (agent.config.report.revision, agent.config.report.errors) == (1, [])
    for name in (ONE, TWO):
        assert accepted.gaps(name) == []


async def test_two_who_write_at_once_both_get_their_way(nats_client: Client, tmp_path: Path) -> None:
    await made_bucket(nats_client)
    async with plant(tmp_path, 5) as (_, machines):
        await asyncio.gather(*(apply.apply(nats_client, {name: machine}) for name, machine in machines.items()))
    stored = await EdgeDocuments(nats_client).read(SITE, EDGE)
    assert stored.config is not None
    assert sorted(stored.config.by_name) == sorted(machines)
    assert stored.config.revision == 5


async def test_a_machine_moves_from_edge_to_edge_and_two_edges_swap(nats_client: Client, tmp_path: Path) -> None:
    await made_bucket(nats_client)
    documents_there = EdgeDocuments(nats_client)

    def at(machine: Machine, edge: str) -> Machine:
        return msgspec.structs.replace(machine, spec=msgspec.structs.replace(machine.spec, edge=edge))

    async def there(edge: str) -> list[str]:
        config = (await documents_there.read(SITE, edge)).config
        return sorted(config.by_name) if config else []

    async with plant(tmp_path) as (_, machines):
        await apply.apply(nats_client, machines)
        moved = {TWO: at(machines[TWO], "e2")}
        tried = await apply.apply(nats_client, moved, dry_run=True)
        assert await there(EDGE) == [ONE, TWO, THREE]
        done = await apply.apply(nats_client, moved)
        assert [(c.edge, [(m.machine, m.verb) for m in c.machines]) for c in done] == [
            ("e1", [(TWO, "moved")]),
            ("e2", [(TWO, "created")]),
        ]
        assert [c.machines for c in tried] == [c.machines for c in done]
        assert (await there(EDGE), await there("e2")) == ([ONE, THREE], [TWO])
        await apply.apply(nats_client, {ONE: at(machines[ONE], "e2"), TWO: machines[TWO]})
        assert (await there(EDGE), await there("e2")) == ([TWO, THREE], [ONE])
