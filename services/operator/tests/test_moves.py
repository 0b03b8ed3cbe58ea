"""A machine that moves from one edge to another, on a real NATS: it is never on two."""

from typing import Any

from nats.aio.client import Client

from cncmon_core import edge_config, names
from cncmon_core.edge_documents import Edge, EdgeDocuments
from cncmon_operator import resources, wanted
from cncmon_operator.operator import Operator
from cncmon_operator.resources import FINALIZER, Resource
from cncmon_operator.settings import OperatorSettings

OLD, NEW = ("hall", "e1"), ("hall", "e2")
OURS = "operator/plant"


class Api:
    """An API server that takes everything: what the operator asks of it is not what these tests are about."""

    namespace = "plant"

    async def hold(self, machine: Resource) -> bool:
        del machine
        return True

    async def let_go(self, machine: Resource) -> None:
        """It goes."""

    async def set_status(self, resource: Resource, changes: dict[str, Any]) -> bool:
        del resource, changes
        return False


def raw(name: str, edge: Edge) -> dict[str, Any]:
    connection = {"modbus": {"host": "127.0.0.1"}}
    signals = [{"name": "temperature", "register": 1}]
    spec = {"site": edge[0], "edge": edge[1], "connection": connection, "signals": signals}
    metadata = {"name": name, "uid": f"uid-{name}", "generation": 1, "finalizers": [FINALIZER]}
    return {"kind": "Machine", "metadata": metadata, "spec": spec}


async def write(documents: EdgeDocuments, edge: Edge, *machines: str) -> None:
    asked = wanted.of([resources.read(raw(name, edge)) for name in machines], {})
    await documents.write(*edge, lambda there: edge_config.make(*edge, there.revision + 1, asked.machines.values()))


async def machines_of(documents: EdgeDocuments, edge: Edge) -> list[str]:
    config = (await documents.read(*edge)).config
    return sorted(config.by_name) if config is not None else []


def operator_with(*machines: dict[str, Any]) -> Operator:
    api: Any = Api()
    operator = Operator(api, OperatorSettings())
    for machine in machines:
        operator.seen("Machine", False, machine)
    return operator


async def test_a_machine_that_its_old_edge_still_has_is_not_given_to_the_new_one(nats_client: Client) -> None:
    """Somebody else wrote the old edge's document, so that the operator can't take the machine from it."""
    await nats_client.jetstream().create_key_value(bucket=names.KV_CONFIG)
    theirs, ours = EdgeDocuments(nats_client), EdgeDocuments(nats_client, OURS)
    await write(theirs, OLD, "m1", "foreign")
    operator = operator_with(raw("m1", NEW), raw("m2", NEW))
    await operator._learn(ours)
    await operator._look_at(NEW, ours)
    assert await machines_of(ours, OLD) == ["foreign", "m1"]
    assert await machines_of(ours, NEW) == ["m2"]
    await write(theirs, OLD, "foreign")
    await operator._look_at(NEW, ours)
    assert await machines_of(ours, NEW) == ["m1", "m2"]


async def test_the_old_edge_loses_a_machine_before_the_new_one_has_it(nats_client: Client) -> None:
    await nats_client.jetstream().create_key_value(bucket=names.KV_CONFIG)
    ours = EdgeDocuments(nats_client, OURS)
    await write(ours, OLD, "m1", "m2")
    written: list[tuple[str, list[str]]] = []
    write_once = ours.write

    async def noted(site: str, edge: str, to: Any) -> Any:
        made = await write_once(site, edge, to)
        written.append((edge, sorted(made.by_name) if made is not None else []))
        return made

    ours.write = noted  # type: ignore[method-assign]
    operator = operator_with(raw("m1", NEW), raw("m2", OLD))
    await operator._learn(ours)
    await operator._look_at(NEW, ours)
    assert written == [("e1", ["m2"]), ("e2", ["m1"])]
