from datetime import UTC, datetime

async def test_smoke(api, store):
    await store.machines("m1")
    now = datetime.now(UTC)
    await store.samples({"machine_id": "m1", "time": now, "temperature": 1.5, "spindle_speed": 2, "machine_state": "running", "extras": '{"a": 1}'})
    print((await api.get("/api/v1/machines")).text)
    print((await api.get("/api/v1/machines/m1/samples")).text)
    print((await api.get("/api/v1/machines/m1/series", points=3)).text)
    print((await api.get("/openapi.json")).text[:300])
    print((await api.get("/metrics")).text[-3000:])
    print((await api.get("/")).text[:300])
    for p in ("/api/v1/x", "/api/v1/machines/zz/samples", "/api/v1/machines/m1/samples?limit=0", "/readyz"):
        print(p, (await api.get(p)).text)
    async with api.live() as s:
        print(await s.event(), await s.event())
