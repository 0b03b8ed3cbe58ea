"""Every setting of a service is a value of its chart, and arrives as it was given."""

import shutil
from pathlib import Path
from typing import Any

import helm_python
import msgspec
import pytest

from cncmon_agent.settings import AgentSettings
from cncmon_api.settings import ApiSettings
from cncmon_core import settings
from cncmon_core.nats_link import NatsSettings
from cncmon_core.service import ServiceSettings
from cncmon_ingest.settings import IngestSettings
from cncmon_operator.settings import OperatorSettings
from testkit.charts import COMBINATIONS, EDGE, EDGE_LEAST, MONITOR, environment, find, manifests, pod_specs

SECRET = {"CNCMON_INGEST_DATABASE_DSN": "postgresql://x/y", "CNCMON_API_DATABASE_DSN": "postgresql://x/y"}

SERVICES: list[tuple[str, type[msgspec.Struct], Path, tuple[str, ...], str, str]] = [
    ("INGEST", IngestSettings, MONITOR, ("ingest", "settings"), "Deployment", "-ingest"),
    ("INGEST", IngestSettings, MONITOR, ("ingest", "settings"), "Job", "-migrate-1"),
    ("API", ApiSettings, MONITOR, ("queryApi", "settings"), "Deployment", "-api"),
    ("OPERATOR", OperatorSettings, MONITOR, ("operator", "settings"), "Deployment", "-operator"),
    ("NATS", NatsSettings, MONITOR, ("nats", "settings"), "Deployment", "-ingest"),
    ("NATS", NatsSettings, MONITOR, ("nats", "settings"), "Deployment", "-operator"),
    ("AGENT", AgentSettings, EDGE, ("settings",), "StatefulSet", "-edge"),
    ("NATS", NatsSettings, EDGE, ("nats", "settings"), "StatefulSet", "-edge"),
]


@pytest.mark.parametrize(
    ("section", "struct", "chart", "path", "kind", "end"),
    SERVICES, ids=[f"{row[0]}{row[5]}-{row[4]}".lower() for row in SERVICES],
)  # fmt: skip
def test_every_setting_of_a_service_can_be_given_and_is_understood(
    section: str, struct: type[msgspec.Struct], chart: Path, path: tuple[str, ...], kind: str, end: str
) -> None:
    with helm_python.Chart.load(chart) as loaded:
        schema: Any = loaded.schema
    for name in path:
        schema = schema["properties"][name]
    given = {}
    for field in msgspec.structs.fields(struct):
        if field.name not in schema["properties"]:
            continue
        default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        given[field.name] = list(default) if isinstance(default, (list, tuple)) else default
    assert len(given) >= 4
    values: dict[str, Any] = {} if chart is MONITOR else {**EDGE_LEAST}
    inner = values
    for name in path[:-1]:
        inner[name] = dict(inner.get(name, {}))
        inner = inner[name]
    inner[path[-1]] = given
    spec = next(
        spec
        for name, spec in pod_specs(manifests(chart, values)).items()
        if name.startswith(kind) and name.endswith(end)
    )
    variables = environment(spec)
    for name in given:
        assert settings.variable_of(section, name) in variables
    # The service reads them, and gets what was given. What comes from a Secret has some value or other.
    understood = settings.load(struct, section, {key: text or SECRET.get(key, "") for key, text in variables.items()})
    for name, value in given.items():
        read = getattr(understood, name)
        assert (list(read) if isinstance(read, tuple) else read) == value, name


def test_a_large_number_in_a_file_stays_whole(tmp_path: Path) -> None:
    """Helm reads numbers of files as floats, and writes 8388608 as 8.388608e+06 where nobody minds."""
    chart = tmp_path / "cnc-monitor"
    shutil.copytree(MONITOR, chart)
    file = chart / "values.yaml"
    given = "settings: {fetch_bytes: 8388608, abandon_grace_s: 0.5}"
    file.write_text(file.read_text().replace("settings: {}", given, 1))
    variables = environment(find(manifests(chart, {}), "Deployment", "-ingest")["spec"]["template"]["spec"])
    assert variables["CNCMON_INGEST_FETCH_BYTES"] == "8388608"
    assert variables["CNCMON_INGEST_ABANDON_GRACE_S"] == "0.5"


def test_no_variable_of_ours_is_unknown_to_its_service() -> None:
    known = {
        settings.variable_of(section, field.name)
        for section, struct in (
            ("INGEST", IngestSettings), ("API", ApiSettings), ("OPERATOR", OperatorSettings), ("NATS", NatsSettings),
            ("AGENT", AgentSettings), ("SERVICE", ServiceSettings),
        )
        for field in msgspec.structs.fields(struct)
    }  # fmt: skip
    for chart, values in COMBINATIONS.values():
        for name, spec in pod_specs(manifests(chart, values)).items():
            ours = {variable for variable in environment(spec) if variable.startswith("CNCMON_")}
            assert ours <= known, f"{name}: {ours - known}"
