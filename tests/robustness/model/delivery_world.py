"""Edges and cloud together, what can happen to them, and what must hold after each step."""

import asyncio
from datetime import timedelta
from pathlib import Path
from random import Random

from cncmon_ingest import dlq
from cncmon_ingest.reconcile import Books, reconcile
from robustness.model.cloud import Cloud
from robustness.model.edge import ModelEdge
from robustness.model.promises import Found, Promises, Quality, look

ROUNDS_MAX = 60
"""Turns of everybody until all must be at rest. Some take two: a declaration, the watermark over it, the next batch."""


class DeliveryWorld:
    """Two edges and the cloud side. Every step ends with `check`."""

    def __init__(self, cloud: Cloud, folder: Path, edges: int) -> None:
        self.cloud = cloud
        self.promises = Promises()
        self.edges = [
            ModelEdge(f"e{number}", folder / f"e{number}", self.promises, cloud.settings.duplicate_window_s)
            for number in range(edges)
        ]
        self.documents: list[tuple[int, bytes]] = []
        self.told: dict[int, int] = {}
        self.database: str | None = None
        self.stream: Path | None = None
        self.at = "begin"
        """What is being done: steps are counted in the order in which a failure lists them."""

    async def check(self) -> Found:
        """Raise AssertionError where the promise is broken."""
        found = await look(self.cloud.database)
        self.promises.note(self.at, found, {edge.name: edge for edge in self.edges})
        self.promises.check(found)
        self.promises.regressed = {key for key in self.promises.regressed if not self.promises.is_settled(key, found)}
        for key in self.promises.unsettled(found):
            if key not in self.promises.regressed | self.promises.gone:
                assert any(edge.holds(key) for edge in self.edges), (
                    f"{key[:2]} is neither settled nor held by its edge: {self.promises.history[key]}"
                )
        return found

    async def connect(self, number: int, *, asks: bool) -> None:
        """An edge's connection begins."""
        await self.edges[number].connect(self.cloud.js, asks=asks)

    async def publish(self, number: int, count: int, *, loses_acks: bool) -> None:
        """An edge publishes."""
        await self.edges[number].publish(self.cloud.js, count, loses_acks=loses_acks)

    async def hear(self, number: int) -> None:
        """An edge hears of its watermarks."""
        document = await self.edges[number].hear(self.cloud.js)
        if document is not None and (number, document) not in self.documents[-20:]:
            self.documents.append((number, document))

    async def hear_again(self, which: int) -> None:
        """An edge gets a document that it, or the process before it, had already."""
        if self.documents:
            number, document = self.documents[which % len(self.documents)]
            await self.edges[number].told(self.cloud.js, document)

    async def round(self) -> None:
        """The leader makes a round."""
        await self.cloud.round()

    async def flow(self, number: int, worker: int, qualities: list[Quality]) -> None:
        """The usual way of an edge's batch, from accepting to freeing."""
        edge = self.edges[number]
        edge.accept(qualities)
        edge.sync()
        await self.publish(number, 5, loses_acks=False)
        await self.cloud.deliver(worker, 20)
        await self.round()
        await self.hear(number)
        edge.keep()

    async def snapshot_database(self) -> None:
        """A backup of the database."""
        if self.database is not None:
            await self.cloud.drop_snapshot(self.database)
        self.database = await self.cloud.snapshot_database()

    async def restore_database(self, *, ends_sessions: bool) -> None:
        """The backup is put back, if there is one, and the leader has written down since that all is further."""
        if self.database is None or not await self.cloud.is_older(self.database):
            return
        before = await look(self.cloud.database)
        await self.cloud.restore_database(self.database, ends_sessions=ends_sessions)
        after = await look(self.cloud.database)
        lost = {
            key
            for key in self.promises.batches
            if self.promises.is_settled(key, before) and not self.promises.is_settled(key, after)
        }
        self.promises.regressed |= lost
        # What the stream has of that must be read again, and not purged before.
        self.promises.in_stream = self.promises.regressed & await self.cloud.batches_in_stream()

    async def snapshot_stream(self) -> None:
        """A backup of the server's disk."""
        self.stream = await self.cloud.snapshot_stream()

    async def restore_stream(self) -> None:
        """The server's disk of then is back, with the heartbeats of then."""
        if self.stream is not None:
            await self.cloud.restore_stream(self.stream)
            await self._forget_stream()
            self.told = {}

    async def make_stream_again(self) -> None:
        """Another stream takes the place of the one that was."""
        await self.cloud.make_stream_again()
        await self._forget_stream()

    async def _forget_stream(self) -> None:
        """What lay in the stream alone is gone, and so is what the heartbeats told of disks that are gone."""
        self.promises.in_stream.clear()
        found = await look(self.cloud.database)
        self.promises.excused |= {
            key for key in self.promises.unsettled(found) if not any(edge.holds(key) for edge in self.edges)
        }

    async def replay(self) -> None:
        """Somebody replays the dead letters: none of them can be stored."""
        database = self.cloud.database
        async for one in dlq.replay(database, await dlq.chosen(database, dlq.DEAD), self.cloud.settings):
            assert one.error is not None, f"letter {one.id} was stored, and nothing is right about it by now"

    async def beat(self, number: int) -> None:
        """An edge sends a heartbeat."""
        for epoch, seq in (await self.edges[number].beat(self.cloud.client)).items():
            self.told[epoch] = max(seq, self.told.get(epoch, 0))

    async def lose_disk(self, number: int, folder: Path) -> None:
        """An edge's disk is gone; it goes on with an empty one. What no heartbeat told of is excused."""
        edge = self.edges[number]
        found = await look(self.cloud.database)
        self.promises.gone |= {key for key in self.promises.unsettled(found) if edge.holds(key)}
        self.promises.excused |= {key for key in self.promises.gone if key[1] > self.told.get(key[0], 0)}
        self.edges[number] = ModelEdge(edge.name, folder, self.promises, self.cloud.settings.duplicate_window_s)

    async def settle(self) -> None:
        """Everybody works until all is at rest; then the books must balance and nothing may be missing."""
        cloud = self.cloud
        for edge in self.edges:
            edge.recover()
        rested = 0
        for turn in range(ROUNDS_MAX):
            self.at = f"settle {turn}"
            await cloud.redeliver()
            for number, edge in enumerate(self.edges):
                edge.sync()
                await edge.connect(cloud.js)
                edge.keep()
                await edge.publish(cloud.js, 1000)
                edge.sync()
                await self.beat(number)
            for number in (0, 1):
                while await cloud.deliver(number, 100):
                    pass
            await cloud.wait_for_grace()
            await cloud.round()
            for edge in self.edges:
                await edge.hear(cloud.js)
                edge.resend()
                edge.keep()
            await self.check()
            # Twice, since a heartbeat sent just now is written down a round later.
            at_rest = all(edge.is_at_rest() for edge in self.edges) and await cloud.is_drained()
            rested = rested + 1 if at_rest else 0
            if rested >= 3:
                break
            if not at_rest:
                # What a worker had in hand when its server ended is delivered again after `ack_wait`.
                await asyncio.sleep(0.1)
        else:
            raise AssertionError(f"not at rest after {ROUNDS_MAX} rounds: {await self._restless()}")
        found = await self.check()
        missing = [(key[:2], self.promises.history[key]) for key in self.promises.unsettled(found)]
        assert not missing, f"promised, and neither stored, dead nor a gap: {missing}"
        unread = [
            (key[:2], self.promises.history[key])
            for key in self.promises.in_stream
            if not self.promises.is_there(key, found)
        ]
        assert not unread, f"the stream had them, and they were not read again: {unread}"
        books = await self._books()
        assert books.balanced, f"the books don't balance: {books.unbalanced}; {await self._rows(books)}"
        assert not books.pending, f"something is still on its way: {books.pending}"

    async def _books(self) -> Books:
        return await reconcile(self.cloud.database, timedelta(0))

    async def _rows(self, books: Books) -> str:
        """Return what the database has of the epochs that don't balance."""
        rows = []
        for account in books.unbalanced:
            for table in ("edge_epochs", "watermarks", "gaps", "ledger"):
                found = await self.cloud.database.fetch(f"SELECT * FROM {table} WHERE epoch = $1", account.epoch)
                rows += [f"{table}: {dict(row)}" for row in found]
        return "; ".join(rows)

    async def _restless(self) -> str:
        edges = [
            f"{edge.name}: {edge.deliveries.unacknowledged()} unacknowledged, "
            f"{[(epoch.epoch, epoch.closed) for epoch in edge.epochs.open]} open, "
            f"{edge.deliveries.current.missing()} missing, range {edge.buffer.range()}, "
            f"watermark {edge.deliveries.current.watermark}"
            for edge in self.edges
            if not edge.is_at_rest()
        ]
        return "; ".join([*edges, "" if await self.cloud.is_drained() else "the stream is not drained"])


def qualities_of(random: Random, count: int) -> list[Quality]:
    """Return what samples of a batch are like: mostly good, or of all kinds."""
    return random.choices(list(Quality), weights=random.choice([(8, 1, 1), (1, 0, 0), (1, 1, 1)]), k=count)
