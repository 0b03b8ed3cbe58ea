"""The operator's settings."""

from typing import Annotated

from msgspec import Meta, Struct


class OperatorSettings(Struct, frozen=True):
    """`CNCMON_OPERATOR_…`."""

    namespace: Annotated[str, Meta(description="Namespace that is looked after; empty: the one it runs in.")] = ""
    resync_s: Annotated[
        float,
        Meta(ge=1, description="Everything is listed, and every edge looked at, this often: repairs a lost event."),
    ] = 60.0
    status_interval_s: Annotated[
        float, Meta(ge=0, description="The status of one resource is written this often at most.")
    ] = 10.0
    value_interval_s: Annotated[float, Meta(ge=0, description="The same where only times and figures differ.")] = 60.0
    stale_after_s: Annotated[
        float, Meta(ge=1, description="An edge that was not heard of for so long is taken for silent.")
    ] = 90.0
    lease_s: Annotated[
        float, Meta(ge=1, description="Another replica takes over when the leader was not heard of for so long.")
    ] = 15.0
    workers: Annotated[int, Meta(ge=1, le=64, description="Edges that are looked at at the same time.")] = 4
