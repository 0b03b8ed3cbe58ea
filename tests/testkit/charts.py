"""Our Helm charts as tests use them: value combinations, and what they become."""

from pathlib import Path
from typing import Any, Final

import helm_python
import yaml

from testkit.kubernetes import ROOT

CHARTS: Final = ROOT / "charts"
MONITOR, EDGE = CHARTS / "cnc-monitor", CHARTS / "cnc-edge"

EDGE_LEAST: Final = {"site": "halle-1", "edge": "line-a", "nats": {"servers": ["nats://nats:4222"]}}

_TLS = {"tlsSecret": "nats-ca", "clientCertificate": True}
_POD = {
    "podLabels": {"team": "hall"},
    "podAnnotations": {"note": "yes"},
    "priorityClassName": "high",
    "nodeSelector": {"kubernetes.io/arch": "arm64"},
    "tolerations": [{"key": "hall", "operator": "Exists"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "hall", "operator": "Exists"}]}]
            }
        }
    },
}
_EXTRA = {
    "initContainers": [
        {
            "name": "before",
            "image": "registry.example/before:1",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "64Mi"}},
        }
    ],
    "extraEnv": [
        {"name": "TZ", "value": "UTC"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
}
_ALL = {**_POD, **_EXTRA}
_PLACES = {"nodeSelector": _POD["nodeSelector"], "tolerations": _POD["tolerations"], "affinity": _POD["affinity"]}
_EXTERNAL = {
    "nats": {"mode": "external", "external": {"servers": ["nats://a:4222", "tls://b:4222"], "existingSecret": "nats"}},
    "database": {"mode": "external", "external": {"existingSecret": "database", "secretKey": "url", "port": 6432}},
}
_DIGEST = {"digest": f"sha256:{'0' * 64}"}
_PEER = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]

COMBINATIONS: Final[dict[str, tuple[Path, dict[str, Any]]]] = {
    "defaults": (MONITOR, {}),
    "three-nats": (MONITOR, {"nats": {"bundled": {"replicas": 3}}}),
    "external": (MONITOR, {**_EXTERNAL}),
    "external-tls": (
        MONITOR,
        {
            "nats": {**_EXTERNAL["nats"], **_TLS, "settings": {"ping_interval_ms": 2000}},
            "database": _EXTERNAL["database"],
            "networkPolicy": {"natsTo": _PEER, "databaseTo": _PEER, "apiServerTo": _PEER, "apiServerPorts": [6443]},
        },
    ),
    "bundled-tls": (
        MONITOR,
        {"nats": {**_TLS, "bundled": {"tlsSecret": "nats-server", "verifyClients": True, "existingSecret": "nats"}}},
    ),
    "cnpg": (
        MONITOR,
        {
            "database": {
                "mode": "cnpg",
                "cnpg": {
                    "instances": 1,
                    "imageName": "registry.example/timescaledb:18",
                    "parameters": {"max_wal_size": "4GB"},
                    "sharedPreloadLibraries": ["timescaledb"],
                    "postInitApplicationSQL": ["CREATE EXTENSION timescaledb"],
                    "storage": {"storageClass": "fast", "onUninstall": "Delete"},
                },
            }
        },
    ),
    "scaled-by-cpu": (
        MONITOR,
        {"ingest": {"autoscaling": {"mode": "cpu"}}, "queryApi": {"autoscaling": {"mode": "cpu"}}},
    ),
    "scaled-by-lag": (MONITOR, {"ingest": {"autoscaling": {"mode": "keda", "maxReplicas": 16}}}),
    "scaled-by-lag-external": (
        MONITOR,
        {
            "ingest": {"autoscaling": {"mode": "keda"}},
            "nats": {"mode": "external", "external": {"servers": ["nats://a:4222"], "monitor": "a:8222"}},
        },
    ),
    "ingress": (
        MONITOR,
        {
            "queryApi": {
                "ingress": {
                    "enabled": True,
                    "className": "nginx",
                    "host": "wall.example",
                    "tlsSecret": "wall",
                    "annotations": {"nginx.ingress.kubernetes.io/proxy-read-timeout": "3600"},
                }
            },
            "networkPolicy": {"apiFrom": _PEER, "metricsFrom": _PEER},
        },
    ),
    "gateway": (
        MONITOR,
        {
            "queryApi": {
                "httpRoute": {"enabled": True, "parentRefs": [{"name": "hall"}], "hostnames": ["wall.example"]},
                "service": {"type": "NodePort", "nodePort": 30080},
            }
        },
    ),
    "traced": (MONITOR, {"tracing": {"otlpEndpoint": "https://collector.example/otlp"}}),
    "monitored": (MONITOR, {"monitoring": {"enabled": True, "labels": {"release": "prometheus"}}}),
    "reached-from-outside": (
        MONITOR,
        {
            "nats": {
                "bundled": {
                    "service": {
                        "type": "LoadBalancer",
                        "nodePort": 30422,
                        "loadBalancerSourceRanges": ["192.0.2.0/24"],
                        "annotations": {"lb": "internal"},
                    }
                }
            },
            "queryApi": {"service": {"type": "LoadBalancer", "port": 80, "annotations": {"lb": "internal"}}},
        },
    ),
    "pods-of-all-kinds": (
        MONITOR,
        {
            "image": {"registry": "registry.example/cnc", "tag": "1.2.3", "pullSecrets": [{"name": "pull"}]},
            "ingest": {**_ALL, "replicas": 3, "minAvailable": "50%", "image": _DIGEST, "topologySpread": False},
            "queryApi": {**_ALL, "image": _DIGEST, "existingSecret": "reader", "minAvailable": 2},
            "operator": {**_ALL, "image": _DIGEST, "minAvailable": ""},
            "nats": {"bundled": {**_PLACES, "image": _DIGEST, "replicas": 3, "priorityClassName": "high"}},
            "database": {
                "bundled": {
                    **_PLACES,
                    "image": _DIGEST,
                    "parameters": {"max_wal_size": "4GB", "shared_buffers": "256MB", "max_connections": 200},
                }
            },
            "serviceAccount": {"annotations": {"role": "none"}},
        },
    ),
    "gone-with-the-release": (
        MONITOR,
        {
            "nats": {"bundled": {"storage": {"onUninstall": "Delete", "storageClass": "fast", "size": "1Gi"}}},
            "database": {"bundled": {"storage": {"onUninstall": "Delete", "storageClass": "fast", "size": "1Gi"}}},
        },
    ),
    "without-operator": (
        MONITOR,
        {"operator": {"enabled": False}, "crds": {"install": False}, "networkPolicy": {"enabled": False}},
    ),
    "own-names": (MONITOR, {"fullnameOverride": "plant", "nameOverride": "cnc", "logLevel": "debug"}),
    "edge-least": (EDGE, EDGE_LEAST),
    "edge-all": (
        EDGE,
        {
            **EDGE_LEAST,
            **_ALL,
            "nats": {"servers": ["tls://nats:4222"], "existingSecret": "nats", **_TLS},
            "settings": {"spool": "preferred", "horizon_h": 48.5, "spool_bytes_max": 1 << 30},
            "storage": {"cold": {"enabled": True, "storageClass": "usb"}, "storageClass": "local-path"},
            "devices": {"resources": {"squat.ai/serial": 1}, "supplementalGroups": [20]},
            "machinesConfigMap": "machines",
            "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
            "image": {"registry": "registry.example", **_DIGEST, "pullSecrets": [{"name": "pull"}]},
            "networkPolicy": {"machinePorts": [502], "machineCidrs": ["192.0.2.0/24"], "natsTo": _PEER},
            "serviceAccount": {"annotations": {"role": "none"}},
        },
    ),
    "edge-without-policies": (
        EDGE,
        {**EDGE_LEAST, "networkPolicy": {"enabled": False}, "storage": {"onUninstall": "Delete"}},
    ),
}


def rendered(chart: Path, values: dict[str, Any], *, upgrade: bool = False, release: str = "plant") -> dict[str, str]:
    """Return what the chart's templates become, each by its path."""
    with helm_python.Chart.load(chart) as loaded:
        return loaded.render(
            values, name=release, namespace="cnc", revision=2 if upgrade else 1,
            is_install=not upgrade, is_upgrade=upgrade,
        )  # fmt: skip


def manifests(
    chart: Path, values: dict[str, Any], *, upgrade: bool = False, release: str = "plant"
) -> list[dict[str, Any]]:
    """Return the Kubernetes objects that the chart makes, hooks among them."""
    files = rendered(chart, values, upgrade=upgrade, release=release)
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def find(objects: list[dict[str, Any]], kind: str, end: str) -> dict[str, Any]:
    """Return the one object of a kind whose name ends so."""
    found = [one for one in objects if one["kind"] == kind and one["metadata"]["name"].endswith(end)]
    assert len(found) == 1, f"{kind} …{end}: {len(found)} of them"
    return found[0]


def pod_specs(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the pod specs of all objects that have one, by kind and name."""
    specs = {}
    for one in objects:
        if one["kind"] == "Pod":
            specs[f"Pod/{one['metadata']['name']}"] = one["spec"]
        elif "template" in one.get("spec", {}):
            specs[f"{one['kind']}/{one['metadata']['name']}"] = one["spec"]["template"]["spec"]
    return specs


def environment(spec: dict[str, Any]) -> dict[str, str]:
    """Return the plain environment variables of a pod's first container; others are ''."""
    return {variable["name"]: variable.get("value", "") for variable in spec["containers"][0]["env"]}
